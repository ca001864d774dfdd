"""Where the values of a list column lie in an Arrow IPC file, so that one sequence is read without decoding a whole record batch.

pyarrow reads a record batch as a whole; for one sequence it spends more on the other columns than on the tokens. The places of
the buffers stand in flatbuffers at fixed fields. Format: https://arrow.apache.org/docs/format/Columnar.html (IPC file format),
`File.fbs`, `Message.fbs`; flatbuffers: https://flatbuffers.dev/internals. Only files whose digest was checked are read this way.
"""

from __future__ import annotations

import struct

import numpy as np

TAIL = 10  # int32 length of the footer, then "ARROW1"
RECORD_BATCHES = 3  # fields of the tables `Footer`, `Message` and `RecordBatch`
HEADER = 2
BUFFERS = 2
BLOCK = np.dtype([("at", "<i8"), ("head", "<i4"), ("padding", "<i4"), ("body", "<i8")])
PLACE = np.dtype("<i8")
PREFIX = 8  # of a compressed buffer: its decoded length, -1 where it is stored as it is
BUFFERS_OF_A_LIST, OFFSETS, VALUES = 4, 1, 3  # validity and offsets of the list, validity and values of its items


def _field(data: memoryview, table: int, number: int) -> int:
    """Where the value of a table's field stands."""
    fields = table - int(struct.unpack_from("<i", data, table)[0])
    return table + int(struct.unpack_from("<H", data, fields + 4 + 2 * number)[0])


def _follow(data: memoryview, at: int) -> int:
    return at + int(struct.unpack_from("<I", data, at)[0])


def _vector(data: memoryview, at: int, item: np.dtype[np.void] | np.dtype[np.int64], numbers: int = 1) -> np.ndarray:
    start = _follow(data, at)
    return np.frombuffer(data, item, numbers * int(struct.unpack_from("<I", data, start)[0]), start + 4)


def buffer_places(data: memoryview, *, compressed: bool) -> np.ndarray:
    """Places of all buffers in every record batch.

    Args:
        data: the file.
        compressed: the file's buffers are compressed.

    Returns:
        int64[batches, buffers, 3]: offset in the file, bytes there, bytes when decoded (-1: they are stored as they are). A list
        column of fixed-width items has `BUFFERS_OF_A_LIST` buffers: `OFFSETS` and `VALUES` are the ones that hold something.
    """
    (length,) = struct.unpack_from("<i", data, len(data) - TAIL)
    footer = _follow(data, len(data) - TAIL - length)
    blocks = _vector(data, _field(data, footer, RECORD_BATCHES), BLOCK)
    batches = []
    for at, head, _, _ in blocks.tolist():
        message = _follow(data, at + 8)  # behind the continuation mark and the length
        batch = _follow(data, _field(data, message, HEADER))
        places = _vector(data, _field(data, batch, BUFFERS), PLACE, 2).reshape(-1, 2)
        batches.append(places + np.array([at + head, 0]))
    places = np.full((len(batches), batches[0].shape[0] if batches else 0, 3), -1, np.int64)
    if batches:
        places[:, :, :2] = batches
    if compressed:
        filled = places[:, :, 1] > 0
        numbers = np.frombuffer(data, "<i8", len(data) // PREFIX)  # buffers begin at multiples of eight bytes
        places[filled, 2] = numbers[places[filled, 0] // PREFIX]
        places[filled, :2] += (PREFIX, -PREFIX)
    return places
