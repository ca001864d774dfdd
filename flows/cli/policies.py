"""`millrace policies`: what a training does when something goes wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import show
from flows.cli.command import LOOK, Json, Set, command


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "policies", example="millrace policies", panel=LOOK)(policies)


def policies(
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Pipeline YAML (default: the quickstart).")] = None,
    overrides: Set = [],  # noqa: B006 (typer copies it)
    as_json: Json = False,
) -> None:
    """List what a training does when something goes wrong: signal, predicate, action, how often, cool-down.

    Rows of one signal are a ladder: the first that is not used up and not cooling down acts. `train.recovery.policies` changes
    rows by name, as in --set "train.recovery.policies={spike: {at_most: 5}}".
    """
    from flows.cli.pipelines import default_pipeline
    from pipeline_lib.config.load import load_config
    from pipeline_lib.config.recovery import POLICIES
    from pipeline_lib.training.policies import rows_of

    recovery = load_config(config or default_pipeline(), overrides).train.recovery
    table = recovery.table()
    if as_json:
        changed = {policy.name for policy, usual in zip(table, POLICIES, strict=True) if policy != usual}
        show.json_out([{**policy.to_json(), "changed": policy.name in changed} for policy in table])
        return
    rows = rows_of(table)
    marked = ", ".join(policy.name for policy, usual in zip(table, POLICIES, strict=True) if policy != usual)
    show.table(list(rows[0]), [list(row.values()) for row in rows], "What a training does when something goes wrong")
    if marked:
        show.say(f"changed by the configuration: {marked}")
