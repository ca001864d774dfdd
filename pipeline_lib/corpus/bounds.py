"""Compiled searches for the bounds of records in a block of bytes: lines, JSON values, CSV rows, paragraphs, pieces of a size.

Every kernel fills `starts` and `ends` (bytes in the block, end excluded) and stops when they are full, or where a record is not
complete yet unless the block is the last. `state` tells how far it came.
"""

from __future__ import annotations

from numba import njit

from pipeline_lib.corpus.kernels import TEXT

USED, COUNT, NUMBER, MODE = 0, 1, 2, 3
"""Places in `state`: bytes done with; records found; numbers gone by (blank lines have numbers too); kept between blocks."""
MOST_FIELDS = 255  # that `rows` counts

_OUT = "i8[::1], i8[::1], i8[::1], u1[::1], i8[::1]"  # starts, ends, numbers, shape, state


@njit(f"void({TEXT}, b1, {_OUT})", nogil=True, cache=True)
def lines(data, final, starts, ends, numbers, shape, state):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Lines that are not blank, without surrounding white space. `shape` is 1 for `{…}`."""
    count, at, size, number = 0, 0, len(data), 0
    used = 0
    while at < size and count < len(starts):
        stop = at
        while stop < size and data[stop] != 0x0A:
            stop += 1
        if stop == size and not final:
            break
        first, last = at, stop
        while first < last and (data[first] == 0x20 or 0x09 <= data[first] <= 0x0D):
            first += 1
        while last > first and (data[last - 1] == 0x20 or 0x09 <= data[last - 1] <= 0x0D):
            last -= 1
        if last > first:
            starts[count], ends[count], numbers[count] = first, last, number
            shape[count] = 1 if data[first] == 0x7B and data[last - 1] == 0x7D else 0
            count += 1
        at = used = min(stop + 1, size)
        number += 1
    state[USED], state[COUNT], state[NUMBER] = used, count, number


@njit(f"void({TEXT}, b1, {_OUT})", nogil=True, cache=True)
def values(data, final, starts, ends, numbers, shape, state):  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0915, PLR0917
    """JSON values one after the other, or the elements of one array. `state[MODE]`: 0 at the start, 1 no array, 2 in an array."""
    count, at, size = 0, 0, len(data)
    used = 0
    while at < size and count < len(starts):
        byte = data[at]
        if byte == 0x20 or 0x09 <= byte <= 0x0D or byte == 0x2C or (state[MODE] == 2 and byte == 0x5D):
            at += 1
            used = at
            continue
        if state[MODE] == 0:
            state[MODE] = 2 if byte == 0x5B else 1
            if byte == 0x5B:
                at += 1
                used = at
                continue
        start, depth, inside, done = at, 0, False, False
        while at < size:
            byte = data[at]
            if inside:
                if byte == 0x5C:
                    at += 1
                elif byte == 0x22:
                    inside = False
                    if depth == 0:
                        at += 1
                        done = True
                        break
            elif byte == 0x22:
                inside = True
            elif byte == 0x7B or byte == 0x5B:  # noqa: PLR1714 - numba
                depth += 1
            elif byte == 0x7D or byte == 0x5D:  # noqa: PLR1714
                if depth == 0:  # the end of the array that a bare value stands in
                    at += at == start
                    done = True
                    break
                depth -= 1
                if depth == 0:
                    at += 1
                    done = True
                    break
            elif depth == 0 and (byte == 0x2C or byte == 0x20 or 0x09 <= byte <= 0x0D):  # noqa: PLR1714
                done = True
                break
            at += 1
        at = min(at, size)
        if not done and not final:
            break
        starts[count], ends[count], numbers[count] = start, at, count
        shape[count] = 1 if done and data[start] == 0x7B and data[at - 1] == 0x7D else 0
        count += 1
        used = at
    state[USED], state[COUNT], state[NUMBER] = used, count, count


@njit(f"void({TEXT}, b1, {_OUT})", nogil=True, cache=True)
def rows(data, final, starts, ends, numbers, shape, state):  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0917
    """CSV rows that are not blank (RFC 4180). `state[MODE]` is the delimiter.

    `shape` counts the fields, at most `MOST_FIELDS`; 0: a quote that nothing closes up to the end of the file; its line is a row.
    """
    count, at, size = 0, 0, len(data)
    used = 0
    delimiter = state[MODE]
    while at < size and count < len(starts):
        start, fields, quoted, fresh, line_end, done = at, 1, False, True, -1, False
        while at < size:
            byte = data[at]
            if byte == 0x0A and line_end < 0:
                line_end = at
            if quoted:
                if byte == 0x22:
                    if at + 1 < size and data[at + 1] == 0x22:
                        at += 1
                    else:
                        quoted = False
            elif byte == 0x22 and fresh:
                quoted, fresh = True, False
            elif byte == delimiter:
                fields += 1
                fresh = True
            elif byte == 0x0A:
                done = True
                break
            else:
                fresh = False
            at += 1
        if not done and not final:
            break
        end = min(at, size)
        at = min(at + 1, size)
        if quoted and not done:
            end = line_end if line_end >= 0 else size
            at, fields = min(end + 1, size), 0
        used = at
        if end > start and data[end - 1] == 0x0D:
            end -= 1
        if end > start:
            starts[count], ends[count], numbers[count] = start, end, count
            shape[count] = min(fields, MOST_FIELDS)
            count += 1
    state[USED], state[COUNT], state[NUMBER] = used, count, count


@njit(f"void({TEXT}, b1, {_OUT})", nogil=True, cache=True)
def paragraphs(data, final, starts, ends, numbers, shape, state):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Runs of lines that are not blank."""
    count, at, size, used = 0, 0, len(data), 0
    start, end = -1, -1
    while at < size and count < len(starts):
        stop, blank = at, True
        while stop < size and data[stop] != 0x0A:
            blank = blank and (data[stop] == 0x20 or 0x09 <= data[stop] <= 0x0D)
            stop += 1
        if stop == size and not final:
            break
        if not blank:
            if start < 0:
                start = at
            end = stop - (data[stop - 1] == 0x0D)
        elif start >= 0:
            starts[count], ends[count], numbers[count] = start, end, count
            count += 1
            start = -1
        at = min(stop + 1, size)
        if start < 0:
            used = at
    if start >= 0 and final and at >= size and count < len(starts):
        starts[count], ends[count], numbers[count] = start, end, count
        count += 1
        used = size
    state[USED], state[COUNT], state[NUMBER] = used, count, count


@njit(f"void({TEXT}, b1, {_OUT})", nogil=True, cache=True)
def pieces(data, final, starts, ends, numbers, shape, state):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Pieces of at most `state[MODE]` bytes that end at a line end, else at a space, else between characters."""
    count, at, size, used = 0, 0, len(data), 0
    most = state[MODE]
    while at < size and count < len(starts):
        limit = at + most
        if limit >= size and not final:
            break
        cut = min(limit, size)
        if cut < size:
            line, space, back = -1, -1, cut
            while back > at + most // 2:
                if data[back - 1] == 0x0A:
                    line = back
                    break
                if space < 0 and data[back - 1] == 0x20:
                    space = back
                back -= 1
            if line > 0:
                cut = line
            elif space > 0:
                cut = space
            else:
                while cut > at + 1 and cut > limit - 4 and 0x80 <= data[cut] < 0xC0:
                    cut -= 1
        starts[count], ends[count], numbers[count] = at, cut, count
        count += 1
        at = used = cut
    state[USED], state[COUNT], state[NUMBER] = used, count, count


@njit(f"void({TEXT}, i8[::1], i8[::1], u1[::1], i8[::1], i8)", nogil=True, cache=True)
def gather(data, starts, ends, out, offsets, separator):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """Copy records one after the other, each followed by a byte (negative: none); `offsets` gets where each begins in `out`."""
    to = 0
    offsets[0] = 0
    for row in range(len(starts)):
        size = ends[row] - starts[row]
        out[to : to + size] = data[starts[row] : ends[row]]
        to += size
        if separator >= 0:
            out[to] = separator
            to += 1
        offsets[row + 1] = to
