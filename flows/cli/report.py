"""`millrace report`: the report of a run, rendered anew."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from flows.cli import show
from flows.cli.command import LOOK, Json, RunId, command, home


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "report", example="millrace report latest --open", panel=LOOK)(report)


def report(
    run_id: RunId = "latest",
    *,
    show_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Render a run's report from its record and artifacts, and say where it is."""
    from pipeline_lib.metrics import training_log
    from pipeline_lib.reporting.report import write_report
    from pipeline_lib.stages import STAGES
    from pipeline_lib.workspace.runs import RunBook

    workspace = home()
    record = RunBook(workspace.runs_folder).load(run_id)
    path = write_report(workspace, record, tuple(stage.name for stage in STAGES), training_log)
    if as_json:
        show.json_out({"run_id": record.run_id, "html": str(path), "markdown": str(path.with_suffix(".md"))})
        return
    show.say(show.path(path))
    if show_it:
        webbrowser.open(path.as_uri())
