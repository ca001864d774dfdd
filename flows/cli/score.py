"""`millrace score`: a model on your own validation files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.command import RUN, Json, RunId, Set, command, home
from flows.cli.progress import ProgressLines


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "score", example="millrace score latest --file general.jsonl", panel=RUN)(score)


def score(
    run: RunId = "latest",
    *,
    file: Annotated[list[Path], typer.Option("--file", help="A validation file, named like its suite. May be repeated.")] = [],  # noqa: B006
    suites: Annotated[list[str], typer.Option("--suite", help="A built-in suite as well. May be repeated.")] = [],  # noqa: B006
    overrides: Set = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Score a run's model on validation files, in a run of its own with a report; nothing is trained or promoted."""
    from flows.cli.run import finish
    from flows.launch import score as launch_score
    from pipeline_lib.config.paths import allow
    from pipeline_lib.errors import ConfigError, NotFoundError

    if not (file or suites):
        raise ConfigError("nothing says what to score on", fix="--file general.jsonl, or --suite knowledge")
    if gone := [path for path in file if not path.exists()]:
        raise NotFoundError("there is no such file", where=str(gone[0]), fix="one JSON object a line: options, answer, prompt")
    allow([path.absolute().parent for path in file])
    workspace = home()
    told = [
        f"suites.paths={json.dumps([str(path.absolute()) for path in file])}",
        f"suites.names={json.dumps(suites or ['zen'])}",
    ]
    listener = None if as_json else ProgressLines().listener()
    finish(workspace, launch_score(run, workspace=workspace, overrides=[*told, *overrides], listener=listener), as_json=as_json)
