"""A real Prefect server, worker and deployments, operated as people operate them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from pipeline_lib.workspace.runs import RunBook, RunRecord
from tests.servers import Up, millrace, toy_config, wait_for


@contextmanager
def client(up: Up) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: up.api}), get_client(sync_client=True) as made:
        yield made


def start(up: Up, deployment: str, **parameters: Any) -> FlowRun:
    with client(up) as api:
        found = api.read_deployment_by_name(deployment)
        return api.create_flow_run_from_deployment(found.id, parameters=parameters)


def state_of(up: Up, run: UUID) -> str:
    with client(up) as api:
        found = api.read_flow_run(run).state
        return f"{found.type.value}" if found else ""


def ended(up: Up, run: FlowRun) -> FlowRun:
    wait_for(lambda: state_of(up, run.id) in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}, seconds=180)
    with client(up) as api:
        return api.read_flow_run(run.id)


def record_of(up: Up, run: FlowRun) -> RunRecord:
    (found,) = [r for r in RunBook(up.workspace.runs_folder).all() if r.prefect.get("flow_run_id") == str(run.id)]
    return found


def tasks_of(up: Up, run: FlowRun) -> dict[str, str]:
    """Task name → state name, of the newest task run of each name."""
    body = {"flow_runs": {"id": {"any_": [str(run.id)]}}, "sort": "EXPECTED_START_TIME_ASC"}
    with client(up) as api:
        return {task["name"]: task["state"]["name"] for task in api.request("POST", "/task_runs/filter", json=body).json()}


def test_the_nightly_schedule_really_has_runs(up: Up) -> None:
    with client(up) as api:
        deployment = api.read_deployment_by_name("nightly/nightly")
        assert [(s.schedule.cron, s.schedule.timezone) for s in deployment.schedules] == [("0 1 * * *", "Europe/Berlin")]
        assert deployment.global_concurrency_limit is not None
        body = {"flow_runs": {"deployment_id": {"any_": [str(deployment.id)]}, "state": {"type": {"any_": ["SCHEDULED"]}}}}
        runs = wait_for(lambda: api.request("POST", "/flow_runs/filter", json=body).json(), seconds=180)
    assert all(run["auto_scheduled"] and run["parameters"]["config"]["name"] == "nightly" for run in runs)


def test_the_form_knows_types_choices_and_defaults(up: Up) -> None:
    with client(up) as api:
        deployment = api.read_deployment_by_name("pipeline/pipeline")
    schema = deployment.parameter_openapi_schema
    assert schema is not None
    definitions = schema["definitions"]
    codec = definitions["PackConfig"]["properties"]["codec"]
    assert codec["enum"] == ["lz4", "zstd", "none"]
    assert codec["description"]
    assert definitions["RunOptions"]["properties"]["force"]["items"]["enum"][0] == "suites"
    assert deployment.parameters["config"]["name"] == "quickstart"
    with pytest.raises(PrefectHTTPStatusError, match=r"409|422"):
        start(up, "pipeline/pipeline", config={"pack": {"codec": "rar"}})


def test_a_run_from_the_form_and_then_one_that_reuses_it(up: Up) -> None:
    config = toy_config(up.workspace.root / "form")
    first = ended(up, start(up, "data/data", config=config))
    assert first.state is not None
    assert first.state.type.value == "COMPLETED", first.state.message
    record = record_of(up, first)
    assert (record.outcome, record.prefect["url"]) == ("completed", f"{up.prefect}/runs/flow-run/{first.id}")
    assert record.run_id in first.name
    assert {s.state for name, s in record.stages.items() if name != "suites"} == {"made"}  # another test may have made them
    assert "Completed" in set(tasks_of(up, first).values())

    second = ended(up, start(up, "data/data", config=config))
    assert {s.state for s in record_of(up, second).stages.values()} == {"reused"}
    assert set(tasks_of(up, second).values()) == {"Reused"}
    with client(up) as api:
        body = {"flow_runs": {"id": {"any_": [str(second.id)]}}}
        keys = {artifact["key"] for artifact in api.request("POST", "/artifacts/filter", json=body).json()}
    assert {"millrace-ingest", "millrace-fill-gaps", "millrace-report"} <= keys


def test_cancelling_leaves_no_child_process(up: Up) -> None:
    folder = up.workspace.root / "hang"
    config = toy_config(folder)
    (folder / "hang").touch()
    run = start(up, "pipeline/pipeline", config=config, options={"until": "ingest"})
    wait_for((folder / "child").exists, seconds=180)
    child = psutil.Process(int((folder / "child").read_text()))
    flow = psutil.Process(record_of(up, run).attempts[0].pid)
    assert child.is_running()
    with client(up) as api:
        api.set_flow_run_state(run.id, Cancelling(), force=True)
    assert state_of(up, ended(up, run).id) == "CANCELLED"
    gone, alive = psutil.wait_procs([child, flow], timeout=10)
    assert (len(gone), alive) == (2, [])
    assert record_of(up, run).outcome == "cancelled"


def test_doctor_finds_everything_in_place_and_a_second_up_says_where_the_first_is(up: Up) -> None:
    findings = {f["subject"]: f for f in json.loads(millrace("doctor", "--json", home=up.workspace.root).stdout)}
    assert {findings[s]["state"] for s in ("prefect", "mlflow", "work pool", "limit", "crash watch", "sqlalchemy")} == {"ok"}
    second = millrace("up", home=up.workspace.root, check=False)
    assert second.returncode == 3
    assert up.prefect in second.stderr


@pytest.mark.slow
def test_a_killed_run_is_marked_crashed(up: Up) -> None:
    folder = up.workspace.root / "killed"
    config = toy_config(folder)
    (folder / "hang").touch()
    run = start(up, "pipeline/pipeline", config=config, options={"until": "ingest"})
    wait_for((folder / "child").exists, seconds=180)
    state = json.loads((up.workspace.root / "up.json").read_text())
    worker = psutil.Process(state["children"]["worker"]["pid"])  # `up` starts another one
    for process in [worker, *worker.children(recursive=True)]:
        process.kill()
    begin = time.monotonic()
    wait_for(lambda: state_of(up, run.id) == "CRASHED", seconds=150)
    assert time.monotonic() - begin < 150
