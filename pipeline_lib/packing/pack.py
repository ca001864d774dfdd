"""The stage `pack`: a tokenizer, and every selected document as tokens in packed sequences of one length."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.config.model import PackConfig, TokenizerConfig
from pipeline_lib.errors import StageFailedError
from pipeline_lib.packing.cache import Recipe, cache_folder, chunks_table, remember
from pipeline_lib.packing.chunk import ChunkSettings
from pipeline_lib.packing.growth import Start, parent_named, start_from, tombstones_table
from pipeline_lib.packing.make import make_chunks, totals
from pipeline_lib.packing.ranges import SIDES, plan_ranges, plan_rows, ranges_of
from pipeline_lib.packing.texts import has_conversations, read_texts
from pipeline_lib.tables.parquet import read_tables, write_table
from pipeline_lib.tokens.chat import FILE as TEMPLATE_FILE
from pipeline_lib.tokens.chat import TURN_END, TURN_START, chat_template
from pipeline_lib.tokens.encode import encoder_for
from pipeline_lib.tokens.load import TokenizerFacts, copy_tokenizer, read_facts, source_folder
from pipeline_lib.tokens.train import SAMPLE_BYTES, spread, train_tokenizer
from pipeline_lib.workspace.artifact import Artifact, SummaryTable
from pipeline_lib.workspace.identity import file_digest
from pipeline_lib.workspace.stage import Outcome, StageRun

BYTES_PER_TOKEN = 4  # of an estimate only: how many documents the tokenizer's sample takes
SAMPLE_BATCH = 2000  # documents
GOOD_RANGE = 256  # sequences from which best-fit fills ≥ 99.4 %; shorter ranges work and waste more


def pack(run: StageRun, *, pack: PackConfig, tokenizer: TokenizerConfig) -> Outcome:
    """Fix rows and ranges, train or copy the tokenizer, make the chunks that are not there yet.

    Raises:
        StageFailedError: a side without documents, or documents that do not belong to the selection.
        ConfigError: `tokenizer.source` names no tokenizer.
    """
    documents = tuple(run.input("ingest").files("documents"))
    selection = read_tables(run.input("select").files("selection"))
    planned = plan_rows(selection, documents, _cuts(run.input("select")))
    _refuse_empty_sides(planned)
    chat = has_conversations(documents, planned["document"].to_numpy())
    start = _start(run, pack, tokenizer, planned, chat=chat)
    rows = start.rows
    ranges_table = plan_ranges(rows, pack.range_tokens, first_row=start.first_row, first_chunks=start.first_chunks)
    rows_file = run.path("rows", "rows.parquet")
    write_table(rows, rows_file)
    write_table(ranges_table, run.path("ranges", "ranges.parquet"))
    if len(start.tombstones):
        write_table(tombstones_table(start.tombstones), run.path("tombstones", "tombstones.parquet"))

    source = _tokenizer_of(tokenizer, start.parent)
    tokenizer_json, facts = _tokenizer(run, source, rows, documents, chat=chat)
    settings = ChunkSettings(pack.sequence_length, facts.vocabulary_size, facts.eos_id, facts.pad_id, pack.codec)
    folder = cache_folder(run.workspace, run.fingerprint)
    recipe = Recipe(folder, tokenizer_json, documents, rows_file, settings, start.first_row)
    if pack.range_tokens < GOOD_RANGE * pack.sequence_length:
        run.event("short_ranges", range_tokens=pack.range_tokens, better=GOOD_RANGE * pack.sequence_length)
    begin = time.monotonic()
    chunks = make_chunks(run, recipe, ranges_of(ranges_table), rows.num_rows)
    seconds = time.monotonic() - begin
    write_table(chunks_table(chunks), run.path("chunks", "chunks.parquet"))
    remember(recipe.folder, chunks)

    sides = {side: totals([c for c in chunks if c.side == side], pack.sequence_length) for side in SIDES}
    total = totals(chunks, pack.sequence_length)
    columns = ("sequences", "tokens", "documents", "utilisation", "bits_per_token", "bits_per_text_byte", "cut_documents")
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
            "parent": start.parent,
            "era": start.era,
            "first_row": start.first_row,
            "chat": _chat(tokenizer_json.parent) if chat else None,
            "bits_per_token": total["bits_per_token"],
            **{name: {side: values[name] for side, values in sides.items()} for name in columns[:4]},
        },
    )


def _cuts(select: Artifact) -> pa.Table | None:
    """What is left out of the chosen texts, where the selection says so."""
    return read_tables(select.files("cuts")) if "cuts" in select.manifest.tables else None


def _start(run: StageRun, pack: PackConfig, tokenizer: TokenizerConfig, planned: pa.Table, *, chat: bool) -> Start:
    """Where to begin: afresh, or behind the cache that `pack.parent` names when that can be continued."""
    parent = parent_named(run.workspace, pack.parent)
    reason = "" if parent is None else _differs(run, parent, pack, tokenizer, chat=chat)
    start, dead = start_from(run.workspace, None if reason else parent, planned)
    if reason := reason or dead:
        run.event("packed_afresh", parent=pack.parent, reason=reason)
    return start


def _differs(run: StageRun, parent: Artifact, pack: PackConfig, tokenizer: TokenizerConfig, *, chat: bool) -> str:
    """Why chunks of today do not go with those of a parent, or ""."""
    if (length := parent.details["sequence_length"]) != pack.sequence_length:
        return f"its sequences have {length} tokens"
    if tokenizer.source != "train":
        digest = file_digest(source_folder(tokenizer.source, run.workspace) / "tokenizer.json")
        if digest != parent.details["tokenizer_digest"]:
            return "it has another tokenizer"
    return "it has no chat template" if chat and not parent.details["chat"] else ""


def _tokenizer_of(tokenizer: TokenizerConfig, parent: str) -> TokenizerConfig:
    """A cache that is continued keeps its tokenizer."""
    return tokenizer.model_copy(update={"source": parent}) if parent else tokenizer


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


def _tokenizer(
    run: StageRun, config: TokenizerConfig, rows: pa.Table, documents: Sequence[Path], *, chat: bool
) -> tuple[Path, TokenizerFacts]:
    """Put the tokenizer's files into the artifact, with a chat template where there are conversations."""
    path = run.path("tokenizer", "tokenizer.json")
    if config.source == "train":
        marks = (TURN_START, TURN_END) if chat else ()
        train_tokenizer(_sample(rows, documents), config.vocabulary_size, path.parent, special_tokens=marks)
    else:
        copy_tokenizer(source_folder(config.source, run.workspace), path.parent)
    facts = read_facts(path.parent)
    if config.source == "train" and facts.vocabulary_size != config.vocabulary_size:
        run.event("vocabulary_smaller", wanted=config.vocabulary_size, got=facts.vocabulary_size)
    if reason := encoder_for(path).reason:
        run.event("slow_encoder", reason=reason)
    if chat and (template := chat_template(path.parent)).origin != "tokenizer":
        (path.parent / TEMPLATE_FILE).write_text(template.text, "utf-8")  # so that the trained model carries it
        run.event("default_chat_template", template=template.origin)
    return path, facts


def _chat(folder: Path) -> dict[str, Any]:
    """What is known of the chat template: its digest, and the token that ends a turn where it is not the end token."""
    template = chat_template(folder)
    return {"digest": template.digest, "stop_id": template.stop_id()}


def _sample(rows: pa.Table, documents: Sequence[Path]) -> Iterator[pa.LargeStringArray]:
    """Training documents spread evenly over the selection, about `SAMPLE_BYTES` of text, in batches."""
    once = rows.filter(pc.and_(pc.equal(rows["side"], "train"), pc.equal(rows["pass"], 0)))
    chosen = spread(once["est_tokens"].to_numpy(), SAMPLE_BYTES / BYTES_PER_TOKEN)
    positions = once["document"].to_numpy()[chosen]
    for start in range(0, len(positions), SAMPLE_BATCH):
        yield read_texts(documents, positions[start : start + SAMPLE_BATCH])
