"""The stage `ingest`: sources become documents; what cannot be read becomes the quarantine. Nothing is lost in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.config.data import IngestConfig
from pipeline_lib.corpus.barred import BARRED, barred
from pipeline_lib.corpus.changes import KINDS
from pipeline_lib.corpus.documents import REPLACED, refine
from pipeline_lib.corpus.module import module_files
from pipeline_lib.corpus.normalise import VERSION
from pipeline_lib.corpus.raw import SET_ASIDE
from pipeline_lib.corpus.readers import read_files
from pipeline_lib.corpus.redact import shape
from pipeline_lib.corpus.replaced import NONE, replaced_places
from pipeline_lib.corpus.sources import Part, list_files, parts, passed_over
from pipeline_lib.corpus.sums import from_json, merged, sums_of
from pipeline_lib.corpus.web_page import need_web
from pipeline_lib.errors import RefusedError
from pipeline_lib.tables.parquet import TableWriter, read_tables, write_batches, write_table
from pipeline_lib.tables.schemas import DOCUMENTS, EDITS, IDS, QUARANTINE
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.files import link_or_copy
from pipeline_lib.workspace.forgotten import Forgotten
from pipeline_lib.workspace.identity import fingerprint_of
from pipeline_lib.workspace.shards import ShardWork, shard_at, silent
from pipeline_lib.workspace.stage import Outcome, StageRun

TABLES = {"documents": DOCUMENTS, "edits": EDITS, "quarantine": QUARANTINE}
COUNTED = ("records", "quarantined", "replaced", "barred", "left_out")


def ingest(run: StageRun, *, ingest: IngestConfig) -> Outcome:
    """Read all sources.

    Tables: documents, edits, quarantine; ids, where records have ids of their own. Of a source's records with the same id the
    last in file-name order is the document; the earlier ones are rows of quarantine. counts: in = records seen, out = documents +
    quarantined + replaced + left_out (records beyond `max_mb` or `sample`). details: per source and per domain the documents and
    bytes.

    Raises:
        NotFoundError: a source has no files.
        RefusedError: more than `quarantine_limit` of a source's records cannot be read, or there is no document at all. It names
            places and shapes, no text: run records and logs keep it, and nothing can be forgotten there.
        StageFailedError: a file changes while it is read.
    """
    listed = {
        source.name: module_files(source, run.keep("module"))
        if source.kind == "module"
        else list_files(source, ingest.max_file_gb)
        for source in ingest.sources
    }
    forgotten = Forgotten.read(run.workspace.root)
    work = [
        replace(part, barred=barred(source.name, [file.digest for file in part.files], forgotten, ingest))
        for source in ingest.sources
        for part in parts(source, listed[source.name], ingest)
    ]
    _need(work)
    for part in {part.source.name: part for part in work if part.share < 1}.values():
        run.event("limited", source=part.source.name, share=round(part.share, 3), max_mb=part.source.max_mb)
        if part.source.kind != "machine":  # there is always more on a machine than anybody wants
            run.services.log(
                f"WARNING: of source {part.source.name} only {part.share:.1%} is read: "
                f"its max_mb is {part.source.max_mb:g}; a larger one reads more"
            )
    for source in ingest.sources:
        if left := passed_over(source):
            run.event("passed_over", source=source.name, files=left)
            run.services.log(
                f"WARNING: {sum(left.values())} files of source {source.name} are passed over, their names tell no form "
                f"({', '.join(suffix or 'no suffix' for suffix in sorted(left)[:5])}); `format` says how to read them"
            )
    if ingest.sample:
        files, seen = _sample(run, work, ingest.sample)
    else:
        files, seen = _all(run, work)
    for source in ingest.sources:
        _refuse_bad_source(source.name, [m for name, m in seen if name == source.name], files["quarantine"], ingest)
    if ingest.sample:
        documents = merged(sums_of(batch) for path in files["documents"] for batch in pq.ParquetFile(path).iter_batches())
    else:
        documents = merged(from_json(metrics["sums"]) for _, metrics in seen)
    total = {name: sum(metrics[name] for _, metrics in seen) for name in COUNTED}
    changed = Counter[str]()
    for _, metrics in seen:
        changed.update(metrics["edits"])
    number = sum(row["documents"] for row in documents)
    _refuse_unknown_licences(number, sum(row["licensed"] for row in documents), ingest.unknown_licence_limit)
    if not number:
        raise RefusedError(
            f"no document is left of {total['records']} records: {total['quarantined']} cannot be read, "
            f"{total['left_out']} are beyond max_mb",
            where="sources " + ", ".join(source.name for source in ingest.sources),
            fix="are file and `text_column` the right ones? `ingest.max_document_mb` and `max_mb` leave out what is larger",
        )
    if ingest.sample:
        total["left_out"] = total["records"] - sum(total[name] for name in ("quarantined", "replaced", "barred")) - number
    return Outcome(
        metrics={
            "documents": number,
            "megabytes": round(sum(row["bytes"] for row in documents) / 1e6, 3),
            "quarantined": total["quarantined"],
            "replaced": total["replaced"],
            "barred": total["barred"],
            "left_out": total["left_out"],
            "domains": len({row["domain"] for row in documents}),
        },
        counts={
            "in": total["records"],
            "out": number + sum(total[name] for name in COUNTED[1:]),
            "documents": number,
            "quarantined": total["quarantined"],
            "replaced": total["replaced"],
            "barred": total["barred"],
            "left_out": total["left_out"],
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
            "recipe": {"version": VERSION, "edits": {kind: changed[kind] for kind in KINDS if changed[kind]}},
        },
    )


def _need(work: Sequence[Part]) -> None:
    """Raise before any work when an extra is missing.

    Raises:
        ConfigError: says what to install.
    """
    for part in work:
        part.recipe.need()
        if any(file.form in {"html", "warc"} for file in part.files):
            need_web(f"source {part.source.name}")


def read_part(part: Part, folder: Path, replaced: pa.Array = NONE) -> dict[str, Any]:
    """Read one part into `documents`, `edits` and `quarantine` files; return the counts.

    Args:
        part: what to read.
        folder: where the files go.
        replaced: places of records that later ones replace; they go to `quarantine` and are not counted as quarantined.
    """
    return _read((part, replaced, False), folder)


def _read(task: tuple[Part, pa.Array, bool], folder: Path) -> dict[str, Any]:
    """`read_part`; where asked for, with a file `ids`."""
    part, replaced, with_ids = task
    ids, sums = [IDS.empty_table()], list[pa.Table]()
    counts = dict.fromkeys(("records", "left_out", "replaced", "barred", "set_aside"), 0)
    changed: Counter[str] = Counter()

    def refined() -> Iterator[pa.RecordBatch]:
        for batch in read_files(part, folder):
            found = refine(batch, part, replaced)
            counts["records"] += batch.num_rows
            for name in ("left_out", "replaced", "barred", "set_aside"):
                counts[name] += getattr(found, name)
            edits.add(found.edits)
            quarantine.add(found.quarantine)
            for kind in found.edits.column("kind").value_counts().to_pylist():
                changed[kind["values"]] += kind["counts"]
            sums.append(sums_of(found.documents))
            if with_ids:
                ids.append(found.ids)
            yield found.documents

    with (
        TableWriter(EDITS, folder / "edits.parquet") as edits,
        TableWriter(QUARANTINE, folder / "quarantine.parquet") as quarantine,
    ):
        documents = write_batches(refined(), DOCUMENTS, folder / "documents.parquet")
    if with_ids:
        write_table(pa.concat_tables(ids), folder / "ids.parquet")
    bad = quarantine.rows - counts["replaced"] - counts["barred"]
    return {**counts, "quarantined": bad, "documents": documents, "edits": dict(sorted(changed.items())), "sums": merged(sums)}


def _all(run: StageRun, work: Sequence[Part]) -> tuple[dict[str, list[Path]], list[tuple[str, dict[str, Any]]]]:
    """Every part as a shard of its own. Where records have ids, the ids of all parts come first: which records are replaced is
    known only then, and only the parts that hold such records are read again.
    """
    named = [part for part in work if part.has_ids]
    read = run.keep("read")
    first = run.shards(
        [(part, read / fingerprint_of(part.key())) for part in named], _ids, key=lambda task: {"ids": task[0].key()}, unit="parts"
    )
    lost = dict(zip((id(part) for part in named), replaced_places([shard.files["ids"] for shard in first]), strict=True))
    tasks = [(part, lost.get(id(part), NONE), read / fingerprint_of(part.key())) for part in work]
    shards = run.shards(tasks, _take, key=_key, unit="parts")
    files = {table: [shard.files[table] for shard in shards] for table in TABLES}
    return files, [(part.source.name, dict(shard.metrics)) for part, shard in zip(work, shards, strict=True)]


def _key(task: tuple[Part, pa.Array, Path]) -> dict[str, Any]:
    part, replaced, _ = task
    return {**part.key(), "replaced": replaced.to_pylist()} if len(replaced) else part.key()


def _ids(task: tuple[Part, Path], folder: Path) -> dict[str, Any]:
    """The ids of a part. What else was read stays in a folder of its own for `_take`."""
    part, read = task
    ShardWork(_read, partial(silent, 0))(((part, NONE, True), read))
    link_or_copy(read / "ids.parquet", folder / "ids.parquet")
    return {}


def _take(task: tuple[Part, pa.Array, Path], folder: Path) -> dict[str, Any]:
    """The shard of a part: what `_ids` read, if nothing of it is replaced."""
    part, replaced, read = task
    known = None if len(replaced) or not part.has_ids else shard_at(read)
    if known is None:
        return read_part(part, folder, replaced)
    for table in TABLES:
        link_or_copy(read / known.entries[table].path, folder / known.entries[table].path)
    return dict(known.metrics)


def _sample(run: StageRun, work: Sequence[Part], size: int) -> tuple[dict[str, list[Path]], list[tuple[str, dict[str, Any]]]]:
    """The documents with the `size` smallest ids: ids are hashes, so this is spread evenly and the same on every machine."""
    folders = [run.keep(f"sample/{number}") for number in range(len(work))]
    first = [((part, NONE, part.has_ids), folder) for part, folder in zip(work, folders, strict=True)]
    metrics = run.services.mapper(_read_task, first)
    named = [number for number, part in enumerate(work) if part.has_ids]
    lost = replaced_places([folders[number] / "ids.parquet" for number in named])
    again = {number: gone for number, gone in zip(named, lost, strict=True) if len(gone)}
    second = run.services.mapper(_read_task, [((work[number], gone, False), folders[number]) for number, gone in again.items()])
    for number, counts in zip(again, second, strict=True):
        metrics[number] = counts
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


def _read_task(task: tuple[tuple[Part, pa.Array, bool], Path]) -> dict[str, Any]:
    return _read(*task)


def _refuse_bad_source(source: str, parts: Sequence[dict[str, Any]], quarantine: Sequence[Path], config: IngestConfig) -> None:
    records, bad, aside = (sum(part[name] for part in parts) for name in ("records", "quarantined", "set_aside"))
    records, bad = records - aside, bad - aside
    if not records or bad / records <= config.quarantine_limit:
        return
    rows = read_tables(list(quarantine))
    no_fault = pc.is_in(rows.column("reason"), value_set=pa.array([REPLACED, *BARRED, *SET_ASIDE]))
    rows = rows.filter(pc.and_not(pc.equal(rows.column("source"), source), no_fault))
    common = sorted(rows.column("reason").value_counts().to_pylist(), key=lambda entry: (-entry["counts"], entry["values"]))
    told = []
    for entry in common[:3]:
        example = rows.filter(pc.equal(rows.column("reason"), entry["values"])).slice(0, 1).to_pylist()[0]
        told.append(f"{entry['counts']} × {entry['values']}, e.g. {example['position']}: {shape(example['head'])!r}")
    raise RefusedError(
        f"{bad} of {records} records ({bad / records:.1%}) cannot be read, more than ingest.quarantine_limit = "
        f"{config.quarantine_limit:.1%}: " + "; ".join(told),
        where=f"source {source}",
        fix="look at these places (letters are shown as x, digits as 0): a changed format or column? "
        "If this share is expected, raise ingest.quarantine_limit",
    )


def _refuse_unknown_licences(documents: int, licensed: int, limit: float) -> None:
    if documents - licensed > limit * documents:
        raise RefusedError(
            f"{documents - licensed} of {documents} documents ({1 - licensed / documents:.1%}) have no known licence, more than "
            f"ingest.unknown_licence_limit = {limit:.1%}",
            where="stage ingest",
            fix="name the licence of a source (`licence`), leave the source out, or raise ingest.unknown_licence_limit",
        )


def _total(documents: Sequence[dict[str, Any]], column: str, name: str) -> dict[str, int]:
    rows = [row for row in documents if row[column] == name]
    return {"documents": sum(row["documents"] for row in rows), "bytes": sum(row["bytes"] for row in rows)}


def _summary(documents: Sequence[dict[str, Any]]) -> SummaryTable:
    rows: list[list[str | float | int]] = []
    for name in sorted({row["domain"] for row in documents}):
        found = [row for row in documents if row["domain"] == name]
        years = [row[end] for row in found for end in ("first", "last") if row[end]]
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
