"""Arrow string columns as numpy views: what compiled kernels read and write, without a copy."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]


def text_buffers(column: pa.Array | pa.ChunkedArray) -> tuple[Bytes, Offsets]:
    """The bytes and the offsets (int64, rows + 1) of a `large_string` or `large_binary` column; row i is data[o[i]:o[i + 1]].

    A null row has no bytes. Copies only where a chunked column has more than one chunk.
    """
    if isinstance(column, pa.ChunkedArray):
        chunks = column.chunks
        column = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks) if chunks else pa.array([], column.type)
    if column.type not in (pa.large_string(), pa.large_binary()):
        raise TypeError(f"needs large_string or large_binary, not {column.type}")
    if not len(column):
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = column.buffers()
    first = np.frombuffer(offsets, np.int64, count=len(column) + 1, offset=8 * column.offset)
    return np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8), first


def text_column(data: Bytes, offsets: Offsets, kind: pa.DataType | None = None) -> pa.Array:
    """A `large_string` column (or `kind`) over these buffers; the bytes are trusted to be UTF-8."""
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.Array.from_buffers(kind or pa.large_string(), len(offsets) - 1, buffers)
