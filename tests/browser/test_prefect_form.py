"""The form with which a person starts a run in the Prefect UI."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

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
    form.get_by_text("Stop after this stage").locator("xpath=following::*[contains(@class, 'p-select')][1]").click()
    form.get_by_text("fill_gaps", exact=True).last.wait_for()


def test_a_wrong_value_is_refused_and_a_right_one_starts_a_run(form: Any, up: Up) -> None:
    hours = field(form, "Max Hours (Optional)")
    hours.fill("-1")
    form.get_by_role("button", name="Submit").click()
    form.get_by_text("config.resources.max_hours").wait_for()
    assert form.url.endswith("/run")

    hours.fill("0.5")
    form.get_by_role("button", name="Submit").click()
    form.wait_for_url("**/runs/flow-run/*")
    run_id = UUID(form.url.rpartition("/")[2].partition("?")[0])
    with temporary_settings({PREFECT_API_URL: up.api}), get_client(sync_client=True) as api:
        run = api.read_flow_run(run_id)
        assert run.parameters["config"]["resources"]["max_hours"] == 0.5
        api.set_flow_run_state(run_id, Cancelling(), force=True)
        wait_for(lambda: api.read_flow_run(run_id).state.is_final(), seconds=40)
