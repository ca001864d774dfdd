"""Screenshots of what people look at: the report, a run in Prefect, two runs compared in MLflow."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline_lib.workspace.runs import RunRecord
from tests.chromium import NO_ASSISTANT, chromium
from tests.servers import Up, start_up, stop_up

LARGEST = 300_000  # bytes a picture
SIZE = {"width": 1280, "height": 820}


def _save(shown: bytes, path: Path) -> None:
    """A picture with the colours of a screen in a palette: a third of the bytes.

    Raises:
        ValueError: it is too large for a repository all the same.
    """
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(shown)).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    if buffer.tell() > LARGEST:
        raise ValueError(f"{path.name} has {buffer.tell():,} bytes; at most {LARGEST:,}")
    path.write_bytes(buffer.getvalue())


def _report(page: Any, record: RunRecord) -> None:
    page.goto(Path(record.report).as_uri())


def _prefect(up: Up) -> Callable[[Any, RunRecord], None]:
    def show(page: Any, record: RunRecord) -> None:
        page.goto(f"{up.prefect}/runs/flow-run/{record.prefect['flow_run_id']}")
        page.get_by_text("Task Runs").first.wait_for()
        page.wait_for_timeout(4000)  # the graph is drawn on a canvas: nothing says when it is done

    return show


def _mlflow(up: Up) -> Callable[[Any, RunRecord], None]:
    def show(page: Any, record: RunRecord) -> None:
        experiment = record.mlflow["experiment_id"]
        page.goto(f"{up.mlflow}/#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=CHART")
        search = page.get_by_placeholder("Search metric charts")
        search.wait_for()
        search.fill("^(dev_loss|train_loss|learning_rate|bits_per_byte|grammar|syntax)$")
        page.wait_for_timeout(4000)  # charts fade in

    return show


def take(home: Path, record: RunRecord, folder: Path) -> list[Path]:
    """Take all pictures of a finished run whose workspace nobody serves yet.

    Args:
        home: the workspace; `millrace up` is started on it and stopped again.
        record: the run that is shown.
        folder: where the pictures go.

    Returns:
        The pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    up = start_up(home)
    try:
        shows = {"report": _report, "prefect": _prefect(up), "mlflow": _mlflow(up)}
        with chromium() as browser:
            for name, show in shows.items():
                page = browser.new_context(viewport=SIZE, color_scheme="light").new_page()
                page.add_init_script(NO_ASSISTANT)
                show(page, record)
                _save(page.screenshot(), folder / f"{name}.png")
    finally:
        stop_up(up)
    return [folder / f"{name}.png" for name in shows]
