"""Read chosen texts from the documents table, streaming: memory is set by what is asked for, not by the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.errors import StageFailedError

BATCH_ROWS = 1024  # documents decoded at a time while looking for those that are wanted


@lru_cache(maxsize=64)
def _row_counts(files: tuple[Path, ...]) -> np.ndarray:
    return np.cumsum([0, *(pq.read_metadata(path).num_rows for path in files)])


def read_texts(files: Sequence[Path], positions: np.ndarray, expected: pa.Array | None = None) -> pa.LargeStringArray:
    """Texts at positions of the documents table (its files one after the other), in the order asked for; null becomes "".

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
    table = pa.concat_tables(found).take(pa.array(back)) if found else pa.table({"doc_id": [], "text": []})
    if expected is not None and not table["doc_id"].combine_chunks().equals(expected):
        raise StageFailedError(
            "the documents at these positions are not the ones that were selected",
            where=str(files[0].parent),
            fix="the documents table has changed since the selection was packed: run from `ingest`",
        )
    text = table["text"].cast(pa.large_string()).fill_null("")
    return text.combine_chunks() if text.num_chunks != 1 else text.chunk(0)


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
                for batch in source.iter_batches(BATCH_ROWS, row_groups=[group], columns=["doc_id", "text"]):
                    first, last = np.searchsorted(rows, (at, at + batch.num_rows))
                    if last > first:
                        found.append(pa.Table.from_batches([batch.take(pa.array(rows[first:last] - at))]))
                    at += batch.num_rows
                    if last == high:
                        break
            start = end
    return found
