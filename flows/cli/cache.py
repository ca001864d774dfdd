"""`millrace cache status | verify | fill | show | rebuild | compact`: the packed sequences of this workspace."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import show as out
from flows.cli.command import CARE, Json, command, group, home
from pipeline_lib.errors import BusyError, DamagedError, NotFoundError
from pipeline_lib.terminal import clean

if TYPE_CHECKING:
    from pipeline_lib.packing.look import Sight, Token
    from pipeline_lib.workspace.artifact import Artifact
    from pipeline_lib.workspace.workspace import Workspace

Name = Annotated[str, typer.Option("--cache", help="Name of the cache, or the beginning of it; default: the newest.")]
FIRST = "run a pipeline to `fill_gaps` at least"
COLOURS = ("cyan", "green", "yellow", "magenta", "blue")  # of documents, in turn


def register(app: typer.Typer) -> None:
    """Add the commands."""
    cache = group(app, "cache", "Look after the packed sequences.", example="millrace cache status", panel=CARE)
    command(cache, "status", example="millrace cache status")(status)
    command(cache, "verify", example="millrace cache verify")(verify)
    command(cache, "fill", example="millrace cache fill")(fill)
    command(cache, "show", example="millrace cache show 0 --tokens")(show)
    command(cache, "rebuild", example="millrace cache rebuild")(rebuild)
    command(cache, "compact", example="millrace cache compact")(compact)


def status(as_json: Json = False) -> None:
    """List the caches: sequences, tokens, size, and what a quick look finds missing or changed."""
    _report(full=False, as_json=as_json)


def verify(as_json: Json = False) -> None:
    """Digest every chunk of every cache; ends with code 4 when one is damaged."""
    damaged = _report(full=True, as_json=as_json)
    if damaged:
        raise DamagedError(f"{damaged} chunks or lists of chunks are missing or damaged", fix="millrace cache fill")


def fill(as_json: Json = False) -> None:
    """Make missing and damaged chunks again from their documents, bit for bit."""
    from pipeline_lib.packing.fill import caches, fill_cache

    workspace = home()
    filled = {name: fill_cache(workspace, artifact) for name, artifact in caches(workspace, out.warn).items()}
    if as_json:
        out.json_out(filled)
        return
    for name, damages in filled.items():
        for chunk, reason in damages.items():
            out.say(f"{name}/{chunk}: {reason}; made again")
    out.say(f"{sum(map(len, filled.values()))} chunks made again in {len(filled)} caches")


def show(
    sequence: Annotated[int, typer.Argument(metavar="N", help="Number of the sequence, from 0.")],
    side: Annotated[str, typer.Option(help="train, dev or test.")] = "train",
    tokens: Annotated[bool, typer.Option("--tokens", help="Every token, as training sees it.")] = False,
    cache: Name = "",
    as_json: Json = False,
) -> None:
    """Show a packed sequence: its documents, and with --tokens its text, special tokens, and what is not learned.

    In a terminal each document has a colour, what is read but not learned is dim, and special tokens are reversed. Elsewhere a
    document begins with │, what is not learned stands in ‹ ›, and special tokens in ⟦ ⟧.
    """
    from pipeline_lib.packing.look import look_at

    workspace = home()
    sight = look_at(workspace, _chosen(workspace, cache), side, sequence)
    if as_json:
        out.json_out(asdict(sight))
        return
    learned = sum(token.learned for token in sight.tokens)
    out.say(f"{side} sequence {sequence}: {len(sight.tokens):,} of {sight.length:,} tokens, {learned:,} of them learned")
    rows: list[list[out.Cell]] = [
        [number, piece.document, piece.domain, piece.first_token, piece.tokens] for number, piece in enumerate(sight.pieces)
    ]
    out.table(["piece", "document", "domain", "from token", "tokens"], rows)
    if tokens:
        _draw(sight)


def rebuild(as_json: Json = False) -> None:
    """Make the manifest of every cache folder again from the chunk files in it; ends with code 4 when one is damaged."""
    from pipeline_lib.packing.manifest import rebuild as scan

    workspace = home()
    found = {folder.name: scan(folder) for folder in sorted(workspace.cache_folder.glob("*")) if folder.is_dir()}
    damaged = {name: broken for name, (_, broken) in found.items() if broken}
    if as_json:
        out.json_out({name: {"chunks": len(listing.chunks), "damaged": broken} for name, (listing, broken) in found.items()})
    else:
        rows: list[list[out.Cell]] = [[name, len(listing.chunks), len(broken)] for name, (listing, broken) in found.items()]
        out.table(["cache", "chunks listed", "damaged"], rows)
    if damaged:
        name, broken = next(iter(damaged.items()))
        chunk, reason = next(iter(broken.items()))
        raise DamagedError(f"{sum(map(len, damaged.values()))} damaged: {name}/{chunk}: {reason}", fix="millrace cache fill")


def compact(as_json: Json = False) -> None:
    """Remove what nothing refers to: unfinished files, unlisted chunks, outdated lines of manifests.

    Bytes of documents that are no longer selected go when a pack with pack.parent=none starts afresh, or with `millrace forget`;
    this says how many there are.
    """
    from pipeline_lib.packing.tidy import tidy

    workspace = home()
    found = {}
    for folder in sorted(workspace.cache_folder.glob("*")):
        try:
            if folder.is_dir():
                found[folder.name] = tidy(workspace, folder)
        except BusyError:
            out.warn(f"{folder.name}: a run packs it; left alone")
    if as_json:
        out.json_out({name: asdict(done) for name, done in found.items()})
        return
    rows: list[list[out.Cell]] = [
        [name, done.files, out.size(done.freed_bytes), done.lines, done.dead_rows] for name, done in found.items()
    ]
    out.table(["cache", "files removed", "freed", "lines removed", "documents no longer selected"], rows)


def _chosen(workspace: Workspace, name: str) -> Artifact:
    from pipeline_lib.packing.fill import caches

    found = {cache: artifact for cache, artifact in caches(workspace, out.warn).items() if cache.startswith(name)}
    if not found:
        raise NotFoundError(f"no cache {name!r}" if name else "no cache yet", fix="millrace cache status" if name else FIRST)
    return max(found.values(), key=lambda artifact: artifact.manifest.started)


def _draw(sight: Sight) -> None:
    if not out.in_terminal():
        out.say("".join(_plain(before, token) for before, token in zip([None, *sight.tokens], sight.tokens, strict=False)))
        return
    from rich.console import Console
    from rich.text import Text

    drawn = Text()
    for token in sight.tokens:
        style = COLOURS[token.piece % len(COLOURS)] + ("" if token.learned else " dim") + (" reverse" if token.special else "")
        drawn.append(clean(token.text), style=style)
    Console(highlight=False).print(drawn)


def _plain(before: Token | None, token: Token) -> str:
    text = f"⟦{token.text}⟧" if token.special else token.text
    edge = "│" if before is not None and before.piece != token.piece else ""
    return edge + (text if token.learned else f"‹{text}›")


def _report(*, full: bool, as_json: bool) -> int:
    """Show every cache; returns how many chunks, or artifacts that list chunks, are damaged."""
    from pipeline_lib.packing.cache import read_chunks
    from pipeline_lib.packing.fill import caches, check_cache
    from pipeline_lib.packing.make import totals

    workspace = home()
    left_out: list[str] = []
    found = caches(workspace, left_out.append)
    for line in left_out:
        out.warn(line)
    damages = {name: check_cache(workspace, artifact, full=full) for name, artifact in found.items()}
    sums = {
        name: totals(read_chunks(artifact.files("chunks")), artifact.details["sequence_length"])
        for name, artifact in found.items()
    }
    if as_json:
        out.json_out({name: {**sums[name], **one.details, "damaged": damages[name]} for name, one in found.items()})
    else:
        rows: list[list[out.Cell]] = [
            [
                name,
                artifact.details["era"],
                artifact.metrics["chunks"],
                sum(artifact.details["sequences"].values()),
                sum(artifact.details["tokens"].values()),
                artifact.details["sequence_length"],
                out.size(sums[name]["size"]),
                sums[name]["bits_per_token"],
                sums[name]["smaller_than_uint16_percent"],
                len(damages[name]),
            ]
            for name, artifact in found.items()
        ]
        columns = ["cache", "era", "chunks", "sequences", "tokens", "length", "size", "bits/token", "% below uint16", "damaged"]
        out.table(columns, rows)
        if not found:
            out.say(f"no cache yet: {FIRST}")
        for name, reasons in damages.items():
            for chunk, reason in reasons.items():
                out.say(f"{name}/{chunk}: {reason}")
    return sum(map(len, damages.values())) + len(left_out)
