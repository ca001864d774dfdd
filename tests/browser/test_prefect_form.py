"""The form with which a person starts a run in the Prefect UI."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from pipeline_lib.stages import STAGES
from tests.servers import Up, wait_for


@pytest.fixture
def form(page: Any, up: Up) -> Any:
    """The custom run form of the deployment `pipeline`."""
    with temporary_settings({PREFECT_API_URL: up.api}), get_client(sync_client=True) as api:
        deployment = api.read_deployment_by_name("pipeline/pipeline")
    page.goto(f"{up.prefect}/deployments/deployment/{deployment.id}/run")
    page.get_by_text("What is read, how it is filtered").wait_for()
    return page


def field(form: Any, label: str) -> Any:
    """The input under a label: the first that follows it (of the first label of this name)."""
    return form.get_by_text(label, exact=True).first.locator("xpath=following::*[self::input or self::textarea][1]")


def test_it_shows_titles_descriptions_units_defaults_and_choices(form: Any) -> None:
    assert field(form, "Name (Optional)").input_value() == "quickstart"
    assert form.get_by_text("Window of the whole run, from the flow's start [hours]").is_visible()
    assert field(form, "Max Hours (Optional)").input_value() == "0.075"
    assert form.get_by_text("Which stages, what again, on whose data.").count() == 1
    choices = form.get_by_text("Stop after this stage").locator("xpath=following::button[contains(@class, 'p-select-button')][1]")
    choices.press("ArrowDown")
    offered = form.get_by_role("option")
    offered.first.wait_for()
    assert [text for text in offered.all_inner_texts() if text] == [stage.name for stage in STAGES]


def test_a_wrong_value_is_refused_and_a_right_one_starts_a_run(form: Any, up: Up) -> None:
    from playwright.sync_api import TimeoutError

    hours = field(form, "Max Hours (Optional)")
    hours.fill("-1")
    form.get_by_role("button", name="Submit").click()
    form.get_by_text("config.resources.max_hours").first.wait_for()
    assert form.url.endswith("/run")

    hours.fill("0.5")
    name = field(form, "Run Name").input_value()
    for _ in range(4):  # the page may still be checking the value before, and then does not send
        form.get_by_role("button", name="Submit").click()
        with suppress(TimeoutError):
            form.wait_for_url(lambda address: not address.endswith("/run"), timeout=30_000)
            break
    with temporary_settings({PREFECT_API_URL: up.api}), get_client(sync_client=True) as api:
        (run,) = api.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
        assert run.parameters["config"]["resources"]["max_hours"] == 0.5
        assert run.parameters["config"]["name"] == "quickstart"
        wait_for(lambda: is_running(api, run.id), seconds=120)
        api.set_flow_run_state(run.id, Cancelling(), force=True)
        wait_for(lambda: is_over(api, run.id), seconds=40)


def is_running(api: SyncPrefectClient, run: UUID) -> bool:
    state = api.read_flow_run(run).state
    return state is not None and state.is_running()


def is_over(api: SyncPrefectClient, run: UUID) -> bool:
    state = api.read_flow_run(run).state
    return state is not None and state.is_final()
