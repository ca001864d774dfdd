"""Where the values of a list column lie in an Arrow IPC file, so that one sequence is read without decoding a whole record batch.

pyarrow reads a record batch as a whole; for one sequence it spends more on the other columns than on the tokens. The places of
the buffers stand in flatbuffers at fixed fields. Format: https://arrow.apache.org/docs/format/Columnar.html (IPC file format),
`File.fbs`, `Message.fbs`; flatbuffers: https://flatbuffers.dev/internals. Only files whose digest was checked are read this way.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

TAIL = 10  # int32 length of the footer, then "ARROW1"
FRAME = 8  # continuation mark and length before a message
RECORD_BATCHES = 3  # fields of the tables `Footer`, `Message` and `RecordBatch`
HEADER = 2
NODES, BUFFERS = 1, 2
BLOCK = 24  # bytes: int64 offset, int32 length of the message, padding, int64 length of the body
PLACE = NODE = 16  # bytes: offset and length of a buffer; length and nulls of an array; int64 each
PREFIX = 8  # of a compressed buffer: its decoded length, -1 where it is stored as it is
BUFFERS_OF_A_LIST, OFFSETS, VALUES = 4, 1, 3  # validity and offsets of the list, validity and values of its items


class Places(NamedTuple):
    """Of every record batch of a file whose columns are lists of fixed-width items."""

    buffers: np.ndarray  # int64[batches, buffers, 3]: offset in the file, bytes there, bytes when decoded (-1: as they are)
    values: np.ndarray  # int64[batches, columns]: items of a column; a buffer may hold more (Arrow pads those of a slice)


def find_buffers(data: memoryview, *, compressed: bool) -> Places:
    """Places of all buffers in every record batch.

    Args:
        data: the file; it has at least one record batch.
        compressed: its buffers are compressed.
    """
    raw = np.frombuffer(data, np.uint8)
    tail = np.array([len(raw) - TAIL])
    footer = _follow(raw, tail - _numbers(raw, tail, "<i4"))
    blocks = _vector(raw, _field(raw, footer, RECORD_BATCHES), BLOCK)[0]
    at, head = _numbers(raw, blocks, "<i8"), _numbers(raw, blocks + 8, "<i4")
    batch = _follow(raw, _field(raw, _follow(raw, at + FRAME), HEADER))
    nodes = _vector(raw, _field(raw, batch, NODES), NODE)
    places = _vector(raw, _field(raw, batch, BUFFERS), PLACE)
    found = np.full((*places.shape, 3), -1, np.int64)
    found[:, :, 0] = _numbers(raw, places, "<i8") + (at + head)[:, None]
    found[:, :, 1] = _numbers(raw, places + 8, "<i8")
    if compressed:
        filled = found[:, :, 1] > 0
        found[filled, 2] = _numbers(raw, found[filled, 0], "<i8")
        found[filled, :2] += (PREFIX, -PREFIX)
    return Places(found, _numbers(raw, nodes[:, 1::2], "<i8"))


def _numbers(raw: np.ndarray, at: np.ndarray, kind: str) -> np.ndarray:
    """The numbers that begin at bytes `at` (any shape), as int64."""
    width = np.dtype(kind).itemsize
    gathered = np.ascontiguousarray(raw[at[..., None] + np.arange(width)])
    return gathered.view(kind)[..., 0].astype(np.int64)


def _field(raw: np.ndarray, table: np.ndarray, number: int) -> np.ndarray:
    """Where the value of a field stands, for several tables of one type."""
    found: np.ndarray = table + _numbers(raw, table - _numbers(raw, table, "<i4") + 4 + 2 * number, "<u2")
    return found


def _follow(raw: np.ndarray, at: np.ndarray) -> np.ndarray:
    found: np.ndarray = at + _numbers(raw, at, "<u4")
    return found


def _vector(raw: np.ndarray, at: np.ndarray, size: int) -> np.ndarray:
    """Where the items of vectors begin, int64[vectors, items]; the vectors are equally long."""
    start = _follow(raw, at)
    return start[:, None] + 4 + size * np.arange(int(_numbers(raw, start[:1], "<u4")[0]))
