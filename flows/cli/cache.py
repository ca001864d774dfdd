"""`millrace cache status | verify | fill`: the packed sequences of this workspace."""

from __future__ import annotations

import typer

from flows.cli import show
from flows.cli.command import CARE, Json, command, home
from pipeline_lib.errors import DamagedError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    cache = typer.Typer(no_args_is_help=True)
    command(cache, "status", example="millrace cache status", panel=CARE)(status)
    command(cache, "verify", example="millrace cache verify", panel=CARE)(verify)
    command(cache, "fill", example="millrace cache fill", panel=CARE)(fill)
    app.add_typer(cache, name="cache", help="Look after the packed sequences.", rich_help_panel=CARE)


def status(as_json: Json = False) -> None:
    """List the caches: sequences, tokens, and what a quick look finds missing or changed."""
    _report(full=False, as_json=as_json)


def verify(as_json: Json = False) -> None:
    """Digest every chunk of every cache; ends with code 4 when one is damaged."""
    damaged = _report(full=True, as_json=as_json)
    if damaged:
        raise DamagedError(f"{damaged} chunks are missing or damaged", fix="millrace cache fill")


def fill(as_json: Json = False) -> None:
    """Make missing and damaged chunks again from their documents, bit for bit."""
    from pipeline_lib.packing.fill import caches, fill_cache

    workspace = home()
    filled = {name: fill_cache(workspace, artifact) for name, artifact in caches(workspace).items()}
    if as_json:
        show.json_out(filled)
        return
    for name, damages in filled.items():
        for chunk, reason in damages.items():
            show.say(f"{name}/{chunk}: {reason}; made again")
    show.say(f"{sum(map(len, filled.values()))} chunks made again in {len(filled)} caches")


def _report(*, full: bool, as_json: bool) -> int:
    """Show every cache; returns how many chunks are damaged."""
    from pipeline_lib.packing.fill import caches, check_cache

    workspace = home()
    found = caches(workspace)
    damages = {name: check_cache(workspace, artifact, full=full) for name, artifact in found.items()}
    if as_json:
        show.json_out({name: {**artifact.details, "damaged": damages[name]} for name, artifact in found.items()})
    else:
        rows: list[list[show.Cell]] = [
            [
                name,
                artifact.metrics["chunks"],
                sum(artifact.details["sequences"].values()),
                sum(artifact.details["tokens"].values()),
                artifact.details["sequence_length"],
                len(damages[name]),
            ]
            for name, artifact in found.items()
        ]
        show.table(["cache", "chunks", "sequences", "tokens", "length", "damaged"], rows)
        for name, reasons in damages.items():
            for chunk, reason in reasons.items():
                show.say(f"{name}/{chunk}: {reason}")
    return sum(map(len, damages.values()))
