"""A run in the MLflow UI, behind the links that a run prints."""

from __future__ import annotations

from typing import Any

from pipeline_lib.tracking.server import experiments_link
from pipeline_lib.workspace.runs import RunRecord
from tests.servers import Up


def test_the_run_page_has_parameters_data_and_the_model(page: Any, shown: RunRecord) -> None:
    page.goto(shown.mlflow["url"])
    page.get_by_role("heading", name=shown.run_id).wait_for()
    page.get_by_text("train.max_steps").first.wait_for()
    assert page.get_by_text("ingest.documents").count() >= 1
    assert page.get_by_role("link", name="trial-0").count() == 1
    assert page.get_by_role("link", name="model").count() >= 1


def test_the_curves_are_drawn(page: Any, shown: RunRecord) -> None:
    address, _, view = shown.mlflow["url"].partition("?")
    page.goto(f"{address}/model-metrics?{view}")
    page.get_by_placeholder("Search metric charts").fill("^dev_loss$")
    page.locator(".js-plotly-plot .scatterlayer .trace path.js-line").first.wait_for(state="attached")


def test_links_open_the_view_of_trainings(page: Any, shown: RunRecord, up: Up) -> None:
    for link in (experiments_link(up.mlflow), shown.mlflow["url"]):
        page.goto(link)
        page.get_by_text("Model registry").first.wait_for()
        assert page.get_by_text("Prompts", exact=True).count() == 0  # what only the other view has
