"""`millrace champion`, `promote`, `rollback`: which model is the champion, and the decision to change that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import show
from flows.cli.command import DECIDE, Json, RunId, command, home
from pipeline_lib.errors import RefusedError

if TYPE_CHECKING:
    from pipeline_lib.workspace.runs import RunRecord
    from pipeline_lib.workspace.workspace import Workspace


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "champion", example="millrace champion", panel=DECIDE)(champion)
    command(app, "promote", example="millrace promote latest", panel=DECIDE)(promote)
    command(app, "rollback", example="millrace rollback", panel=DECIDE)(rollback)


def champion(as_json: Json = False) -> None:
    """Show the champion, the previous one and the latest verdict."""
    from pipeline_lib.workspace.resolve import read_champion

    _show(read_champion(home()), as_json=as_json)


def promote(
    run_id: RunId = "latest",
    *,
    force: Annotated[bool, typer.Option("--force", help="Decide over the gate's verdict.")] = False,
    as_json: Json = False,
) -> None:
    """Make a run's model the champion, if the gate's verdict allows it."""
    from pipeline_lib.promotion import decide, in_office
    from pipeline_lib.promotion import promote as make_champion
    from pipeline_lib.workspace.runs import RunBook

    workspace = home()
    book = RunBook(workspace.runs_folder)
    record = book.load(run_id)
    verdict = {"outcome": "same"} if in_office(workspace, record) else decide(workspace, record)
    if verdict["outcome"] == "same":
        raise RefusedError(f"the model of {record.run_id} is the champion already")
    allowed = force or verdict["outcome"] == "pass"
    state = make_champion(workspace, record, verdict, by="a person" if allowed else "gate")
    record.verdict = {**verdict, "decision": "promote", "decided_by": "a person"}
    book.save(record)
    _mirror(workspace, record)
    _show(state, as_json=as_json)


def rollback(as_json: Json = False) -> None:
    """Go back to the previous champion."""
    from pipeline_lib.promotion import rollback as go_back
    from pipeline_lib.workspace.runs import RunBook

    workspace = home()
    state = go_back(workspace)
    if run_id := state["champion"].get("run_id"):
        _mirror(workspace, RunBook(workspace.runs_folder).load(run_id))
    _show(state, as_json=as_json)


def _mirror(workspace: Workspace, record: RunRecord) -> None:
    from flows.tracking import mirror_aliases

    mirror_aliases(workspace, record)


def _show(state: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show.json_out(state)
        return
    if not state.get("champion"):
        show.say("no champion yet: the first model that beats chance becomes it")
        return
    rows = [
        [
            name,
            *(str(entry.get(key, "?")) for key in ("run_id", "train")),
            str(entry.get("promoted", "?"))[:19].replace("T", " "),
            str(entry.get("by", "?")),
        ]
        for name in ("champion", "previous")
        if (entry := state.get(name))
    ]
    show.table(["", "run", "model", "since (UTC)", "decided by"], rows)
