"""`millrace recall`: which past runs were like this, and what they taught."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import show
from flows.cli.command import LOOK, Json, command, home

if TYPE_CHECKING:
    from pipeline_lib.memory.recall import Neighbour
    from pipeline_lib.memory.store import MemoryStore


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "recall", example='millrace recall "overnight fine-tune, 8 GB"', panel=LOOK)(recall)


def recall(
    goal: Annotated[str, typer.Argument(help="What is wanted, in words: task, hours, memory, sizes, family.")] = "",
    *,
    k: Annotated[int, typer.Option("--k", min=1, help="How many runs.")] = 5,
    cured: Annotated[
        str, typer.Option("--cured", metavar="TROUBLE", help="Instead: what was enough when this went wrong (loss_spike …).")
    ] = "",
    export: Annotated[
        Path | None, typer.Option("--export", help="Write everything that is remembered to a Parquet file.")
    ] = None,
    bring_in: Annotated[
        list[Path], typer.Option("--import", help="Take over an exported file, or the JSON record of a run. May be repeated.")
    ] = [],  # noqa: B006 (typer copies it)
    as_json: Json = False,
) -> None:
    """Recall past runs like a goal, nearest first, with the reasons; failed runs teach, too."""
    from pipeline_lib.memory.ask import features_in
    from pipeline_lib.memory.keep import caught_up
    from pipeline_lib.memory.store import NOTHING_YET

    store = caught_up(home())
    if export or bring_in:
        _hand_on(store, export, bring_in, as_json=as_json)
        return
    if cured:
        cures = store.cures(cured)
        if as_json:
            show.json_out([{"action": action, "runs": times} for action, times in cures])
        elif cures:
            show.table(["cured by", "times"], [[action, times] for action, times in cures])
        else:
            from pipeline_lib.config.explain import nearest
            from pipeline_lib.config.recovery import POLICIES

            signals = sorted({policy.signal for policy in POLICIES})
            meant = "" if cured in signals else nearest(cured, signals)
            show.say(f"no remembered run had {cured!r} and got over it" + (f"; did you mean {meant}?" if meant else ""))
        return
    asked = features_in(goal)
    found = store.recall(asked, goal=goal, k=k)
    unread = len(store.unreadable())
    if as_json:
        runs = [_told(store, near) for near in found]
        show.json_out({"asked": asked, "remembered": len(store), "unreadable_files": unread, "runs": runs})
        return
    if unread:
        show.warn(f"{unread} files of the memory could not be read; they were set aside: {show.path(store.aside)}")
    if not found:
        show.say(NOTHING_YET)
        return
    if asked:
        show.say("asked: " + ", ".join(f"{name} {value}" for name, value in asked.items()))
    rows: list[list[show.Cell]] = []
    for near in found:
        told = _told(store, near)
        rows.append(
            [near.run_id, told["outcome"], round(near.distance, 3), told["goal"] or told["pipeline"], "; ".join(near.reasons[:3]),
             "; ".join(near.doubts)]
        )  # fmt: skip
    show.table(["run", "outcome", "distance", "goal", "because", "doubts"], rows)


def _told(store: MemoryStore, near: Neighbour) -> dict[str, Any]:
    memory = store.get(near.run_id)
    return {
        **near.to_json(), "goal": memory.goal, "pipeline": memory.pipeline, "outcome": memory.outcome, "error": memory.error,
        "scores": memory.scores, "tuned": memory.tuned, "failures": memory.failures, "config": memory.config,
    }  # fmt: skip


def _hand_on(store: MemoryStore, export: Path | None, bring_in: list[Path], *, as_json: bool) -> None:
    told: dict[str, Any] = {}
    for path in bring_in:
        taken, lost = store.bring_in(path)
        told.setdefault("imported", {})[str(path)] = {"taken": taken, "passed_over": lost}
    if export:
        told["exported"] = {"file": str(export), "runs": store.export(export)}
    if as_json:
        show.json_out(told)
        return
    for name, what in told.get("imported", {}).items():
        show.say(f"{name}: {what['taken']} runs taken over, {what['passed_over']} passed over")
    if export:
        show.say(f"{told['exported']['runs']} runs written to {show.path(export)}")
