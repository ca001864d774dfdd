"""The stage `ingest`: sources become documents; what cannot be read becomes the quarantine. Nothing is lost in silence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.config.data import IngestConfig
from pipeline_lib.corpus.documents import refine
from pipeline_lib.corpus.module import module_files
from pipeline_lib.corpus.readers import read_files
from pipeline_lib.corpus.sources import Part, list_files, parts
from pipeline_lib.errors import RefusedError, StageFailedError
from pipeline_lib.tables.parquet import read_tables, write_batches, write_table
from pipeline_lib.tables.schemas import DOCUMENTS, EDITS, QUARANTINE
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.stage import Outcome, StageRun

TABLES = {"documents": DOCUMENTS, "edits": EDITS, "quarantine": QUARANTINE}


def ingest(run: StageRun, *, ingest: IngestConfig) -> Outcome:
    """Read all sources.

    Tables: documents, edits, quarantine. counts: in = records seen, out = documents + quarantined + left_out (records beyond
    `max_mb` or `sample`). details: per source and per domain the documents and bytes.

    Raises:
        NotFoundError: a source has no files.
        RefusedError: more than `quarantine_limit` of a source's records cannot be read.
        StageFailedError: two files hold records with the same id, or a file changes while it is read.
    """
    listed = {
        source.name: module_files(source, run.keep("module")) if source.kind == "module" else list_files(source)
        for source in ingest.sources
    }
    work = [part for source in ingest.sources for part in parts(source, listed[source.name], ingest.max_document_mb)]
    for part in {part.source.name: part for part in work if part.share < 1}.values():
        run.event("limited", source=part.source.name, share=round(part.share, 3), max_mb=part.source.max_mb)
    if ingest.sample:
        files, seen = _sample(run, work, ingest.sample)
    else:
        shards = run.shards(work, read_part, key=Part.key, unit="parts")
        files = {table: [shard.files[table] for shard in shards] for table in TABLES}
        seen = [(part.source.name, dict(shard.metrics)) for part, shard in zip(work, shards, strict=True)]
    for source in ingest.sources:
        _refuse_bad_source(source.name, [m for name, m in seen if name == source.name], files["quarantine"], ingest)
    _refuse_equal_ids(files["documents"])
    documents = _sums(files["documents"])
    total = {name: sum(metrics[name] for _, metrics in seen) for name in ("records", "quarantined", "left_out")}
    number = sum(row["documents"] for row in documents)
    left_out = total["left_out"] + (total["records"] - total["quarantined"] - total["left_out"] - number if ingest.sample else 0)
    return Outcome(
        metrics={
            "documents": number,
            "megabytes": round(sum(row["bytes"] for row in documents) / 1e6, 3),
            "quarantined": total["quarantined"],
            "left_out": left_out,
            "domains": len({row["domain"] for row in documents}),
        },
        counts={
            "in": total["records"],
            "out": number + total["quarantined"] + left_out,
            "documents": number,
            "quarantined": total["quarantined"],
            "left_out": left_out,
        },
        summary=_summary(documents),
        details={
            "sources": {
                source.name: {
                    **_total(documents, "source", source.name),
                    "files": len(listed[source.name]),
                    "priority": source.priority,
                }
                for source in ingest.sources
            },
            "domains": {name: _total(documents, "domain", name) for name in sorted({row["domain"] for row in documents})},
        },
    )


def read_part(part: Part, folder: Path) -> dict[str, Any]:
    """Read one part into `documents`, `edits` and `quarantine` files; return the counts."""
    edits, quarantine = [EDITS.empty_table()], [QUARANTINE.empty_table()]
    counts = {"records": 0, "left_out": 0}
    seen: set[bytes] = set()

    def refined() -> Iterator[pa.RecordBatch]:
        for batch in read_files(part.files, part.source):
            found = refine(batch, part, seen)
            counts["records"] += batch.num_rows
            counts["left_out"] += found.left_out
            edits.append(found.edits)
            quarantine.append(found.quarantine)
            yield found.documents

    documents = write_batches(refined(), DOCUMENTS, folder / "documents.parquet")
    write_table(pa.concat_tables(edits), folder / "edits.parquet")
    bad = write_table(pa.concat_tables(quarantine), folder / "quarantine.parquet")
    return {**counts, "quarantined": bad, "documents": documents}


def _sample(run: StageRun, work: Sequence[Part], size: int) -> tuple[dict[str, list[Path]], list[tuple[str, dict[str, Any]]]]:
    """The documents with the `size` smallest ids: ids are hashes, so this is spread evenly and the same on every machine."""
    folders = [run.keep(f"sample/{number}") for number in range(len(work))]
    metrics = run.services.mapper(_read_task, list(zip(work, folders, strict=True)))
    ids = read_tables([folder / "documents.parquet" for folder in folders], ["doc_id"]).column("doc_id")
    smallest = ids.take(pc.sort_indices(ids)[:size])
    files: dict[str, list[Path]] = {}
    for table in TABLES:
        rows = read_tables([folder / f"{table}.parquet" for folder in folders])
        if table != "quarantine":
            rows = rows.filter(pc.is_in(rows.column("doc_id"), value_set=smallest.combine_chunks()))
        files[table] = [run.path(table, "sample.parquet")]
        write_table(rows, files[table][0])
    return files, [(part.source.name, counts) for part, counts in zip(work, metrics, strict=True)]


def _read_task(task: tuple[Part, Path]) -> dict[str, Any]:
    return read_part(*task)


def _refuse_bad_source(source: str, parts: Sequence[dict[str, Any]], quarantine: Sequence[Path], config: IngestConfig) -> None:
    records, bad = (sum(part[name] for part in parts) for name in ("records", "quarantined"))
    if not records or bad / records <= config.quarantine_limit:
        return
    rows = read_tables(list(quarantine))
    rows = rows.filter(pc.equal(rows.column("source"), source))
    common = sorted(rows.column("reason").value_counts().to_pylist(), key=lambda entry: (-entry["counts"], entry["values"]))
    told = []
    for entry in common[:3]:
        example = rows.filter(pc.equal(rows.column("reason"), entry["values"])).slice(0, 1).to_pylist()[0]
        told.append(f"{entry['counts']} × {entry['values']}, e.g. {example['position']}: {example['head'][:80]!r}")
    raise RefusedError(
        f"{bad} of {records} records ({bad / records:.1%}) cannot be read, more than ingest.quarantine_limit = "
        f"{config.quarantine_limit:.1%}: " + "; ".join(told),
        where=f"source {source}",
        fix="look at the examples: a changed format or column? If this share is expected, raise ingest.quarantine_limit",
    )


def _refuse_equal_ids(files: Sequence[Path]) -> None:
    ids = read_tables(list(files), ["doc_id"]).column("doc_id")
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    counts = ids.value_counts()
    twice = pc.struct_field(counts, "values").filter(pc.greater(pc.struct_field(counts, "counts"), 1))
    table = read_tables(list(files), ["doc_id", "source", "record_index", "file_digest"])
    example = table.filter(pc.equal(table.column("doc_id"), twice[0])).to_pylist()
    places = ", ".join(
        f"{row['source']} record {row['record_index'] + 1} of file {row['file_digest'][:12]}…" for row in example[:3]
    )
    raise StageFailedError(
        f"{len(twice)} ids occur more than once, e.g. {places}",
        where="id_column",
        fix="name a column whose values are unique in the source, or leave id_column empty to use the position in the file",
    )


def _sums(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Documents, bytes, dated and licensed documents by source and domain."""
    tables = []
    for path in files:
        for group in pq.ParquetFile(path).iter_batches(columns=["source", "domain", "text", "created_at", "licence"]):
            tables.append(
                pa.table(
                    {
                        "source": group.column("source"),
                        "domain": group.column("domain"),
                        "bytes": pc.binary_length(group.column("text")),
                        "dated": pc.cast(group.column("created_at").is_valid(), pa.int64()),
                        "licensed": pc.cast(pc.not_equal(group.column("licence"), ""), pa.int64()),
                        "first": group.column("created_at"),
                        "last": group.column("created_at"),
                    }
                )
            )
    if not tables:
        return []
    sums = (
        pa.concat_tables(tables)
        .group_by(["source", "domain"], use_threads=False)
        .aggregate(
            [("bytes", "count"), ("bytes", "sum"), ("dated", "sum"), ("licensed", "sum"), ("first", "min"), ("last", "max")]
        )
    )
    names = {"bytes_count": "documents", "bytes_sum": "bytes", "dated_sum": "dated", "licensed_sum": "licensed",
             "first_min": "first", "last_max": "last"}  # fmt: skip
    rows = sums.rename_columns([names.get(name, name) for name in sums.column_names]).to_pylist()
    return sorted(rows, key=lambda row: (row["source"], row["domain"]))


def _total(documents: Sequence[dict[str, Any]], column: str, name: str) -> dict[str, int]:
    rows = [row for row in documents if row[column] == name]
    return {"documents": sum(row["documents"] for row in rows), "bytes": sum(row["bytes"] for row in rows)}


def _summary(documents: Sequence[dict[str, Any]]) -> SummaryTable:
    rows: list[list[str | float | int]] = []
    for name in sorted({row["domain"] for row in documents}):
        found = [row for row in documents if row["domain"] == name]
        years = [row[end].year for row in found for end in ("first", "last") if row[end]]
        number = sum(row["documents"] for row in found)
        dated, licensed = (sum(row[column] for row in found) for column in ("dated", "licensed"))
        rows.append(
            [
                name,
                number,
                round(sum(row["bytes"] for row in found) / 1e6, 2),
                f"{dated} ({min(years)} to {max(years)})" if years else "none",
                f"{licensed / number:.0%}" if number else "",
            ]
        )
    return SummaryTable(("domain", "documents", "MB", "dated", "licence known"), rows, title="Documents by domain")
