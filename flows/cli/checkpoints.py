"""`millrace checkpoints list | show | verify | resume | export | delete`: what trainings have saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import show as out
from flows.cli.command import CARE, Json, command, group, home
from pipeline_lib.errors import ConfigError, DamagedError, RefusedError

if TYPE_CHECKING:
    from pipeline_lib.trainings import Entry

Name = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="RUN@STEP, or RUN for its newest; RUN: id, its beginning, name.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    checkpoints = group(
        app, "checkpoints", "Look after what trainings have saved.", example="millrace checkpoints list", panel=CARE
    )
    command(checkpoints, "list", example="millrace checkpoints list")(list_all)
    command(checkpoints, "show", example="millrace checkpoints show latest@500")(show)
    command(checkpoints, "verify", example="millrace checkpoints verify")(verify)
    command(checkpoints, "resume", example="millrace checkpoints resume latest")(resume)
    command(checkpoints, "export", example="millrace checkpoints export latest@500 --to hf my-model")(export)
    command(checkpoints, "delete", example="millrace checkpoints delete 20261120-0545@500")(delete)


def list_all(as_json: Json = False) -> None:
    """List every checkpoint: run, step, losses, date, size, and why it is kept."""
    from pipeline_lib.trainings import entries

    found = entries(home())
    if as_json:
        out.json_out([entry.to_json() for entry in found])
        return
    if not found:
        out.say("no checkpoints yet: the first run saves some while it trains")
        return
    out.table(["checkpoint", "name", "of", "dev loss", "saved (UTC)", "size", "kept as"], [_row(entry) for entry in found])


def show(name: Name, as_json: Json = False) -> None:
    """Show one checkpoint: its place, its schedule, its files, and with what versions it was made."""
    from pipeline_lib.training.checkpoints import foreign
    from pipeline_lib.trainings import find

    entry = find(home(), name)
    record = dict(entry.record)
    if as_json:
        out.json_out({**entry.to_json(), "record": record})
        return
    if words := foreign(entry.folder):
        raise RefusedError(f"{entry.name} is {words}", where=str(entry.folder), fix="use the version that wrote it")
    if not record:
        raise DamagedError("its record is not what was committed", where=str(entry.folder), fix="the next run sets it aside")
    schedule = record["schedule"]
    facts = [
        ["step", f"{entry.step:,} of {schedule['total_steps']:,}"],
        ["position in the data", f"sequence {record['position']:,}"],
        ["losses", f"train {record['metrics'].get('train_loss') or math.nan:.4g}, dev {entry.dev_loss or 'not evaluated yet'}"],
        ["learning rate", f"{record['learning_rate']:.3g} ({schedule['kind']}, decay from step {schedule['decay_start']:,})"],
        ["data", record["data"]],
        ["tokenizer", record.get("tokenizer", "")],
        ["versions", ", ".join(f"{key} {value}" for key, value in record["versions"].items() if value)],
        ["digest", record["digest"]],
        ["folder", out.path(entry.folder)],
    ]
    out.table(["", entry.name], facts)
    out.say()
    out.table(["file", "size", "blake3"], [[key, out.size(f["size"]), f["digest"]] for key, f in sorted(record["files"].items())])


def verify(
    name: Annotated[str, typer.Argument(metavar="[CHECKPOINT]", help="One of them; default: all.")] = "", as_json: Json = False
) -> None:
    """Digest every byte; ends with code 4 when one is damaged, with code 5 when another version wrote one."""
    from pipeline_lib.trainings import DAMAGED, INTACT, entries, find
    from pipeline_lib.trainings import verify as look

    workspace = home()
    found = {entry.name: look(entry) for entry in ([find(workspace, name)] if name else entries(workspace))}
    if as_json:
        out.json_out(found)
    else:
        for one, state in found.items():
            out.say(f"{one}: {state}")
    if damaged := [one for one, state in found.items() if state.startswith(DAMAGED)]:
        raise DamagedError(
            f"{len(damaged)} of {len(found)} checkpoints are damaged",
            fix="a resumed training sets them aside and uses the one before",
        )
    if others := [one for one, state in found.items() if state != INTACT]:
        raise RefusedError(
            f"{len(others)} of {len(found)} checkpoints are of another version's format, and cannot be verified",
            fix="use them with the version that wrote them",
        )


def resume(name: Name) -> None:
    """Go on with the run that a checkpoint belongs to, at its newest one; `millrace train --from` goes on from any."""
    from flows.cli.run import retry
    from pipeline_lib.trainings import find, resumable

    workspace = home()
    entry = find(workspace, name)
    newest = {one.run.run_id: one for one in resumable(workspace) if one.run}
    if entry.run is None or entry.published or entry.run.run_id not in newest:
        raise RefusedError(
            f"the training of {entry.name} is not one that stopped on its way",
            fix=f"millrace train --from {entry.name} goes on from it in a run of its own",
        )
    if newest[entry.run.run_id].step != entry.step:
        raise ConfigError(
            f"a run is resumed at its newest checkpoint, {newest[entry.run.run_id].name}: nothing that is done is done twice",
            fix=f"millrace checkpoints resume {entry.run.run_id}, or millrace train --from {entry.name}",
        )
    retry(entry.run.run_id)


def export(
    name: Name,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    to: Annotated[str, typer.Option("--to", help="hf or gguf.")] = "hf",
) -> None:
    """Write a checkpoint's model as `millrace export` does: read back in a fresh process and compared with the live one."""
    from flows.cli.export import write
    from pipeline_lib.trainings import find

    workspace = home()
    write(workspace, find(workspace, name), to=to, folder=folder)


def delete(name: Name, yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False) -> None:
    """Remove a checkpoint of an unfinished training. Asks first."""
    from pipeline_lib.trainings import delete as remove
    from pipeline_lib.trainings import find

    workspace = home()
    entry = find(workspace, name)
    out.table(["checkpoint", "name", "of", "dev loss", "saved (UTC)", "size", "kept as"], [_row(entry)])
    if not (yes or (out.in_terminal() and typer.confirm("Delete it? There is no way back"))):
        out.say("nothing was done; `--yes` does it")
        return
    remove(workspace, entry)
    out.say(f"{entry.name} is deleted")


def _row(entry: Entry) -> list[out.Cell]:
    facts = entry.to_json()
    steps = f"{facts['steps']:,}" if facts["steps"] else "?"
    return [
        entry.name, facts["pipeline"] or "(no run)", steps, entry.dev_loss, f"{entry.date:%Y-%m-%d %H:%M}",
        out.size(facts["bytes"]), entry.why,
    ]  # fmt: skip
