"""The stage `fill_gaps`: every chunk of the cache is what `pack` committed; what is missing or damaged is made again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline_lib.config.model import FillGapsConfig
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
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.workspace.artifact import Artifact, SummaryTable
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.stage import Outcome, StageRun

if TYPE_CHECKING:
    from pipeline_lib.workspace.workspace import Workspace

BATCH_CHUNKS = 4
SHARED = ("cache", "sequence_length", "vocabulary_size", "eos_id", "pad_id", "sequences", "tokens", "documents", "chat")


def fill_gaps(run: StageRun, *, fill_gaps: FillGapsConfig) -> Outcome:
    """Check every chunk, make again exactly those that need it, publish the list that training trusts.

    Raises:
        StageFailedError: a chunk made again has another content; says what drifted.
    """
    pack = run.input("pack")
    cache = Cache.of(run.workspace, pack, run.input("ingest"))
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
        remember(cache.recipe.folder, list(healed.values()))
    write_table(chunks_table(chunks), run.path("chunks", "chunks.parquet"))
    return Outcome(
        metrics={"chunks": len(chunks), "filled": len(healed), "check_seconds": round(checked, 3)},
        counts={"in": len(cache.ranges), "out": len(chunks)},
        summary=SummaryTable(
            ("chunk", "what was wrong", "sequences made again"),
            [(name, damages[name], healed[name].sequences) for name in names],
            "Filled gaps" if names else "Filled gaps: none",
        ),
        details={name: pack.details[name] for name in SHARED},
    )


@dataclass(frozen=True)
class _Heal:
    cache: Cache

    def __call__(self, names: Sequence[str]) -> list[ChunkFacts]:
        healed = []
        for facts in self.cache.heal(names):
            fault_point("cache.after_commit")
            healed.append(facts)
        return healed


def intact(artifact: Artifact, workspace: Workspace) -> str:
    """Why the cache behind a `fill_gaps` artifact cannot be used as it is, or "": missing or damaged chunks, cheaply checked."""
    damages = check_cache(workspace, artifact, full=False)
    if not damages:
        return ""
    name, reason = next(iter(damages.items()))
    more = f" and {len(damages) - 1} more" if len(damages) > 1 else ""
    return f"{len(damages)} of {artifact.metrics['chunks']} chunks of the cache need filling: {name}: {reason}{more}"


def caches(workspace: Workspace) -> dict[str, Artifact]:
    """Every cache that a `fill_gaps` artifact vouches for: folder name → the newest such artifact."""
    found: dict[str, Artifact] = {}
    for key in workspace.store.keys("fill_gaps"):
        artifact = workspace.artifact(key)
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
                remember(cache.recipe.folder, list(cache.heal(sorted(damages)[start : start + BATCH_CHUNKS])))
    return damages
