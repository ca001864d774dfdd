"""A person decides before promotion: in the UI's form, on the command line, or not at all."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_runs import resume_flow_run
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from flows.approval import ask
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.run import close_run, open_run
from pipeline_lib.workspace.services import Services
from tasks.live import LiveRun
from tests.servers import Up, millrace, wait_for


@pytest.mark.parametrize(("door", "expected"), [
    ("form", ("keep", "Ada")), ("command line", ("promote", "Grace")), ("nobody", ("keep", "the time limit")),
])  # fmt: skip
def test_the_doors_lead_to_the_same_place(up: Up, door: str, expected: tuple[str, str]) -> None:
    minutes = 0.02 if door == "nobody" else 5.0
    config = PipelineConfig.model_validate({"gate": {"approval": True, "approval_minutes": minutes, "approval_default": "keep"}})
    record = open_run(up.workspace, config)
    run = LiveRun(up.workspace, record, config, Services(), wanted=())
    seen: dict[str, Any] = {}

    def form() -> None:
        with temporary_settings({PREFECT_API_URL: up.api}), get_client(sync_client=True) as api:
            wait_for(lambda: "id" in seen)

            def paused() -> bool:
                state = api.read_flow_run(seen["id"]).state
                return bool(state and state.is_paused() and state.state_details.run_input_keyset)

            wait_for(paused)
            resume_flow_run(seen["id"], run_input={"decision": "keep", "by": "Ada"})

    def command_line() -> None:
        millrace("approve", record.run_id, "--by", "Grace", home=up.workspace.root)

    @flow(name="asks", persist_result=False)
    def asks() -> None:
        seen["id"] = flow_run.get_id()
        seen["answer"] = ask(run, {"outcome": "pass", "reasons": ["better | <b>than</b> before"]})

    person = threading.Thread(target={"form": form, "command line": command_line, "nobody": lambda: None}[door])
    with temporary_settings({PREFECT_API_URL: up.api, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        person.start()
        asks()
    person.join()
    close_run(up.workspace, record, "completed")
    assert seen["answer"] == expected
