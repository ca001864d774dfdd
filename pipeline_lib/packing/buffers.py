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
Views = dict[str, np.ndarray]  # the whole file as numbers of each width


class Places(NamedTuple):
    """Of every record batch of a file whose columns are lists of fixed-width items."""

    buffers: np.ndarray  # int64[batches, buffers, 3]: offset in the file, bytes there, bytes when decoded (-1: as they are)
    values: np.ndarray  # int64[batches, columns]: items of a column; a buffer may hold more (Arrow pads those of a slice)


def find_buffers(data: memoryview, *, compressed: bool) -> Places:
    """Places of all buffers in every record batch.

    Args:
        data: the file; it has at least one record batch.
        compressed: its buffers are compressed.

    Raises:
        ValueError: the file is not laid out as Arrow lays it out.
    """
    size = len(data)
    footer_at = size - TAIL - int.from_bytes(data[size - TAIL : size - TAIL + 4], "little")
    if footer_at % 8:
        raise ValueError("the footer does not begin at a multiple of 8 bytes, as Arrow writes it")
    views = {kind: np.frombuffer(data[: size // 8 * 8], kind) for kind in ("<u2", "<i4", "<u4", "<i8")}
    footer = _follow(views, np.array([footer_at]))
    blocks = _vector(views, _field(views, footer, RECORD_BATCHES), BLOCK)[0]
    at, head = _numbers(views, blocks, "<i8"), _numbers(views, blocks + 8, "<i4")
    batch = _follow(views, _field(views, _follow(views, at + FRAME), HEADER))
    nodes = _vector(views, _field(views, batch, NODES), NODE)
    places = _vector(views, _field(views, batch, BUFFERS), PLACE)
    found = np.full((*places.shape, 3), -1, np.int64)
    found[:, :, 0] = _numbers(views, places, "<i8") + (at + head)[:, None]
    found[:, :, 1] = _numbers(views, places + 8, "<i8")
    if compressed:
        filled = found[:, :, 1] > 0
        found[filled, 2] = _numbers(views, found[filled, 0], "<i8")
        found[filled, :2] += (PREFIX, -PREFIX)
    return Places(found, _numbers(views, nodes[:, 1::2], "<i8"))


def _numbers(views: Views, at: np.ndarray, kind: str) -> np.ndarray:
    """The numbers that begin at bytes `at` (any shape), as int64; in a file of Arrow's each lies at a multiple of its width."""
    view = views[kind]
    found: np.ndarray = view[at // view.itemsize].astype(np.int64)
    return found


def _field(views: Views, table: np.ndarray, number: int) -> np.ndarray:
    """Where the value of a field stands, for several tables of one type."""
    found: np.ndarray = table + _numbers(views, table - _numbers(views, table, "<i4") + 4 + 2 * number, "<u2")
    return found


def _follow(views: Views, at: np.ndarray) -> np.ndarray:
    found: np.ndarray = at + _numbers(views, at, "<u4")
    return found


def _vector(views: Views, at: np.ndarray, size: int) -> np.ndarray:
    """Where the items of vectors begin, int64[vectors, items]; the vectors are equally long."""
    start = _follow(views, at)
    return start[:, None] + 4 + size * np.arange(int(_numbers(views, start[:1], "<u4")[0]))
