"""Every page we render passes axe-core, by day and by night: the report of a finished run, of a failed one, and a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.reporting.compare import compare
from pipeline_lib.reporting.report import write_report
from pipeline_lib.run import close_run, open_run, step
from pipeline_lib.stages import ORDER
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.workspace import Workspace
from tests.chromium import required

# Rules of WCAG 2.2 A and AA and axe's own best practices.
RUN_AXE = "() => axe.run(document, {resultTypes: ['violations']})"


def axe() -> str:
    """axe-core's script, as the Python package brings it: nothing is downloaded."""
    try:
        import axe_playwright_python
    except ImportError:
        if required():
            raise
        pytest.skip("axe-playwright-python is not installed")
    return (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text("utf-8")


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two runs that failed after their text was read: the report of one, and both compared."""
    folder = tmp_path_factory.mktemp("pages")
    text = folder / "text.jsonl"
    text.write_text(
        "".join(json.dumps({"text": f"<b>Sentence</b> {n} of a text that is long enough. " * 5}) + "\n" for n in range(30))
    )
    workspace, records = Workspace.open(folder / "workspace"), []
    for rate in (0.001, 0.002):
        source = {"name": "files", "kind": "files", "path": str(text), "domain": "made up", "licence": "MIT"}
        config = PipelineConfig.model_validate({"ingest": {"sources": [source]}, "train": {"learning_rate": rate}})
        record = open_run(workspace, config)
        for name in ("suites", "ingest"):
            step(workspace, record, name, services=Services())
        record.stage("score").state, record.stage("score").error = "failed", "it broke"
        close_run(workspace, record, "failed", error="it broke")
        records.append(record)
    return {"failure": write_report(workspace, records[0], ORDER), "comparison": compare(workspace, records, ORDER).html}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_passes_axe(page: Any, shown: RunRecord, scheme: str, tmp_path: Path) -> None:
    look(page, Path(shown.report), scheme, tmp_path / f"report-{scheme}.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["failure", "comparison"])
def test_a_page_passes_axe(page: Any, failed: dict[str, Path], name: str, scheme: str, tmp_path: Path) -> None:
    look(page, failed[name], scheme, tmp_path / f"{name}-{scheme}.png")


def look(page: Any, place: Path, scheme: str, picture: Path) -> None:
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.emulate_media(color_scheme=scheme)
    page.goto(place.as_uri())
    page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
    page.evaluate(axe())
    found = page.evaluate(RUN_AXE)["violations"]
    told = [(one["id"], one["help"], [node["html"][:120] for node in one["nodes"][:3]]) for one in found]
    assert told == []
    assert asked == [place.as_uri()]
    assert len(page.screenshot(path=picture, full_page=True)) > 20_000  # something is drawn


def test_axe_would_complain(page: Any) -> None:
    page.set_content("<html><body><img src='data:,'><p style='color:#aaa;background:#fff'>pale</p></body></html>")
    page.evaluate(axe())
    ids = {one["id"] for one in page.evaluate(RUN_AXE)["violations"]}
    assert {"image-alt", "color-contrast", "html-has-lang"} <= ids


def test_paper_shows_what_is_folded_away(page: Any, shown: RunRecord) -> None:
    page.goto(Path(shown.report).as_uri())
    page.emulate_media(media="print")
    folded = page.locator("details").first.locator("table, pre").first
    assert folded.evaluate("one => one.getBoundingClientRect().height") > 0
