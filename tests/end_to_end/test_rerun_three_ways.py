"""A training that fails, and the three ways to go on: each runs the failed stage, and reuses what is finished and intact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry

from pipeline_lib.workspace.runs import RunBook, RunRecord
from tests.pipeline_toys import NAMES, digests, newest, small, states
from tests.servers import Up, millrace, wait_for

# Fails in the middle of training while the file `broken` lies beside it.
CALLBACK = """
from pathlib import Path
from pipeline_lib.extensions import extend

@extend.callback("breaker")
def breaker():
    from transformers import TrainerCallback

    class Breaker(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 25 and (Path(__file__).parent / "broken").exists():
                raise ValueError("the callback is broken")

    return Breaker()
"""
BEFORE = NAMES[: NAMES.index("train")]


def ended(up: Up, deployment: str, **parameters: Any) -> RunRecord:
    """Start a deployment and wait for the end of its run."""
    with temporary_settings({PREFECT_API_URL: up.api}), get_client(sync_client=True) as api:
        run: FlowRun = api.create_flow_run_from_deployment(api.read_deployment_by_name(deployment).id, parameters=parameters)
        wait_for(lambda: (state := api.read_flow_run(run.id).state) and state.is_final(), seconds=120)
    (found,) = [r for r in RunBook(up.workspace.runs_folder).all() if r.prefect.get("flow_run_id") == str(run.id)]
    return found


@pytest.fixture(scope="module")
def failed(up: Up) -> RunRecord:
    folder = up.workspace.root / "breaker"
    folder.mkdir()
    (folder / "breaker.py").write_text(CALLBACK)
    (folder / "broken").touch()
    config = small(seed=7, execution={"extensions": [str(folder / "breaker.py")]}, tune={"trials": 0})
    record = ended(up, "pipeline/pipeline", config=config)
    (folder / "broken").unlink()
    return record


@pytest.fixture(scope="module")
def retried(up: Up, failed: RunRecord) -> RunRecord:
    with temporary_settings({PREFECT_API_URL: up.api}), get_client(sync_client=True) as api:  # as Retry in the UI does
        api.set_flow_run_state(failed.prefect["flow_run_id"], AwaitingRetry(), force=True)
    book = RunBook(up.workspace.runs_folder)
    wait_for(lambda: len(book.load(failed.run_id).attempts) == 2 and book.load(failed.run_id).outcome != "running", seconds=120)
    return book.load(failed.run_id)


def test_the_failure_is_recorded_where_it_happened(failed: RunRecord) -> None:
    assert failed.outcome == "failed"
    assert list(failed.stages) == [*BEFORE, "train"]
    assert failed.stages["train"].state == "failed"
    assert {failed.stages[name].state for name in BEFORE} <= {"made", "reused"}  # data of other runs on these servers
    assert "the callback is broken" in failed.stages["train"].error
    assert "the callback is broken" in Path(failed.report).read_text()


def test_retry_continues_the_run_from_its_checkpoint(up: Up, retried: RunRecord, failed: RunRecord) -> None:
    assert (retried.run_id, retried.outcome, retried.parent) == (failed.run_id, "completed", "")
    assert [attempt.state for attempt in retried.attempts] == ["failed", "completed"]
    assert states(retried) == {**dict.fromkeys(BEFORE, "reused"), "train": "made", "validate": "made"}
    trained = retried.ref("train")
    assert trained is not None
    resumed = [event["detail"] for event in up.workspace.store.manifest(trained.key).events if event["kind"] == "resumed"]
    assert [detail["step"] for detail in resumed] == [24]  # the last one before the decay


def test_rerun_is_a_new_run_that_names_its_parent(up: Up, retried: RunRecord) -> None:
    said = millrace("rerun", retried.run_id, "--stage", "train", "--force", "--json", home=up.workspace.root).stdout
    record = newest(up.workspace.root)
    assert json.loads(said)["run_id"] == record.run_id
    assert (record.parent, record.outcome) == (retried.run_id, "completed")
    assert record.run_id != retried.run_id
    # made again without the failure in between: equal bytes, so that what follows is reused
    assert states(record) == {**dict.fromkeys(BEFORE, "reused"), "train": "made", "validate": "reused"}
    assert digests(record) == digests(retried)
    first, again = retried.ref("train"), record.ref("train")
    assert first is not None
    assert again is not None
    assert again.key != first.key


def test_the_stage_deployment_does_the_same(up: Up, retried: RunRecord) -> None:
    record = ended(up, "stage/stage", run=retried.run_id, stage="train", force=True)
    assert (record.parent, record.outcome) == (retried.run_id, "completed")
    assert states(record) == {**dict.fromkeys(BEFORE, "reused"), "train": "made", "validate": "reused"}
    assert digests(record) == digests(retried)
