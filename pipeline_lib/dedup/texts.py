"""Text of documents as the kernels read it: Arrow buffers of bounded pieces of a file, without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.tables.ids import Ids, ids_of

PIECE_ROWS = 4096  # documents read at once; with 10 MB the longest document, typical text stays far below 100 MB


@dataclass(frozen=True)
class Texts:
    """Documents in a row. `data` holds UTF-8 bytes, document `i` is `data[offsets[i]:offsets[i + 1]]`."""

    ids: Ids
    data: NDArray[np.uint8]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


def buffers_of(column: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Bytes and offsets of a string column (nulls count as empty)."""
    column = column.cast(pa.large_string())
    if column.null_count:
        column = column.fill_null("")
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int64)[column.offset : column.offset + len(column) + 1]
    if not len(column):
        bounds = np.zeros(1, dtype=np.int64)
    return np.frombuffer(data or b"", dtype=np.uint8), bounds


def read_texts(path: Path, rows: int = PIECE_ROWS) -> Iterator[Texts]:
    """The documents of a Parquet file in order, some rows at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=rows, columns=["doc_id", "text"]):
            data, offsets = buffers_of(batch.column("text"))
            yield Texts(ids_of(batch.column("doc_id")), data, offsets)
