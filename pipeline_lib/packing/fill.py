"""The stage `fill_gaps`: every chunk of the cache is what `pack` committed; what is missing or damaged is made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_lib.config.model import FillGapsConfig
from pipeline_lib.errors import DamagedError
from pipeline_lib.packing.cache import (
    Cache,
    cache_behind,
    cache_folder,
    chunks_table,
    damages_of,
    read_chunks,
    remember,
)
from pipeline_lib.packing.chunk import ChunkFacts
from pipeline_lib.packing.growth import bury, tombstones_of, tombstones_table
from pipeline_lib.packing.manifest import append_growth, read_manifest
from pipeline_lib.packing.ranges import SIDES
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.workspace.artifact import Artifact, SummaryTable
from pipeline_lib.workspace.identity import fingerprint_of
from pipeline_lib.workspace.resolve import key_of
from pipeline_lib.workspace.stage import Outcome, StageRun

if TYPE_CHECKING:
    from pipeline_lib.workspace.workspace import Workspace

BATCH_CHUNKS = 4
SHARED = ("cache", "era", "sequence_length", "vocabulary_size", "eos_id", "pad_id", "chat")
SUMS = ("sequences", "tokens", "documents")


def fill_gaps(run: StageRun, *, fill_gaps: FillGapsConfig) -> Outcome:
    """Check every chunk, make again exactly those that need it, publish the list that training trusts.

    Raises:
        StageFailedError: a chunk made again has another content; says what drifted.
    """
    pack = run.input("pack")
    cache = Cache.of(run.workspace, pack, run.input("ingest"))
    dead = tombstones_of(pack)
    begin = time.monotonic()
    damages = cache.damages(full=fill_gaps.full)
    checked = time.monotonic() - begin
    names = sorted(damages)
    batches = [names[start : start + BATCH_CHUNKS] for start in range(0, len(names), BATCH_CHUNKS)]
    run.progress(0, len(names), "chunks", f"{len(cache.chunks):,} checked in {checked:.1f} s")
    healed = {facts.name: facts for batch in run.services.mapper(_Heal(cache), batches) for facts in batch}
    for name in names:
        run.event("chunk_filled", chunk=name, reason=damages[name])
        if healed[name].file_digest != cache.chunks[name].file_digest:  # another library version compresses otherwise
            run.event("chunk_bytes_changed", chunk=name, was=cache.chunks[name].file_digest, now=healed[name].file_digest)
    chunks = [healed.get(name, facts) for name, facts in cache.chunks.items()]
    if healed:
        remember(cache.folder, list(healed.values()))
    write_table(chunks_table(chunks), run.path("chunks", "chunks.parquet"))
    details = {**{name: pack.details[name] for name in SHARED}, **_totals(run, cache, chunks, dead)}
    if named := pack.details["parent"]:
        _tell_readers(run.workspace.artifact(key_of(named)), cache.folder, details)
    return Outcome(
        metrics={"chunks": len(chunks), "filled": len(healed), "check_seconds": round(checked, 3)},
        counts={"in": sum(len(link.ranges) for link in cache.links), "out": len(chunks)},
        summary=SummaryTable(
            ("chunk", "what was wrong", "sequences made again"),
            [(name, damages[name], healed[name].sequences) for name in names],
            "Filled gaps" if names else "Filled gaps: none",
        ),
        details=details,
    )


def _totals(run: StageRun, cache: Cache, chunks: Sequence[ChunkFacts], dead: np.ndarray) -> dict[str, Any]:
    """Sequences, tokens and documents a side, without tombstones; what these take out becomes tables of its own."""
    sums = {name: {side: sum(getattr(facts, name) for facts in chunks if facts.side == side) for side in SIDES} for name in SUMS}
    if not len(dead):
        return {**sums, "dead": ""}
    buried = bury(replace(cache, chunks={facts.name: facts for facts in chunks}), dead)
    write_table(tombstones_table(dead), run.path("tombstones", "tombstones.parquet"))
    write_table(buried.gone, run.path("gone", "gone.parquet"))
    for side, (first, last) in _rows_of_sides(cache).items():
        sums["sequences"][side] -= buried.sequences[side]
        sums["tokens"][side] -= buried.tokens[side]
        sums["documents"][side] -= int(sum(((dead >= a) & (dead <= z)).sum() for a, z in zip(first, last, strict=True)))
    run.event("tombstones", rows=len(dead), sequences=dict(buried.sequences), tokens=dict(buried.tokens))
    return {**sums, "dead": fingerprint_of(dead.tolist())}


def _rows_of_sides(cache: Cache) -> dict[str, tuple[list[int], list[int]]]:
    """First and last rows of all ranges, by side."""
    ranges = [wanted for link in cache.links for wanted in link.ranges.values()]
    return {
        side: ([r.first_row for r in ranges if r.side == side], [r.last_row for r in ranges if r.side == side]) for side in SIDES
    }


def _tell_readers(parent: Artifact, folder: Path, details: Mapping[str, Any]) -> None:
    """Note in the cache that is continued that there is a later era, so that whoever reads it can tell."""
    entry = {name: details[name] for name in ("era", "cache", "sequences", "tokens")}
    earlier = folder.with_name(parent.details["cache"])
    if earlier.is_dir() and entry not in read_manifest(earlier).grown:
        append_growth(earlier, entry)


@dataclass(frozen=True)
class _Heal:
    cache: Cache

    def __call__(self, names: Sequence[str]) -> list[ChunkFacts]:
        return list(self.cache.heal(names))


def intact(artifact: Artifact, workspace: Workspace) -> str:
    """Why the cache behind a `fill_gaps` artifact cannot be used as it is, or "": missing or damaged chunks, cheaply checked."""
    damages = check_cache(workspace, artifact, full=False)
    if not damages:
        return ""
    name, reason = next(iter(damages.items()))
    more = f" and {len(damages) - 1} more" if len(damages) > 1 else ""
    return f"{len(damages)} of {artifact.metrics['chunks']} chunks of the cache need filling: {name}: {reason}{more}"


def caches(workspace: Workspace, tell: Callable[[str], None] = lambda line: None) -> dict[str, Artifact]:
    """Every cache that a `fill_gaps` artifact vouches for: folder name → the newest such artifact. A damaged artifact vouches for
    none; `tell` is told."""
    found: dict[str, Artifact] = {}
    for key in workspace.store.keys("fill_gaps"):
        try:
            artifact = workspace.artifact(key)
        except DamagedError as error:
            tell(f"left out, the next run of its pipeline makes it again: {error.where}: {error.what}")
            continue
        known = found.get(artifact.details["cache"])
        if known is None or known.manifest.started < artifact.manifest.started:
            found[artifact.details["cache"]] = artifact
    return found


def check_cache(workspace: Workspace, filled: Artifact, *, full: bool) -> dict[str, str]:
    """Damaged chunks of a cache with the reason; `full` digests every chunk."""
    folder = cache_folder(workspace, filled.details["cache"])
    return damages_of(folder, read_chunks(filled.files("chunks")), full=full)


def fill_cache(workspace: Workspace, filled: Artifact) -> dict[str, str]:
    """Digest every chunk of a cache and make the damaged ones again; returns what was wrong.

    Raises:
        StageFailedError: a chunk came out with another content.
    """
    with workspace.lease(f"fill-{filled.details['cache']}", wait=True):
        damages = check_cache(workspace, filled, full=True)
        if damages:
            cache = cache_behind(workspace, filled)
            for start in range(0, len(damages), BATCH_CHUNKS):
                remember(cache.folder, list(cache.heal(sorted(damages)[start : start + BATCH_CHUNKS])))
    return damages
