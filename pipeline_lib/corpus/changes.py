"""Changes of texts as data: which bytes of the original stand for which bytes now, also after several steps.

A change is a row of `edits`: bytes `start` to `end` of the original became `length` bytes. What lies between two changes is as it
was, so a place in the text of today leads back to its bytes (`original`). Of a text that was taken out of a page (`extract`) the
other rows count in what was taken out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from pipeline_lib.corpus.kernels import OFFSETS, TEXT
from pipeline_lib.tables.buffers import Bytes, Offsets, text_buffers
from pipeline_lib.tables.schemas import EDITS

KINDS = ("extract", "mojibake", "line_ends", "control", "nfc", "email", "ip", "phone", "key")
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Changes:
    """Changes of several texts, sorted by row and start."""

    row: Numbers
    start: Numbers  # bytes of the text before
    end: Numbers
    length: Numbers  # bytes of the text after
    kind: NDArray[np.uint8]  # place in `KINDS`

    def __len__(self) -> int:
        return len(self.row)

    def edits(self, ids: pa.Array) -> pa.Table:
        """Rows of `edits`; ids: doc_id of each row."""
        stage = pa.repeat(pa.scalar("ingest"), len(self))
        kinds = pa.array(KINDS).take(pa.array(self.kind))
        return pa.table([ids.take(pa.array(self.row)), stage, self.start, self.end, kinds, self.length], schema=EDITS)


_NONE = np.empty(0, np.int64)
NOTHING = Changes(_NONE, _NONE, _NONE, _NONE, np.empty(0, np.uint8))


def one_kind(row: Numbers, start: Numbers, end: Numbers, length: Numbers, kind: str) -> Changes:
    """Changes of one kind."""
    return Changes(row, start, end, length, np.full(len(row), KINDS.index(kind), np.uint8))


def then(first: Changes, second: Changes) -> Changes:
    """Both steps as one: changes that touch the same bytes become one, of the kind that touches most of them."""
    if not len(second) or not len(first):
        return first if len(first) else second
    room = len(first) + len(second)
    row, start, end, length = (np.empty(room, np.int64) for _ in range(4))
    kind = np.empty(room, np.uint8)
    a, b = ((c.row, c.start, c.end, c.length, c.kind) for c in (first, second))
    count = _then(*a, *b, row, start, end, length, kind)
    return Changes(row[:count], start[:count], end[:count], length[:count], kind[:count])


_ONE = "i8[::1], i8[::1], i8[::1], i8[::1], u1[::1]"


@njit(f"i8({_ONE}, {_ONE}, {_ONE})", nogil=True, cache=True)
def _then(  # type: ignore[no-untyped-def]  # noqa: PLR0917
    a_row, a_start, a_end, a_length, a_kind, b_row, b_start, b_end, b_length, b_kind, row, start, end, length, kind
):
    """Merge by the text between the two steps: `moved` is how far a byte of the original has been moved there."""
    i = j = count = 0
    while i < len(a_row) or j < len(b_row):
        here = a_row[i] if j >= len(b_row) or (i < len(a_row) and a_row[i] <= b_row[j]) else b_row[j]
        moved = 0
        while (i < len(a_row) and a_row[i] == here) or (j < len(b_row) and b_row[j] == here):
            has_a, has_b = i < len(a_row) and a_row[i] == here, j < len(b_row) and b_row[j] == here
            first = a_start[i] + moved if has_a and (not has_b or a_start[i] + moved <= b_start[j]) else b_start[j]
            row[count], start[count] = here, first - moved
            last, grown, empty, widest = first, 0, True, -1
            while True:
                if i < len(a_row) and a_row[i] == here and (a_start[i] + moved < last or (empty and a_start[i] + moved == first)):
                    last = max(last, a_start[i] + moved + a_length[i])
                    moved += a_length[i] - (a_end[i] - a_start[i])
                    if a_length[i] > widest:
                        kind[count], widest = a_kind[i], a_length[i]
                    i += 1
                elif j < len(b_row) and b_row[j] == here and (b_start[j] < last or (empty and b_start[j] == first)):
                    last = max(last, b_end[j])
                    grown += b_length[j] - (b_end[j] - b_start[j])
                    if b_end[j] - b_start[j] >= widest:
                        kind[count], widest = b_kind[j], b_end[j] - b_start[j]
                    j += 1
                else:
                    break
                empty = False
            end[count], length[count] = last - moved, last - first + grown
            count += 1
    return count


def original(place: int, edits: pa.Table) -> tuple[int, int]:
    """The bytes of the original that a byte of the text came from: (start, end).

    Args:
        place: byte of the text.
        edits: the rows of one document, of the stage ingest.
    """
    moved = 0
    for row in edits.sort_by("start").to_pylist():
        if row["kind"] == "extract":  # nobody knows which byte of a page a character was
            return 0, row["end"]
    for row in edits.sort_by("start").to_pylist():
        begin = row["start"] + moved
        if place < begin:
            break
        if place < begin + row["length"]:
            return row["start"], row["end"]
        moved += row["length"] - (row["end"] - row["start"])
    return place - moved, place - moved + 1


def spliced(data: Bytes, offsets: Offsets, changes: Changes, tokens: list[bytes]) -> tuple[Bytes, Offsets]:
    """Texts in which every change is made: its bytes become the token of its kind (in the order of `KINDS`)."""
    flat = np.frombuffer(b"".join(tokens), np.uint8)
    bounds = np.append(0, np.cumsum([len(token) for token in tokens])).astype(np.int64)
    size = len(data) + int((changes.length - (changes.end - changes.start)).clip(0).sum())
    out, out_offsets = np.empty(size, np.uint8), np.empty(len(offsets), np.int64)
    written = _splice(data, offsets, changes.row, changes.start, changes.end, changes.kind, flat.copy(), bounds, out, out_offsets)
    return out[:written], out_offsets


@njit(f"i8({TEXT}, {OFFSETS}, i8[::1], i8[::1], i8[::1], u1[::1], u1[::1], i8[::1], u1[::1], i8[::1])", nogil=True, cache=True)
def _splice(data, offsets, row, start, end, kind, tokens, bounds, out, out_offsets):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    to = change = 0
    out_offsets[0] = 0
    for number in range(len(offsets) - 1):
        at = offsets[number]
        while change < len(row) and row[change] == number:
            stop = offsets[number] + start[change]
            out[to : to + stop - at] = data[at:stop]
            to += stop - at
            first, last = bounds[kind[change]], bounds[kind[change] + 1]
            out[to : to + last - first] = tokens[first:last]
            to += last - first
            at = offsets[number] + end[change]
            change += 1
        out[to : to + offsets[number + 1] - at] = data[at : offsets[number + 1]]
        to += offsets[number + 1] - at
        out_offsets[number + 1] = to
    return to


def by_line(before: list[str], after: list[str], rows: Numbers, kind: str) -> Changes:
    """What differs between texts, as one change a line from the first to the last byte that differs.

    A Python loop over the lines of texts that changed; the number of lines must be the same, else the text is one line.
    """
    row, start, old, new = [], [], [], []
    for number, was, now in zip(rows.tolist(), before, after, strict=True):
        if was == now:
            continue
        lines = was.split("\n"), now.split("\n")
        pairs = zip(*lines, strict=True) if len(lines[0]) == len(lines[1]) else [(was, now)]
        at = 0
        for one, other in pairs:
            data = one.encode()
            if one != other:
                row.append(number)
                start.append(at)
                old.append(data)
                new.append(other.encode())
            at += len(data) + 1
    if not row:
        return NOTHING
    same_start, same_end = np.empty(len(row), np.int64), np.empty(len(row), np.int64)
    columns = [text_buffers(pa.array(texts, pa.large_binary())) for texts in (old, new)]
    _same(*columns[0], *columns[1], same_start, same_end)
    sizes = [np.diff(offsets) for _, offsets in columns]
    first = np.array(start, np.int64)
    return one_kind(
        np.array(row, np.int64), first + same_start, first + sizes[0] - same_end, sizes[1] - same_start - same_end, kind
    )


@njit(f"void({TEXT}, {OFFSETS}, {TEXT}, {OFFSETS}, i8[::1], i8[::1])", nogil=True, cache=True)
def _same(a, a_offsets, b, b_offsets, same_start, same_end):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """How many bytes at the start and at the end two texts share, in whole characters."""
    for row in range(len(a_offsets) - 1):
        a_at, a_end, b_at, b_end = a_offsets[row], a_offsets[row + 1], b_offsets[row], b_offsets[row + 1]
        most = min(a_end - a_at, b_end - b_at)
        n = 0
        while n < most and a[a_at + n] == b[b_at + n]:
            n += 1
        while n > 0 and ((a_at + n < a_end and 0x80 <= a[a_at + n] < 0xC0) or (b_at + n < b_end and 0x80 <= b[b_at + n] < 0xC0)):
            n -= 1
        same_start[row] = n
        k = 0
        while k < most - n and a[a_end - 1 - k] == b[b_end - 1 - k]:
            k += 1
        while k > 0 and 0x80 <= a[a_end - k] < 0xC0:
            k -= 1
        same_end[row] = k
