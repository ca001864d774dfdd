"""What is packed and in which order, fixed before any work: rows (documents in packing order) and ranges of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.errors import StageFailedError
from pipeline_lib.tables.ids import ids_of, places_of
from pipeline_lib.tables.schemas import CUTS, RANGES, ROWS

SIDES = ("train", "dev", "test")
PACKED_ROLES = ("new", "replay")
FROM_INGEST = "run from `ingest` with --force"


@dataclass(frozen=True)
class Range:
    """The source of one chunk: rows `first_row`…`last_row`, both included."""

    side: str
    chunk: int
    first_row: int
    last_row: int

    @property
    def name(self) -> str:
        """The chunk's file name without its ending."""
        return chunk_name(self.side, self.chunk)

    @property
    def documents(self) -> int:
        """Rows of the range."""
        return self.last_row - self.first_row + 1

    def holds(self, row: int) -> bool:
        """Whether a row is one of the range's."""
        return self.first_row <= row <= self.last_row


def chunk_name(side: str, chunk: int) -> str:
    """The name of a chunk and of the range it is made of."""
    return f"{side}-{chunk:05d}"


def locate(doc_ids: pa.Array, documents: Sequence[Path]) -> np.ndarray:
    """Position of each document in the documents table (its files one after the other), int64[n].

    Memory: 16 bytes a document of the corpus, and a hash table of the same order.

    Raises:
        StageFailedError: the table lacks ids, or documents that were selected.
    """
    columns = []
    for path in documents:
        if "doc_id" not in pq.read_schema(path).names:
            raise StageFailedError("the documents table has no column doc_id", where=str(path), fix=FROM_INGEST)
        columns.extend(pq.read_table(path, columns=["doc_id"]).column(0).chunks)
    known = pa.chunked_array(columns, ROWS.field("doc_id").type)
    if known.null_count:
        raise StageFailedError(f"{known.null_count} documents have no doc_id", fix=FROM_INGEST)
    found = pc.index_in(doc_ids, value_set=known)
    if found.null_count:
        first = doc_ids.filter(pc.is_null(found))[0].as_py().hex()
        raise StageFailedError(
            f"{found.null_count} selected documents are not in the documents table (the first: {first})",
            fix="selection and documents do not belong together: run from `ingest`",
        )
    return np.asarray(found.to_numpy(zero_copy_only=False), np.int64)


def plan_rows(selection: pa.Table, documents: Sequence[Path], cuts: pa.Table | None = None) -> pa.Table:
    """Rows in packing order, schema ROWS: by side, then pass (a document that repeats comes once in each of its passes), then
    place in the documents table, so that a range reads few files and a new file changes no earlier range.

    Args:
        selection: schema SELECTION.
        documents: files of the documents table.
        cuts: what is left out of the texts, schema CUTS.

    Raises:
        StageFailedError: nothing to train on, or the documents do not fit.
    """
    wanted = pc.and_(
        pc.is_in(selection["role"], pa.array(PACKED_ROLES)),
        pc.and_(pc.is_in(selection["side"], pa.array(SIDES)), pc.greater(selection["repeats"], 0)),
    )
    table = selection.filter(wanted).combine_chunks()
    if not pc.any(pc.equal(table["side"], "train")).as_py():
        raise StageFailedError(
            f"the selection holds no training document ({selection.num_rows} rows, {table.num_rows} to pack)",
            where="select",
            fix="loosen the rules (`score.rules`), or raise `select.target_tokens`",
        )
    document = locate(table["doc_id"].combine_chunks(), documents)
    repeats = table["repeats"].to_numpy().astype(np.int64)
    source = np.repeat(np.arange(table.num_rows), repeats)
    turn = np.arange(len(source)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    side = pc.index_in(table["side"], value_set=pa.array(SIDES)).to_numpy()[source]
    order = np.lexsort((document[source], turn, side))
    taken = table.take(pa.array(source[order]))
    columns = {
        "side": taken["side"],
        "pass": pa.array(turn[order], pa.int32()),
        "document": pa.array(document[source[order]], pa.int64()),
        "doc_id": taken["doc_id"],
        "domain": taken["domain"],
        "est_tokens": pc.max_element_wise(taken["est_tokens"], 1),
        "text_hash": _text_hashes(documents).take(pa.array(document[source[order]])),
        "cuts": cuts_of(taken["doc_id"], cuts if cuts is not None else CUTS.empty_table()),
    }
    return pa.table(columns).cast(ROWS)


def cuts_of(doc_id: pa.Array, cuts: pa.Table) -> pa.Array:
    """The cuts of each document as one list of starts and ends; null where it has none."""
    cut, first, count = np.unique(ids_of(cuts["doc_id"]), return_index=True, return_counts=True)
    bounds = np.append(first, first[-1:] + count[-1:]) if len(cut) else [0]
    flat = np.stack([cuts["start"].to_numpy(), cuts["end"].to_numpy()], axis=1).ravel()
    lists = pa.ListArray.from_arrays(pa.array(2 * np.asarray(bounds), pa.int32()), pa.array(flat, pa.int64()))
    place = places_of(ids_of(doc_id), cut)
    return lists.take(pa.array(place, mask=place < 0))


def _text_hashes(documents: Sequence[Path]) -> pa.ChunkedArray:
    """text_hash of every document; null where the table has none. Memory: 16 bytes a document of the corpus."""
    kind = ROWS.field("text_hash").type
    columns: list[pa.Array] = []
    for path in documents:
        with pq.ParquetFile(path) as source:
            known = "text_hash" in source.schema_arrow.names
            columns.extend(source.read(["text_hash"]).column(0).chunks if known else [pa.nulls(source.metadata.num_rows, kind)])
    return pa.chunked_array(columns, kind)


def plan_ranges(
    rows: pa.Table, range_tokens: int, *, first_row: int = 0, first_chunks: Mapping[str, int] | None = None
) -> pa.Table:
    """Cut the rows of each side wherever the estimated tokens before a row pass a multiple of `range_tokens`; schema RANGES.

    A short rest joins the range before it: a chunk of few pieces packs badly.

    Args:
        rows: schema ROWS.
        range_tokens: estimated tokens of a range.
        first_row: number of the first row, where an earlier cache is continued.
        first_chunks: likewise, number of the first chunk by side.
    """
    parts = [RANGES.empty_table()]
    first_of_side = first_row
    for side in SIDES:
        estimated = rows.filter(pc.equal(rows["side"], side))["est_tokens"].to_numpy()
        if not len(estimated):
            continue
        before = np.cumsum(estimated) - estimated
        firsts = np.flatnonzero(np.diff(before // range_tokens, prepend=-1))
        if len(firsts) > 1 and estimated[firsts[-1] :].sum() < range_tokens / 2:
            firsts = firsts[:-1]
        lasts = np.append(firsts[1:], len(estimated)) - 1
        parts.append(
            pa.table(
                {
                    "side": pa.array([side] * len(firsts)),
                    "chunk": np.arange(len(firsts)) + (first_chunks or {}).get(side, 0),
                    "first_row": firsts + first_of_side,
                    "last_row": lasts + first_of_side,
                    "est_tokens": np.add.reduceat(estimated, firsts),
                }
            ).cast(RANGES)
        )
        first_of_side += len(estimated)
    return pa.concat_tables(parts)


def ranges_of(table: pa.Table) -> list[Range]:
    """The rows of a RANGES table."""
    columns = (table[name].to_pylist() for name in ("side", "chunk", "first_row", "last_row"))
    return [Range(*values) for values in zip(*columns, strict=True)]
