"""How well a text compresses: the size that LZ4's fast compressor would reach, counted without writing it.

It does not depend on the version of a library. Low ratios are repetition, high ones noise (Compel: compression ratio as a
filter).
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline_lib.quality.compiled import KERNEL, OFFSETS, TEXT
from pipeline_lib.tables.buffers import Bytes, Offsets


@njit(f"f8({TEXT}, i8, i8, i8[::1])", **KERNEL)
def _ratio(data, start, end, table):  # type: ignore[no-untyped-def]
    """Bytes that LZ4's fast compressor would write (greedy parse, 64 KiB window, block format), per byte.

    `table` keeps the last position of every hash of four bytes; positions before `start` belong to other texts.
    """
    written, at, anchor, tries = 0, start, start, 64
    while at + 12 < end:
        word = (
            np.uint64(data[at])
            | np.uint64(data[at + 1]) << np.uint64(8)
            | np.uint64(data[at + 2]) << np.uint64(16)
            | np.uint64(data[at + 3]) << np.uint64(24)
        )
        place = np.int64(((word * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)) >> np.uint64(19))
        other = table[place]
        table[place] = at
        is_match = other >= start and at - other < 65536
        if is_match:
            for i in range(4):
                if data[other + i] != data[at + i]:
                    is_match = False
                    break
        if not is_match:
            at += tries >> 6  # the longer nothing is found, the larger the steps, as LZ4 does
            tries += 1
            continue
        length = 4
        while at + length + 5 < end and data[other + length] == data[at + length]:
            length += 1
        literals = at - anchor
        written += 3 + literals
        if literals >= 15:
            written += 1 + (literals - 15) // 255
        if length >= 19:
            written += 1 + (length - 19) // 255
        at += length
        anchor, tries = at, 64
    literals = end - anchor
    written += 1 + literals
    if literals >= 15:
        written += 1 + (literals - 15) // 255
    return written / (end - start)


@njit(f"void({TEXT}, {OFFSETS}, i8[::1], f8[::1])", **KERNEL)
def _ratios(data, offsets, table, out):  # type: ignore[no-untyped-def]
    for row in range(len(offsets) - 1):
        start, end = offsets[row], offsets[row + 1]
        out[row] = _ratio(data, start, end, table) if end > start else 0.0


def compression_ratios(data: Bytes, offsets: Offsets) -> NDArray[np.float64]:
    """Estimated compressed bytes of each text, per byte; 0 for an empty text."""
    out = np.empty(len(offsets) - 1)
    _ratios(data, offsets, np.full(1 << 13, -1, np.int64), out)
    return out
