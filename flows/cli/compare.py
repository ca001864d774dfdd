"""`millrace compare`: several runs side by side."""

from __future__ import annotations

import webbrowser
from typing import Annotated

import typer

from flows.cli import show
from flows.cli.command import LOOK, Json, command, home


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "compare", example="millrace compare 20261119 latest --open", panel=LOOK)(compare)


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Run ids, beginnings of them, or `latest`.")],
    *,
    show_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Put runs side by side: settings, data, scores, and curves at equal steps, tokens, seconds and joules.

    Runs that differ in nothing but the seed are one group, with mean and 95 % interval.
    """
    from pipeline_lib.metrics import training_log
    from pipeline_lib.reporting.compare import compare as compared
    from pipeline_lib.stages import ORDER
    from pipeline_lib.workspace.runs import RunBook

    workspace = home()
    book = RunBook(workspace.runs_folder)
    found = compared(workspace, [book.load(run) for run in runs], ORDER, training_log)
    if as_json:
        show.json_out({
            "html": str(found.html),
            "groups": {group.name: [side.run_id for side in group.sides] for group in found.groups},
            "remarks": list(found.remarks),
            "tables": [{"title": one.title, "columns": one.columns, "rows": one.rows} for one in found.tables],
        })  # fmt: skip
        return
    for remark in found.remarks:
        show.say(remark)
    for one in found.tables:
        show.say()
        show.summary(one)
    show.say(f"\n{show.path(found.html)}")
    if show_it:
        webbrowser.open(found.html.absolute().as_uri())
