"""The stage `pack`: a tokenizer, and every selected document as tokens in packed sequences of one length."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.config.model import PackConfig, TokenizerConfig
from pipeline_lib.errors import StageFailedError
from pipeline_lib.packing.cache import Recipe, cache_folder, chunks_table, remember
from pipeline_lib.packing.chunk import ChunkFacts, ChunkSettings
from pipeline_lib.packing.ranges import SIDES, Range, plan_ranges, plan_rows, ranges_of
from pipeline_lib.packing.texts import read_texts
from pipeline_lib.tables.parquet import read_tables, write_table
from pipeline_lib.tokens.encode import encoder_for
from pipeline_lib.tokens.load import TokenizerFacts, copy_tokenizer, read_facts, source_folder
from pipeline_lib.tokens.train import SAMPLE_BYTES, spread, train_tokenizer
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.identity import file_digest
from pipeline_lib.workspace.stage import Outcome, StageRun

BYTES_PER_TOKEN = 4  # of an estimate only: how many documents the tokenizer's sample takes
SAMPLE_BATCH = 2000  # documents
GOOD_RANGE = 256  # sequences from which best-fit fills ≥ 99.4 %; shorter ranges work and waste more
BATCH_RANGES = 8  # ranges whose texts are read together: memory, against reading a row group again


def pack(run: StageRun, *, pack: PackConfig, tokenizer: TokenizerConfig) -> Outcome:
    """Fix rows and ranges, train or copy the tokenizer, make the chunks that are not there yet.

    Raises:
        StageFailedError: a side without documents, or documents that do not belong to the selection.
        ConfigError: `tokenizer.source` names no tokenizer.
    """
    documents = tuple(run.input("ingest").files("documents"))
    selection = read_tables(run.input("select").files("selection"))
    rows = plan_rows(selection, documents)
    _refuse_empty_sides(rows)
    ranges_table = plan_ranges(rows, pack.range_tokens)
    rows_file = run.path("rows", "rows.parquet")
    write_table(rows, rows_file)
    write_table(ranges_table, run.path("ranges", "ranges.parquet"))

    tokenizer_json, facts = _tokenizer(run, tokenizer, rows, documents)
    settings = ChunkSettings(pack.sequence_length, facts.vocabulary_size, facts.eos_id, facts.pad_id, pack.codec)
    recipe = Recipe(cache_folder(run.workspace, run.fingerprint), tokenizer_json, documents, rows_file, settings)
    if pack.range_tokens < GOOD_RANGE * pack.sequence_length:
        run.event("short_ranges", range_tokens=pack.range_tokens, better=GOOD_RANGE * pack.sequence_length)
    begin = time.monotonic()
    chunks = _make_chunks(run, recipe, ranges_of(ranges_table), rows.num_rows)
    seconds = time.monotonic() - begin
    write_table(chunks_table(chunks), run.path("chunks", "chunks.parquet"))
    remember(recipe.folder, chunks)

    sides = {side: _totals([c for c in chunks if c.side == side], settings) for side in SIDES}
    total = _totals(chunks, settings)
    columns = ("sequences", "tokens", "documents", "utilisation", "bits_per_token", "cut_documents")
    return Outcome(
        metrics={**total, "chunks": len(chunks), "tokens_per_second": round(total["tokens"] / max(seconds, 1e-9))},
        counts={"in": rows.num_rows, "out": int(total["documents"])},
        summary=SummaryTable(
            ("side", *columns), [(side, *(values[c] for c in columns)) for side, values in sides.items()], "Packed sequences"
        ),
        details={
            **asdict(settings),
            "tokenizer_digest": facts.digest,
            "cache": run.fingerprint,
            "bits_per_token": total["bits_per_token"],
            **{name: {side: values[name] for side, values in sides.items()} for name in columns[:4]},
        },
    )


def _refuse_empty_sides(rows: pa.Table) -> None:
    """Without dev training cannot tell when it is done, without test nothing is ever promoted: better told before the work."""
    found = set(pc.unique(rows["side"]).to_pylist())
    if empty := [side for side in SIDES if side not in found]:
        raise StageFailedError(
            f"no document to pack on the side {' and '.join(empty)} ({rows.num_rows} in all)",
            where="select",
            fix="more documents (more sources, a larger `max_mb`, `ingest.sample` or `select.target_tokens`, looser "
            "`score.rules`) or a larger `split.dev_share`, `split.test_share` or `split.floor_per_domain`",
        )


def _tokenizer(run: StageRun, config: TokenizerConfig, rows: pa.Table, documents: Sequence[Path]) -> tuple[Path, TokenizerFacts]:
    """Put the tokenizer's files into the artifact."""
    path = run.path("tokenizer", "tokenizer.json")
    if config.source == "train":
        train_tokenizer(_sample(rows, documents), config.vocabulary_size, path.parent)
    else:
        copy_tokenizer(source_folder(config.source, run.workspace), path.parent)
    facts = read_facts(path.parent)
    if config.source == "train" and facts.vocabulary_size != config.vocabulary_size:
        run.event("vocabulary_smaller", wanted=config.vocabulary_size, got=facts.vocabulary_size)
    if reason := encoder_for(path).reason:
        run.event("slow_encoder", reason=reason)
    return path, facts


def _sample(rows: pa.Table, documents: Sequence[Path]) -> Iterator[pa.LargeStringArray]:
    """Training documents spread evenly over the selection, about `SAMPLE_BYTES` of text, in batches."""
    once = rows.filter(pc.and_(pc.equal(rows["side"], "train"), pc.equal(rows["pass"], 0)))
    chosen = spread(once["est_tokens"].to_numpy(), SAMPLE_BYTES / BYTES_PER_TOKEN)
    positions = once["document"].to_numpy()[chosen]
    for start in range(0, len(positions), SAMPLE_BATCH):
        yield read_texts(documents, positions[start : start + SAMPLE_BATCH])


def _make_chunks(run: StageRun, recipe: Recipe, ranges: Sequence[Range], documents: int) -> list[ChunkFacts]:
    """Make what is missing; the facts of all chunks, in the ranges' order."""
    recipe.folder.mkdir(parents=True, exist_ok=True)
    for scrap in recipe.folder.glob(".writing-*"):  # of a killed attempt; this one holds the stage's lease
        scrap.unlink(missing_ok=True)
    records = run.keep("chunks")
    known = {wanted.name: facts for wanted in ranges if (facts := _committed(recipe.folder, records, wanted)) is not None}
    missing = [wanted for wanted in ranges if wanted.name not in known]
    if known:
        run.event("chunks_kept", chunks=len(known), of=len(ranges))
    size = max(1, min(BATCH_RANGES, len(missing) // (4 * run.services.workers)))
    batches = [missing[start : start + size] for start in range(0, len(missing), size)]
    counter = _Counter(run, documents, list(known.values()))
    made = run.services.mapper(_MakeBatch(recipe, records, counter), batches)
    known.update((facts.name, facts) for batch in made for facts in batch)
    return [known[wanted.name] for wanted in ranges]


def _committed(folder: Path, records: Path, wanted: Range) -> ChunkFacts | None:
    """What a killed attempt recorded of a chunk, if its file is still that."""
    record = records / f"{wanted.name}.json"
    if not record.exists():
        return None
    facts = ChunkFacts(**read_json(record))
    path = facts.file(folder)
    return facts if path.exists() and file_digest(path) == facts.file_digest else None


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
                smaller = 100 * (1 - self.size / max(2 * self.tokens, 1))
                against = f"{abs(smaller):.0f} % {'smaller' if smaller >= 0 else 'larger'} than uint16"
                note = f"{self.chunks:,} chunks · {rate:,.0f} docs/s · {against}"
                self.run.progress(self.documents, self.total, "documents", note)


@dataclass(frozen=True)
class _MakeBatch:
    """Makes the chunks of a batch of ranges and records each: file in place, then record."""

    recipe: Recipe
    records: Path
    tell: _Counter

    def __call__(self, ranges: Sequence[Range]) -> list[ChunkFacts]:
        made = []
        for facts in self.recipe.make(ranges):
            write_json(self.records / f"{facts.name}.json", asdict(facts))
            fault_point("cache.after_commit")
            self.tell(facts)
            made.append(facts)
        return made


def _totals(chunks: Sequence[ChunkFacts], settings: ChunkSettings) -> dict[str, float]:
    """Sums over chunks. utilisation: share of sequence slots that hold a token; bits_per_token: of whole files."""
    names = ("sequences", "tokens", "documents", "cut_documents", "size")
    sums = {name: int(np.sum([getattr(c, name) for c in chunks], dtype=np.int64)) for name in names}
    slots = sums["sequences"] * settings.sequence_length
    return {
        **sums,
        "utilisation": round(sums["tokens"] / slots, 6) if slots else 0.0,
        "bits_per_token": round(8 * sums["size"] / sums["tokens"], 3) if sums["tokens"] else 0.0,
    }
