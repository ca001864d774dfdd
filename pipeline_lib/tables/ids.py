"""Document ids (16 bytes) as numpy arrays: sorting, looking up, hashing and showing them without a Python loop.

An id array has dtype `S16`. numpy cuts trailing zero bytes off an element that is taken out: show single ids by `hex_of`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

ID_BYTES = 16
Ids = NDArray[np.bytes_]  # dtype S16
_DIGITS = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the step of splitmix64


def ids_of(column: pa.Array | pa.ChunkedArray) -> Ids:
    """A column of 16-byte ids as an array of dtype S16 (a copy)."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype=f"S{ID_BYTES}", count=len(chunk), offset=chunk.offset * ID_BYTES)
        for chunk in chunks
        if len(chunk)
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=f"S{ID_BYTES}")


def id_column(ids: Ids) -> pa.Array:
    """An id array as an Arrow column of `binary(16)`."""
    data = pa.py_buffer(np.ascontiguousarray(ids).tobytes())
    return pa.Array.from_buffers(pa.binary(ID_BYTES), len(ids), [None, data])


def hex_of(ids: Ids) -> NDArray[np.bytes_]:
    """Ids as 32 hexadecimal digits each, dtype S32."""
    raw = np.ascontiguousarray(ids).view(np.uint8).reshape(-1, ID_BYTES)
    digits = np.stack([_DIGITS[raw >> 4], _DIGITS[raw & 15]], axis=-1)
    return digits.reshape(-1, 2 * ID_BYTES).view("S32").reshape(-1)


def hex_column(ids: Ids) -> pa.Array:
    """Ids as an Arrow string column of 32 hexadecimal digits."""
    data = pa.py_buffer(hex_of(ids).tobytes())
    offsets = np.arange(0, (len(ids) + 1) * 2 * ID_BYTES, 2 * ID_BYTES, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(ids), [None, pa.py_buffer(offsets), data])


def _halves(ids: Ids) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first and the last eight bytes as numbers: comparing numbers is many times as fast as comparing bytes."""
    halves = np.ascontiguousarray(ids).view(">u8").reshape(-1, 2)
    return halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)


def order_of(ids: Ids) -> NDArray[np.int64]:
    """The indices that sort ids; equal ones stay in their order."""
    high, low = _halves(ids)
    order = np.argsort(high)
    ordered = high[order]
    if (ordered[1:] == ordered[:-1]).any():  # then only is the second half asked
        order = np.lexsort((low, high))
    return np.asarray(order, dtype=np.int64)


def places_of(wanted: Ids, known: Ids) -> NDArray[np.int64]:
    """Index of each wanted id in the sorted array `known`; -1 where it is not there."""
    if not len(known):
        return np.full(len(wanted), -1, dtype=np.int64)
    high, low = _halves(known)
    if (high[1:] == high[:-1]).any():
        places = np.minimum(np.searchsorted(known, wanted), len(known) - 1).astype(np.int64)
        places[known[places] != wanted] = -1
        return places
    wanted_high, wanted_low = _halves(wanted)
    order = np.argsort(wanted_high)  # looked up in order: neighbours are near each other in memory
    places = np.empty(len(wanted), dtype=np.int64)
    places[order] = np.minimum(np.searchsorted(high, wanted_high[order]), len(known) - 1)
    places[(high[places] != wanted_high) | (low[places] != wanted_low)] = -1
    return places


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def draw(ids: Ids, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each id: a function of the id and the seed only, so it never changes when others are added."""
    if not len(ids):
        return np.empty(0, dtype=np.float64)
    halves = np.ascontiguousarray(ids).view("<u8").reshape(-1, 2)
    salt = mixed(np.array([seed], dtype=np.uint64) + _GOLDEN)
    bits: Any = mixed(mixed(halves[:, 0] ^ salt) + halves[:, 1])
    return np.asarray((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def is_in_sorted(values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """bool[len(values)]: whether each value is one of `ascending` (int64)."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    found: np.ndarray = ascending[at] == values
    return found
