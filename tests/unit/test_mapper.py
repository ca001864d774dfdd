"""The mapper of sharded stages: results in order, whatever runs them; much work goes out as Prefect tasks, little does not."""

from __future__ import annotations

import logging
import os
import time

import pytest
from prefect import flow
from prefect.client.orchestration import get_client

from flows.environment import prefect_for
from pipeline_lib.config.resources import ExecutionConfig
from pipeline_lib.errors import ConfigError, ServiceError, StageFailedError
from pipeline_lib.workspace.workspace import Workspace
from tasks import mapper
from tasks.mapper import task_mapper
from tasks.single import prefect_task
from tasks.stages import _log
from tasks.transient import is_transient
from tests.servers import wait_for


def slow_square(number: int) -> tuple[int, int]:
    time.sleep(0.02)
    return number * number, os.getpid()


@pytest.fixture(scope="module")
def prefect(tmp_path_factory):
    with prefect_for(Workspace.open(tmp_path_factory.mktemp("mapper"))), get_client(sync_client=True) as api:
        yield api


@pytest.mark.parametrize("runner", ["threads", "processes"])
def test_order_and_batches(runner: str, prefect, monkeypatch) -> None:
    monkeypatch.setattr(mapper, "BATCH_SECONDS", 0.1)  # so that a test's little work counts as much
    seen = []

    @flow(persist_result=False)
    def work() -> None:
        seen.extend(task_mapper(ExecutionConfig(task_runner=runner, workers=2))(slow_square, range(22)))

    state = work(return_state=True)
    body = {"flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}}}

    def names() -> list[str]:
        return sorted(task["name"] for task in prefect.request("POST", "/task_runs/filter", json=body).json())

    wait_for(lambda: any(name.startswith("shards 2-") for name in names()) and any(name.endswith("-21") for name in names()))
    assert [square for square, _ in seen] == [n * n for n in range(22)]
    others = {pid for _, pid in seen} - {os.getpid()}
    assert bool(others) == (runner == "processes")


def test_long_work_is_a_task_of_its_own(prefect) -> None:
    told = []

    @flow(persist_result=False)
    def work() -> None:
        told.append(prefect_task("trial 7, {24} steps", lambda: slow_square(7)[0]))
        with pytest.raises(StageFailedError):
            prefect_task("trial 8", _failing)

    state = work(return_state=True)
    body = {"flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}}}

    def states() -> dict[str, str]:
        return {task["name"]: task["state_type"] for task in prefect.request("POST", "/task_runs/filter", json=body).json()}

    assert told == [49]
    wait_for(lambda: states() == {"trial 7, (24) steps": "COMPLETED", "trial 8": "FAILED"})


def _failing() -> None:
    raise StageFailedError("not today")


def test_little_work_needs_no_prefect() -> None:
    assert [n for n, _ in task_mapper(ExecutionConfig(workers=2))(slow_square, range(5))] == [0, 1, 4, 9, 16]


def test_a_missing_extra_is_told_with_its_name(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prefect_dask", None)
    with pytest.raises(ConfigError, match=r"millrace\[dask\]"), mapper.task_runner(ExecutionConfig(task_runner="dask")):
        pass


def test_only_what_passes_by_itself_is_retried() -> None:
    assert is_transient(ServiceError("MLflow is away"))
    assert is_transient(ConnectionResetError())
    assert is_transient(OSError(5, "Input/output error"))
    assert not is_transient(StageFailedError("no documents"))
    assert not is_transient(FileNotFoundError(2, "No such file"))
    assert not is_transient(OSError(28, "No space left on device"))
    assert not is_transient(ValueError())


def test_a_name_from_data_does_not_steer_the_terminal(caplog) -> None:
    _log(logging.getLogger("a stage"), "WARNING: no document of domain \x1b[2J\x9b31m\u202eÜ\u00a0漢 is trained on\n")
    assert [(one.levelname, one.message) for one in caplog.records] == [
        ("WARNING", "no document of domain \\x1b[2J\\x9b31m\\u202eÜ\u00a0漢 is trained on\n")
    ]
