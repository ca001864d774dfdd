"""Compiled passes over the bytes of texts: find what is wrong with them, mend line ends and control characters, fold for hashing.

Every kernel reads Arrow buffers (`tables/buffers.py`), releases the GIL and has one explicit signature, so that it is compiled
once and loaded from numba's cache afterwards.
"""

from __future__ import annotations

from numba import njit

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


@njit(f"void({TEXT}, {OFFSETS}, u1[::1], i8[::1])", nogil=True, cache=True)
def inspect(data, offsets, flags, bad_at):  # type: ignore[no-untyped-def]
    """Fill `flags` (bits above) and `bad_at` (first byte that is not UTF-8, or -1) for every text.

    A text whose code points all lie below U+0300 is NFC (the quick check of UAX #15 is Yes for all of them), so only lead bytes
    ≥ 0xCC ask for composition.
    """
    for row in range(len(offsets) - 1):
        start, at, end, found = offsets[row], offsets[row], offsets[row + 1], 0
        bad_at[row] = -1
        while at < end:
            byte = data[at]
            if byte < 0x80:
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
            if byte >= 0xCC:
                found |= COMPOSE
            is_control = (byte == 0xC2 and data[at + 1] < 0xA0) or (
                byte == 0xEF and data[at + 1] == 0xBB and data[at + 2] == 0xBF
            )
            found |= CONTROL if is_control else VISIBLE
            at += length
        flags[row] = found


@njit(f"i8({TEXT}, {OFFSETS}, u1[::1], u1[::1], i8[::1], i8[:, ::1])", nogil=True, cache=True)
def clean(data, offsets, flags, out, out_offsets, spans):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Copy texts with LF for CRLF, CR, VT and FF, without other control characters (C0 but tab, DEL, C1, U+FEFF).

    `spans[row]` gets [first, end) of the line ends changed and of the controls removed, in bytes of the old text; -1: none.
    Returns the bytes written. `out` needs len(data) bytes.
    """
    to = 0
    out_offsets[0] = 0
    for row in range(len(offsets) - 1):
        start, at, end = offsets[row], offsets[row], offsets[row + 1]
        spans[row, :] = -1
        if flags[row] & (LINE_ENDS | CONTROL) == 0:
            out[to : to + end - start] = data[start:end]
            to += end - start
            at = end
        while at < end:
            byte = data[at]
            span, length = -1, 1
            if 0x0B <= byte <= 0x0D:
                span = 0
                if byte == 0x0D and at + 1 < end and data[at + 1] == 0x0A:
                    length = 2
                out[to] = 0x0A
                to += 1
            elif (byte < 0x20 and not 0x09 <= byte <= 0x0A) or byte == 0x7F:
                span = 2
            elif byte == 0xC2 and data[at + 1] < 0xA0:
                span, length = 2, 2
            elif byte == 0xEF and data[at + 1] == 0xBB and data[at + 2] == 0xBF:
                span, length = 2, 3
            else:
                out[to] = byte
                to += 1
            if span >= 0:
                if spans[row, span] < 0:
                    spans[row, span] = at - start
                spans[row, span + 1] = at - start + length
            at += length
        out_offsets[row + 1] = to
    return to


@njit(f"i8({TEXT}, {OFFSETS}, u1[::1], i8[::1])", nogil=True, cache=True)
def fold(data, offsets, out, out_offsets):  # type: ignore[no-untyped-def]
    """Copy texts with runs of ASCII white space as one space and none at the ends. Returns the bytes written."""
    to = 0
    out_offsets[0] = 0
    for row in range(len(offsets) - 1):
        first, gap = to, False
        for at in range(offsets[row], offsets[row + 1]):
            byte = data[at]
            if byte == 0x20 or 0x09 <= byte <= 0x0D:
                gap = to > first
                continue
            if gap:
                out[to] = 0x20
                to += 1
                gap = False
            out[to] = byte
            to += 1
        out_offsets[row + 1] = to
    return to


@njit(f"i8({TEXT}, i8[::1], i8[::1], i8[::1], u1[::1])", nogil=True, cache=True)
def lines(data, starts, ends, numbers, shape):  # type: ignore[no-untyped-def]
    """Find the lines of a block that are not blank: bounds without surrounding white space, and number (blank lines count).

    `shape[i]` is 1 where the line begins with `{` and ends with `}`. The arrays need one entry more than there are LFs.
    Returns how many lines were found.
    """
    count, at, size, number = 0, 0, len(data), 0
    while at < size:
        stop = at
        while stop < size and data[stop] != 0x0A:
            stop += 1
        first, last = at, stop
        while first < last and (data[first] == 0x20 or 0x09 <= data[first] <= 0x0D):
            first += 1
        while last > first and (data[last - 1] == 0x20 or 0x09 <= data[last - 1] <= 0x0D):
            last -= 1
        if last > first:
            starts[count], ends[count], numbers[count] = first, last, number
            shape[count] = 1 if data[first] == 0x7B and data[last - 1] == 0x7D else 0
            count += 1
        at = stop + 1
        number += 1
    return count
