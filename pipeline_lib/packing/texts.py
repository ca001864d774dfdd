"""Read chosen texts from the documents table, streaming: memory is set by what is asked for, not by the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.errors import StageFailedError
from pipeline_lib.tables.buffers import text_buffers, text_column
from pipeline_lib.tables.schemas import DOC_ID, TURNS

BATCH_ROWS = 1024  # documents decoded at a time while looking for those that are wanted
COLUMNS = ["doc_id", "text", "turns"]
_NONE = pa.schema([("doc_id", DOC_ID), ("text", pa.large_string()), ("turns", TURNS)]).empty_table()


@lru_cache(maxsize=64)
def _row_counts(files: tuple[Path, ...]) -> np.ndarray:
    return np.cumsum([0, *(pq.read_metadata(path).num_rows for path in files)])


@dataclass(frozen=True)
class Documents:
    """Texts with the turns of those that are conversations."""

    texts: pa.LargeStringArray  # no nulls
    turns: pa.Array  # null: a plain text

    def slice(self, start: int, count: int) -> Documents:
        """`count` documents from `start` on."""
        return Documents(self.texts.slice(start, count), self.turns.slice(start, count))

    def without(self, cuts: pa.ListArray) -> Documents:
        """The documents with parts of their texts left out.

        Args:
            cuts: for each document start, end, start, end … in bytes, ascending and disjoint; null: none. Never of a
                conversation.
        """
        if cuts.null_count == len(cuts):
            return self
        data, offsets = text_buffers(self.texts)
        places = cuts.flatten().to_numpy() + np.repeat(offsets[:-1], pc.fill_null(pc.list_value_length(cuts), 0).to_numpy())
        change = np.zeros(len(data) + 1, dtype=np.int8)
        change[places[::2]] += 1  # disjoint spans: no start is another's
        change[places[1::2]] -= 1
        kept = np.cumsum(change[:-1], dtype=np.int8) == 0
        ends = np.concatenate([[0], np.cumsum(kept)])
        return Documents(text_column(data[kept], np.ascontiguousarray(ends[offsets])), self.turns)


def read_texts(files: Sequence[Path], positions: np.ndarray) -> pa.LargeStringArray:
    """The texts of `read_documents`."""
    return read_documents(files, positions).texts


def read_documents(files: Sequence[Path], positions: np.ndarray, expected: pa.Array | None = None) -> Documents:
    """Documents at positions of the documents table (its files one after the other), in the order asked for.

    A null text becomes "".

    Args:
        files: Parquet files of the table, in order.
        positions: int64[n], repeats allowed.
        expected: doc_id of each position; when given, checked.

    Raises:
        StageFailedError: the documents are no longer the ones that were selected.
    """
    unique, back = np.unique(positions, return_inverse=True)
    starts = _row_counts(tuple(files))
    if len(unique) and unique[-1] >= starts[-1]:
        raise StageFailedError(f"document {unique[-1]} is asked for, the table has {starts[-1]}", fix="run from `ingest`")
    found: list[pa.Table] = []
    for i in np.unique(np.searchsorted(starts, unique, side="right") - 1):
        inside = unique[np.searchsorted(unique, starts[i]) : np.searchsorted(unique, starts[i + 1])] - starts[i]
        found.extend(_read_rows(files[i], inside))
    table = pa.concat_tables(found) if found else _NONE
    if len(unique) < len(positions) or not (back[1:] > back[:-1]).all():  # not once each, in the order of the table
        table = table.take(pa.array(back))
    if expected is not None and not table["doc_id"].combine_chunks().equals(expected):
        raise StageFailedError(
            "the documents at these positions are not the ones that were selected",
            where=str(files[0].parent),
            fix="the documents table has changed since the selection was packed: run from `ingest`",
        )
    text = table["text"].cast(pa.large_string()).fill_null("")
    return Documents(
        *(column.combine_chunks() if column.num_chunks != 1 else column.chunk(0) for column in (text, table["turns"]))
    )


def has_conversations(files: Sequence[Path], positions: np.ndarray) -> bool:
    """Whether any document at these positions of the documents table is a conversation."""
    starts = _row_counts(tuple(files))
    for path, start, end in zip(files, starts, starts[1:], strict=False):
        spoken = np.flatnonzero(
            pc.fill_null(pc.equal(pq.read_table(path, columns=["kind"])["kind"], "instruct"), False).to_numpy()
        )
        if len(spoken) and np.isin(spoken + start, positions[(positions >= start) & (positions < end)]).any():
            return True
    return False


def _read_rows(path: Path, rows: np.ndarray) -> list[pa.Table]:
    """Rows (ascending) of one file, row group by row group, batch by batch."""
    found = []
    with pq.ParquetFile(path) as source:
        start = 0
        for group in range(source.num_row_groups):
            end = start + source.metadata.row_group(group).num_rows
            low, high = np.searchsorted(rows, (start, end))
            if high > low:
                at = start
                for batch in source.iter_batches(BATCH_ROWS, row_groups=[group], columns=COLUMNS):
                    first, last = np.searchsorted(rows, (at, at + batch.num_rows))
                    if last > first:
                        found.append(pa.Table.from_batches([_picked(batch, rows[first:last] - at)]))
                    at += batch.num_rows
                    if last == high:
                        break
            start = end
    return found


def _picked(batch: pa.RecordBatch, rows: np.ndarray) -> pa.RecordBatch:
    """Rows (ascending) of a batch; neighbours without a copy."""
    if rows[-1] - rows[0] == len(rows) - 1:
        return batch.slice(int(rows[0]), len(rows))
    return batch.take(pa.array(rows))
