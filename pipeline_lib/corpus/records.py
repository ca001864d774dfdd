"""Records of a stream of bytes, in bounded memory: complete ones with their bounds, broken off or endless ones as problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.corpus.bounds import COUNT, MODE, NUMBER, USED, gather
from pipeline_lib.corpus.files import SourceFile
from pipeline_lib.corpus.raw import BOMB, CUT_FILE, TOO_LONG, problem_row
from pipeline_lib.corpus.streams import BrokenStreamError, TooLargeError
from pipeline_lib.tables.buffers import text_column

BOM = b"\xef\xbb\xbf"
ROOM = 1 << 16  # records found at a time

Search = Callable[..., None]
"""A kernel of `bounds.py`."""


@dataclass(frozen=True)
class Found:
    """Complete records of a block."""

    data: bytes
    starts: NDArray[np.int64]  # in `data`
    ends: NDArray[np.int64]
    shape: NDArray[np.uint8]  # what the search told of each
    index: NDArray[np.int64]  # number of each in the file
    offset: int  # of `data` in the decompressed file

    def __len__(self) -> int:
        return len(self.starts)

    def record(self, row: int | np.integer[Any]) -> bytes:
        """The bytes of one record."""
        return self.data[self.starts[row] : self.ends[row]]

    def rows(self, chosen: NDArray[np.bool_]) -> Found:
        """Some of the records."""
        return Found(self.data, self.starts[chosen], self.ends[chosen], self.shape[chosen], self.index[chosen], self.offset)

    def places(self) -> dict[str, Any]:
        """The columns `index`, `offset` and `length` of `RAW`."""
        return {"index": self.index, "offset": self.starts + self.offset, "length": self.ends - self.starts}

    def joined(self, separator: bytes = b"") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The records one after the other, each followed by a separator of at most one byte, and where each begins."""
        out = np.empty(int((self.ends - self.starts).sum()) + len(self) * len(separator), np.uint8)
        offsets = np.empty(len(self) + 1, np.int64)
        view = np.frombuffer(self.data, np.uint8)
        gather(view, self.starts, self.ends, out, offsets, separator[0] if separator else -1)
        return out, offsets

    def texts(self) -> pa.Array:
        """The records as they are, large_binary."""
        return text_column(*self.joined(), pa.large_binary())


def records(
    file: SourceFile, stream: Iterator[bytes], search: Search, *, longest: int, mode: int = 0, lines: bool = True
) -> Iterator[Found | pa.RecordBatch]:
    """All records of a stream; a batch of `RAW` is one that cannot be read.

    Args:
        file: whose bytes these are; its `start` and `first` say where they begin.
        stream: of `streams.blocks`.
        search: which kernel finds the records.
        longest: a record of more bytes is a problem; with `lines` the next line is looked for, else the rest of the file is
            given up.
        mode: what the search wants to know (`bounds.MODE`).
        lines: whether a record ends with its line.
    """
    state = np.zeros(4, np.int64)
    state[MODE] = mode
    starts, ends, numbers = (np.empty(ROOM, np.int64) for _ in range(3))
    shape = np.empty(ROOM, np.uint8)
    number, offset, rest = file.first, file.start, b""
    lost = False  # inside a record that is too long
    broken: BrokenStreamError | None = None
    final = False
    while not final:
        try:
            block = next(stream, b"")
        except BrokenStreamError as error:
            block, broken = b"", error
        final = not block
        if lost and not final:
            cut = block.find(b"\n") + 1 if lines else 0
            offset += cut or len(block)
            if not cut:
                continue
            block, lost, number = block[cut:], False, number + 1
        data = rest + block
        if offset == 0 and data.startswith(BOM):
            data, offset = data[len(BOM) :], len(BOM)
        view = np.frombuffer(data, np.uint8)
        at, more = 0, True
        while more:
            search(view[at:], final and broken is None, starts, ends, numbers, shape, state)
            count = int(state[COUNT])
            if count:
                found = slice(count)
                yield Found(data, starts[found] + at, ends[found] + at, shape[found].copy(), numbers[found] + number, offset)
            at, number, more = at + int(state[USED]), number + int(state[NUMBER]), count == ROOM
        rest, offset = data[at:], offset + at
        if len(rest) > longest:
            yield problem_row(file, TOO_LONG, rest[:1000], number, offset)
            offset, rest, lost = offset + len(rest), b"", True
    if broken is not None:
        reason = BOMB if isinstance(broken, TooLargeError) else CUT_FILE
        yield problem_row(file, reason, rest[:1000] or str(broken).encode(), number, offset)
