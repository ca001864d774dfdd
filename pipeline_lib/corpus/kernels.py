"""Compiled passes over the bytes of texts: find what is wrong with them, mend line ends and control characters, fold for hashing.

Every kernel reads Arrow buffers (`tables/buffers.py`), releases the GIL and has one explicit signature, so that it is compiled
once and loaded from numba's cache afterwards.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline_lib.tables.buffers import Bytes, Offsets

TEXT, OFFSETS = "Array(u1, 1, 'C', readonly=True)", "Array(i8, 1, 'C', readonly=True)"  # Arrow buffers may be immutable

INVALID, LINE_ENDS, CONTROL, COMPOSE, VISIBLE = 1, 2, 4, 8, 16
"""Flags of `inspect`: not UTF-8; has CR, VT or FF; has other control characters; may not be NFC; has a visible character."""


@njit(f"i8({TEXT}, i8, i8)", nogil=True, cache=True)
def _sequence_length(data, at, end):  # type: ignore[no-untyped-def]
    """Length of the well-formed UTF-8 sequence of a lead byte ≥ 0x80 at `at` (Unicode, table 3-7), or 0."""
    lead = data[at]
    low, high = 0x80, 0xBF
    if 0xC2 <= lead <= 0xDF:
        length = 2
    elif 0xE0 <= lead <= 0xEF:
        length = 3
        if lead == 0xE0:
            low = 0xA0
        elif lead == 0xED:
            high = 0x9F
    elif 0xF0 <= lead <= 0xF4:
        length = 4
        if lead == 0xF0:
            low = 0x90
        elif lead == 0xF4:
            high = 0x8F
    else:
        return 0
    if at + length > end or data[at + 1] < low or data[at + 1] > high:
        return 0
    for i in range(at + 2, at + length):
        if data[i] < 0x80 or data[i] > 0xBF:
            return 0
    return length


@lru_cache(maxsize=1)
def _unsettled() -> NDArray[np.uint8]:
    """1 for each code point below U+20000 that NFC may change, alone or by its neighbours.

    These are not `Yes` in UAX #15's quick check, or of a combining class other than 0. Worked out of `unicodedata`, where nothing
    says `Maybe`: those are what others compose with.
    """
    table = np.zeros(0x20000, np.uint8)
    for point in [*range(0x300, 0x3400), *range(0xA600, 0xAC00), *range(0xF900, 0x20000)]:
        char = chr(point)
        told = unicodedata.decomposition(char)
        if unicodedata.combining(char) or not unicodedata.is_normalized("NFC", char):
            table[point] = 1
        if told and not told.startswith("<"):
            table[[int(part, 16) for part in told.split()[1:]]] = 1
    table[0x1161:0x1176] = table[0x11A8:0x11C3] = 1  # vowels and final consonants of Hangul compose by rule
    table[0xD800:0xE000] = 1
    return table


def inspect(data: Bytes, offsets: Offsets, flags: NDArray[np.uint8], bad_at: NDArray[np.int64]) -> None:
    """Fill `flags` (bits above) and `bad_at` (first byte that is not UTF-8, or -1) for every text."""
    _inspect(data, offsets, _unsettled(), flags, bad_at)


@njit(f"void({TEXT}, {OFFSETS}, u1[::1], u1[::1], i8[::1])", nogil=True, cache=True)
def _inspect(data, offsets, unsettled, flags, bad_at):  # type: ignore[no-untyped-def]  # noqa: PLR0912
    for row in range(len(offsets) - 1):
        start, at, end, found = offsets[row], offsets[row], offsets[row + 1], 0
        bad_at[row] = -1
        while at < end:
            byte = data[at]
            if byte < 0x80:
                if at + 32 <= end:  # plain ASCII, 32 bytes at once: the loop has no exit, so it becomes vector instructions
                    odd, seen = False, False
                    for i in range(at, at + 32):
                        one = data[i]
                        odd |= (one >= 0x7F) | ((one < 0x20) & (one != 0x0A) & (one != 0x09))
                        seen |= one > 0x20
                    if not odd:
                        found |= VISIBLE if seen else 0
                        at += 32
                        continue
                if byte > 0x20:
                    found |= CONTROL if byte == 0x7F else VISIBLE
                elif 0x0B <= byte <= 0x0D:
                    found |= LINE_ENDS
                elif byte < 0x20 and not 0x09 <= byte <= 0x0A:
                    found |= CONTROL
                at += 1
                continue
            length = _sequence_length(data, at, end)
            if length == 0:
                found |= INVALID
                bad_at[row] = at - start
                break
            if length == 2:
                point = (byte & 0x1F) << 6 | (data[at + 1] & 0x3F)
            elif length == 3:
                point = (byte & 0x0F) << 12 | (data[at + 1] & 0x3F) << 6 | (data[at + 2] & 0x3F)
            else:
                point = (byte & 0x07) << 18 | (data[at + 1] & 0x3F) << 12 | (data[at + 2] & 0x3F) << 6 | (data[at + 3] & 0x3F)
            if point >= 0x300 and (unsettled[point] if point < 0x20000 else point >= 0x2F800):
                found |= COMPOSE
            found |= CONTROL if point < 0xA0 or point == 0xFEFF else VISIBLE
            at += length
        flags[row] = found


@njit(f"i8({TEXT})", nogil=True, cache=True)
def count_unwanted(data):  # type: ignore[no-untyped-def]
    """At least as many as `clean` makes changes."""
    count = 0
    for at in range(len(data)):
        byte = data[at]
        count += ((byte < 0x20) & (byte != 0x0A) & (byte != 0x09)) | (byte == 0x7F) | (byte == 0xC2) | (byte == 0xEF)
    return count


@njit(f"i8({TEXT}, {OFFSETS}, u1[::1], u1[::1], i8[::1], i8[:, ::1], i8[::1])", nogil=True, cache=True)
def clean(data, offsets, flags, out, out_offsets, spans, counts):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Copy texts with LF for CRLF, CR, VT and FF, without other control characters (C0 but tab, DEL, C1, U+FEFF).

    `spans` gets (row, start, end, length, 0 for line ends or 1 for controls) of each change, in bytes of the old text;
    neighbouring controls are one change. `counts` gets how many changes. Returns the bytes written. `out` needs len(data) bytes.
    """
    to = changes = 0
    out_offsets[0] = 0
    for row in range(len(offsets) - 1):
        start, at, end = offsets[row], offsets[row], offsets[row + 1]
        if flags[row] & (LINE_ENDS | CONTROL) == 0:
            out[to : to + end - start] = data[start:end]
            to += end - start
            at = end
        while at < end:
            byte = data[at]
            kind, length = 0, 1
            if 0x0B <= byte <= 0x0D:
                if byte == 0x0D and at + 1 < end and data[at + 1] == 0x0A:
                    length = 2
                out[to] = 0x0A
                to += 1
            elif (byte < 0x20 and not 0x09 <= byte <= 0x0A) or byte == 0x7F:
                kind = 1
            elif byte == 0xC2 and data[at + 1] < 0xA0:
                kind, length = 1, 2
            elif byte == 0xEF and data[at + 1] == 0xBB and data[at + 2] == 0xBF:
                kind, length = 1, 3
            else:
                out[to] = byte
                to += 1
                at += 1
                continue
            last = changes - 1
            if kind == 1 and changes and spans[last, 0] == row and spans[last, 4] == 1 and spans[last, 2] == at - start:
                spans[last, 2] += length
            else:
                spans[changes, 0], spans[changes, 1], spans[changes, 2] = row, at - start, at - start + length
                spans[changes, 3], spans[changes, 4] = 1 - kind, kind
                changes += 1
            at += length
        out_offsets[row + 1] = to
    counts[0] = changes
    return to


@lru_cache(maxsize=1)
def _lower() -> NDArray[np.uint16]:
    """The lower case of each code point below U+10000 that is as long in UTF-8; of others themselves."""
    table = np.arange(0x10000, dtype=np.uint16)
    for point in [*range(0x80), *range(0xC0, 0x600), *range(0x10A0, 0x1400), *range(0x1C80, 0x2200), *range(0x24B6, 0x2E00),
                  *range(0xA640, 0xAC00), *range(0xFF21, 0xFF3B)]:  # fmt: skip
        low = chr(point).lower()
        if len(low) == 1 and len(low.encode()) == len(chr(point).encode()):
            table[point] = ord(low)
    return table


def fold(data: Bytes, offsets: Offsets) -> tuple[Bytes, Offsets]:
    """Texts in lower case (`_lower`), with runs of ASCII white space as one space and none at the ends."""
    out, out_offsets = np.empty(len(data), np.uint8), np.empty(len(offsets), np.int64)
    written = _fold(data, offsets, _lower(), out, out_offsets)
    return out[:written], out_offsets


@njit(f"i8({TEXT}, {OFFSETS}, u2[::1], u1[::1], i8[::1])", nogil=True, cache=True)
def _fold(data, offsets, lower, out, out_offsets):  # type: ignore[no-untyped-def]
    to = 0
    out_offsets[0] = 0
    for row in range(len(offsets) - 1):
        first, gap, at, end = to, False, offsets[row], offsets[row + 1]
        while at < end:
            byte = data[at]
            if byte == 0x20 or 0x09 <= byte <= 0x0D:
                gap = to > first
                at += 1
                continue
            if gap:
                out[to] = 0x20
                to += 1
                gap = False
            if byte < 0x80:
                out[to] = byte | 0x20 if 0x41 <= byte <= 0x5A else byte
                to += 1
                at += 1
            elif byte < 0xE0:
                point = lower[(byte & 0x1F) << 6 | (data[at + 1] & 0x3F)]
                out[to], out[to + 1] = 0xC0 | point >> 6, 0x80 | (point & 0x3F)
                to += 2
                at += 2
            elif byte < 0xF0:
                point = lower[(byte & 0x0F) << 12 | (data[at + 1] & 0x3F) << 6 | (data[at + 2] & 0x3F)]
                out[to], out[to + 1], out[to + 2] = 0xE0 | point >> 12, 0x80 | (point >> 6 & 0x3F), 0x80 | (point & 0x3F)
                to += 3
                at += 3
            else:
                out[to : to + 4] = data[at : at + 4]
                to += 4
                at += 4
        out_offsets[row + 1] = to
    return to
