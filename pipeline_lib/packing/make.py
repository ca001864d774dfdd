"""Make the chunks of a cache that are not there yet, say how far it is, and count what came out."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline_lib.packing.cache import Recipe
from pipeline_lib.packing.chunk import ChunkFacts
from pipeline_lib.packing.manifest import Listing, append_chunk, read_manifest, rewrite
from pipeline_lib.packing.ranges import Range
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.stage import StageRun

BATCH_RANGES = 8  # ranges whose texts are read together: memory, against reading a row group again
UINT16, UINT32, INT64 = 16, 32, 64  # bits of a token as others store it


def make_chunks(run: StageRun, recipe: Recipe, ranges: Sequence[Range], documents: int) -> list[ChunkFacts]:
    """Make what is missing; the facts of all chunks, in the ranges' order."""
    recipe.folder.mkdir(parents=True, exist_ok=True)
    for scrap in recipe.folder.glob(".writing-*"):  # of a killed attempt; this one holds the stage's lease
        scrap.unlink(missing_ok=True)
    begun = run.keep("begun") / "chunks"
    if run.fresh and not begun.exists():  # an earlier generation's chunks do not count
        rewrite(recipe.folder, Listing(grown=read_manifest(recipe.folder).grown))
    begun.touch()
    listed = read_manifest(recipe.folder).chunks
    known = {wanted.name: facts for wanted in ranges if (facts := _committed(recipe, listed, wanted)) is not None}
    missing = [wanted for wanted in ranges if wanted.name not in known]
    if known:
        run.event("chunks_kept", chunks=len(known), of=len(ranges))
    size = max(1, min(BATCH_RANGES, len(missing) // (4 * run.services.workers)))
    batches = [missing[start : start + size] for start in range(0, len(missing), size)]
    made = run.services.mapper(_MakeBatch(recipe, _Counter(run, documents, list(known.values()))), batches)
    known.update((facts.name, facts) for batch in made for facts in batch)
    return [known[wanted.name] for wanted in ranges]


def _committed(recipe: Recipe, listed: Mapping[str, ChunkFacts], wanted: Range) -> ChunkFacts | None:
    """What a killed attempt noted of a chunk, if its file is still that."""
    facts = listed.get(wanted.name)
    path = recipe.folder / f"{wanted.name}.arrow"
    return facts if facts and path.exists() and facts.is_whole(path.read_bytes()) else None


class _Counter:
    """Says how far the packing is, across threads; in another process it is a copy that nobody reads."""

    def __init__(self, run: StageRun | None, total: int, known: Sequence[ChunkFacts]) -> None:
        self.run, self.total, self.lock, self.begin = run, total, threading.Lock(), time.monotonic()
        self.known = sum(facts.documents for facts in known)
        self.chunks, self.documents = len(known), self.known
        self.size, self.tokens = sum(facts.size for facts in known), sum(facts.tokens for facts in known)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Counter, (None, self.total, ()))

    def __call__(self, facts: ChunkFacts) -> None:
        with self.lock:
            self.chunks += 1
            self.documents += facts.documents
            self.size += facts.size
            self.tokens += facts.tokens
            if self.run is not None:
                rate = (self.documents - self.known) / max(time.monotonic() - self.begin, 1e-9)
                note = f"{self.chunks:,} chunks · {rate:,.0f} docs/s · {smaller_than(self.size, self.tokens, UINT16)} than uint16"
                self.run.progress(self.documents, self.total, "documents", note)


def smaller_than(size: int, tokens: int, bits: int) -> str:
    """How much smaller `size` bytes are than `tokens` tokens of `bits` bits each: `28 % smaller`."""
    share = percent_smaller(size, tokens, bits)
    return f"{abs(share):.0f} % {'smaller' if share >= 0 else 'larger'}"


def percent_smaller(size: int, tokens: int, bits: int) -> float:
    """The same as a number; negative where it is larger."""
    return 100 * (1 - 8 * size / max(bits * tokens, 1))


@dataclass(frozen=True)
class _MakeBatch:
    """Makes the chunks of a batch of ranges and notes each: file in place, then its line in the manifest."""

    recipe: Recipe
    tell: _Counter

    def __call__(self, ranges: Sequence[Range]) -> list[ChunkFacts]:
        made = []
        for facts in self.recipe.make(ranges):
            append_chunk(self.recipe.folder, facts)
            fault_point("cache.after_commit")
            self.tell(facts)
            made.append(facts)
        return made


def totals(chunks: Sequence[ChunkFacts], sequence_length: int) -> dict[str, float]:
    """Sums over chunks, and ratios with their baselines.

    utilisation: share of sequence slots that hold a token. bits_per_token and bits_per_text_byte: of whole files, provenance and
    headers included, for a token and for a byte of UTF-8 text. smaller_than_…: percent against the bare tokens as integers of
    that type.
    """
    names = ("sequences", "tokens", "documents", "cut_documents", "size", "text_bytes")
    sums = {name: int(np.sum([getattr(c, name) for c in chunks], dtype=np.int64)) for name in names}
    slots, tokens, size = sums["sequences"] * sequence_length, sums["tokens"], sums["size"]
    return {
        **sums,
        "utilisation": round(tokens / slots, 6) if slots else 0.0,
        "bits_per_token": round(8 * size / tokens, 3) if tokens else 0.0,
        "bits_per_text_byte": round(8 * size / sums["text_bytes"], 3) if sums["text_bytes"] else 0.0,
        "smaller_than_uint16_percent": round(percent_smaller(size, tokens, UINT16), 1),
        "smaller_than_uint32_percent": round(percent_smaller(size, tokens, UINT32), 1),
        "smaller_than_int64_percent": round(percent_smaller(size, tokens, INT64), 1),
    }
