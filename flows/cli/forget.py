"""`millrace forget`: documents and sources that must be found nowhere in the workspace any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import show
from flows.cli.command import CARE, Json, command, home

if TYPE_CHECKING:
    from pipeline_lib.forgetting.forget import ForgetPlan
    from pipeline_lib.workspace.forgotten import Request


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "forget", example="millrace forget --source old_blog", panel=CARE)(forget)


def forget(
    doc_ids: Annotated[list[str] | None, typer.Argument(metavar="DOC_ID…", help="Documents: 32 hexadecimal digits each.")] = None,
    source: Annotated[str, typer.Option(metavar="NAME", help="Every document of a source, also what it brings later.")] = "",
    copies: Annotated[bool, typer.Option("--copies", help="Also documents with the same text under another id.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    as_json: Json = False,
) -> None:
    """Take documents out of everything: artifacts, pinned ones too, packed cache, quarantine, reports; and keep them out.

    Shows what would happen and asks first. Model weights stay; the models that learned something of it are named.
    Without DOC_ID and --source: complete what an interrupted call began.
    """
    from pipeline_lib.forgetting.forget import forget as carry_out
    from pipeline_lib.forgetting.forget import plan_forget
    from pipeline_lib.stages import STAGES
    from pipeline_lib.workspace.forgotten import Forgotten

    workspace = home()
    if not doc_ids and not source and not Forgotten.read(workspace.root).unfinished:
        show.say("nothing is waiting to be forgotten; name documents or a source")
        return
    plan = plan_forget(workspace, doc_ids or [], source=source, copies=copies)
    if not as_json:
        _show(plan)
    if not (yes or (show.in_terminal() and not as_json and typer.confirm("Forget it? There is no way back"))):
        if as_json:
            show.json_out({"done": False, **plan.to_json(workspace.root)})
        else:
            show.say("nothing was done; `--yes` does it")
        return
    done = carry_out(workspace, plan, order=tuple(stage.name for stage in STAGES))
    if as_json:
        show.json_out({"done": True, **plan.to_json(workspace.root)})
    else:
        _tell(done)


def _show(plan: ForgetPlan) -> None:
    what = f"{plan.documents.num_rows:,} documents" + "".join(f" and source {name} for ever" for name in plan.sources)
    show.say(f"to forget: {what}")
    if plan.copies:
        show.say(f"{plan.copies:,} other documents have the same text and stay; `--copies` forgets them too")
    if plan.near:
        show.say(f"{plan.near:,} near duplicates stay; `millrace explain DOC_ID` names them, each is forgotten by its own id")
    rows: list[list[show.Cell]] = [[s.key, s.entry.table, s.rows] for s in plan.segments]
    rows += [
        [p.key, "removed with its cache: no document is left" if p.empty else "packed ranges", len(p.ranges)]
        for p in plan.packings
    ]
    rows += [[key, f"removed: cannot be read ({reason})", None] for key, reason in plan.unreadable.items()]
    if rows:
        show.table(["artifact", "what is written again", "rows or ranges"], rows)
    if plan.rubbish:
        show.say(f"{len(plan.rubbish)} folders of unfinished, damaged or left-over things go")
    if plan.reports:
        show.say(f"{len(plan.reports)} reports are rendered again")
    for role in plan.champions:
        show.say(f"the {role} learned something of it")
    for key in plan.models:
        show.say(f"learned by model {key}: its weights stay")
    for key in plan.tokenizers:
        show.say(f"seen by the tokenizer of {key}: it stays")


def _tell(done: Request) -> None:
    show.say(f"forgotten: {done.documents:,} documents" + "".join(f", source {name}" for name in done.sources))
    if done.models:
        show.say("to have a model that never saw it, run the pipeline again from scratch: `millrace run`")
