"""Random access to packed sequences as numpy arrays, every chunk verified before its first token is used. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike
from pyarrow import ipc

from pipeline_lib.errors import DamagedError
from pipeline_lib.packing.buffers import BUFFERS_OF_A_LIST, OFFSETS, VALUES, find_buffers
from pipeline_lib.packing.cache import as_noted
from pipeline_lib.packing.chunk import ChunkFacts, ChunkSettings, read_header, settings_in
from pipeline_lib.tables.ids import is_in_sorted

FIX = "`millrace cache fill` makes it again"


@dataclass(slots=True)
class PackedSequence:
    """One packed sequence. Pieces of documents lie one after the other; the rest of the sequence is free."""

    tokens: np.ndarray  # uint16[used] (uint32 for vocabularies beyond 65,536), used ≤ sequence_length
    doc_len: np.ndarray  # int32[pieces], sums to used
    no_loss: np.ndarray  # int32[spans, 2]: start and end of tokens that are read but not learned
    _chunk: Chunk
    _pieces: Any  # which of the chunk's pieces: a slice, or int64[pieces]

    @property
    def doc_row(self) -> np.ndarray:
        """int64[pieces]: row of the table `rows`."""
        return np.asarray(self._chunk.provenance[0][self._pieces])

    @property
    def doc_off(self) -> np.ndarray:
        """int64[pieces]: where the piece starts in its document, in tokens."""
        return np.asarray(self._chunk.provenance[1][self._pieces])


class Chunk:
    """A chunk mapped into memory, its bytes digested: tokens are decoded by record batch, the other columns once, when
    they are first asked for.

    Raises:
        DamagedError: the file is missing or is not what was committed.
    """

    def __init__(self, facts: ChunkFacts, folder: Path) -> None:
        path = facts.file(folder)
        try:
            mapped = pa.memory_map(str(path))
        except FileNotFoundError:
            raise DamagedError("file is missing", where=str(path), fix=FIX) from None
        except OSError as error:
            raise DamagedError(f"file cannot be read ({error})", where=str(path), fix=FIX) from error
        self.data = mapped.read_buffer()
        if not facts.is_whole(memoryview(self.data)):
            raise DamagedError("bytes differ from what was committed", where=str(path), fix=FIX)
        schema = ipc.open_file(self.data).schema
        header = read_header(schema, str(path))
        self.settings = settings_in(header)
        self.names = schema.names
        self.codec = None if self.settings.codec == "none" else pa.Codec(self.settings.codec)
        self.batch_rows = int(header["batch_rows"])
        self.places, self.values = find_buffers(memoryview(self.data), compressed=self.codec is not None)
        self.planes = [self._buffer_of("tokens", VALUES)]
        if "tokens_high" in schema.names:
            self.planes.append(self._buffer_of("tokens_high", VALUES))

    def _buffer_of(self, column: str, part: int) -> int:
        return int(self.names.index(column)) * BUFFERS_OF_A_LIST + part

    def _decode(self, number: int, buffer: int) -> pa.Buffer:
        return self._decoded(*self.places[number, buffer].tolist())

    def _decoded(self, at: int, size: int, decoded: int) -> pa.Buffer:
        stored = self.data.slice(at, size)
        return stored if decoded < 0 or self.codec is None else self.codec.decompress(stored, decoded)

    def _lists(self, column: str, item: DTypeLike) -> tuple[np.ndarray, np.ndarray]:
        """Starts (int64[sequences + 1]) and values of a list column, over the whole chunk."""
        offsets, values = self._buffer_of(column, OFFSETS), self._buffer_of(column, VALUES)
        counts = self.values[:, self.names.index(column)].tolist()
        lengths = [np.diff(np.frombuffer(self._decode(number, offsets), np.int32)) for number in range(len(counts))]
        parts = [np.frombuffer(self._decode(number, values), item, count) for number, count in enumerate(counts)]
        return np.append(0, np.cumsum(np.concatenate(lengths), dtype=np.int64)), np.concatenate(parts)

    @cached_property
    def lengths(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens before each sequence int64[sequences + 1], pieces before it int64[sequences + 1], doc_len int32[pieces])."""
        starts, doc_len = self._lists("doc_len", np.int32)
        return np.append(0, np.cumsum(doc_len, dtype=np.int64))[starts], starts, doc_len

    @cached_property
    def no_loss(self) -> tuple[np.ndarray, np.ndarray]:
        """(numbers before each sequence int64[sequences + 1], starts and ends of spans int32)."""
        return self._lists("no_loss", np.int32)

    @cached_property
    def provenance(self) -> tuple[np.ndarray, np.ndarray]:
        """doc_row and doc_off of all pieces, int64."""
        return self._lists("doc_row", np.int64)[1], self._lists("doc_off", np.int64)[1]

    def batch(self, number: int) -> np.ndarray:
        """All tokens of a record batch, uint16 or uint32."""
        return self._tokens(int(self.values[number, 0]), *self.places[number, self.planes].tolist())

    def batches(self) -> Iterator[np.ndarray]:
        """All tokens, a record batch at a time."""
        counts, places = self.values[:, 0].tolist(), self.places[:, self.planes].tolist()  # `tokens` is the first column
        for count, planes in zip(counts, places, strict=True):
            yield self._tokens(count, *planes)

    def _tokens(self, count: int, low: list[int], high: list[int] | None = None) -> np.ndarray:
        tokens = np.frombuffer(self._decoded(*low), np.uint16, count)
        if high is None:
            return tokens
        return tokens | (np.frombuffer(self._decoded(*high), np.uint8, count).astype(np.uint32) << np.uint32(16))

    def sequence(self, row: int) -> PackedSequence:
        """Sequence `row` of the chunk."""
        token_starts, piece_starts, doc_len = self.lengths
        span_starts, spans = self.no_loss
        number = row // self.batch_rows
        base = int(token_starts[number * self.batch_rows])
        tokens = self.batch(number)[int(token_starts[row]) - base : int(token_starts[row + 1]) - base]
        pieces = slice(int(piece_starts[row]), int(piece_starts[row + 1]))
        silent = spans[span_starts[row] : span_starts[row + 1]].reshape(-1, 2)
        return PackedSequence(tokens, doc_len[pieces], silent, self, pieces)


def without(sequence: PackedSequence, dead: np.ndarray) -> PackedSequence:
    """A sequence without the pieces of tombstones; what is behind them moves up.

    Args:
        sequence: as it is packed.
        dead: int64, ascending: rows that are tombstones.
    """
    alive = ~is_in_sorted(sequence.doc_row, dead)
    if alive.all():
        return sequence
    stays = np.repeat(alive, sequence.doc_len)
    learned = np.ones(len(stays), bool)
    for start, end in sequence.no_loss:
        learned[start:end] = False
    edges = np.flatnonzero(np.diff(np.concatenate(([1], learned[stays], [1]))))  # learned | not learned | learned …
    pieces = np.arange(sequence._pieces.start, sequence._pieces.stop)[alive]
    return PackedSequence(
        sequence.tokens[stays], sequence.doc_len[alive], edges.astype(np.int32).reshape(-1, 2), sequence._chunk, pieces
    )


class SequenceReader:
    """The sequences of one side, 0…len-1 in the order of the chunks.

    Opening reads the list of chunks only. A chunk is mapped into memory and digested when it is first touched; one that is not
    what was committed is made again by `heal` where that is given, and refused otherwise. Picklable: another process maps for
    itself.

    Args:
        folder: of the cache; chunks may name folders beside it.
        chunks: as `fill_gaps` published them; this list is the snapshot that is read, whatever is added to the cache meanwhile.
        side: whose sequences.
        heal: makes a chunk again.
        dead: int64, ascending: rows that are tombstones; their tokens are left out.
        gone: int64, ascending: sequences (in the order of the chunks) that hold nothing else; they are not counted.
    """

    def __init__(
        self,
        folder: Path,
        chunks: Sequence[ChunkFacts],
        side: str,
        *,
        heal: Callable[[str, int], ChunkFacts] | None = None,
        dead: np.ndarray | None = None,
        gone: np.ndarray | None = None,
    ) -> None:
        self.folder, self.side, self.heal, self.dead, self.gone = folder, side, heal, dead, gone
        self.chunks = [facts for facts in chunks if facts.side == side]
        self.ends = np.cumsum([facts.sequences for facts in self.chunks], dtype=np.int64)
        self._open: dict[int, Chunk] = {}
        packed = int(self.ends[-1]) if len(self.ends) else 0
        self._order = np.delete(np.arange(packed), gone) if gone is not None and len(gone) else None
        self._length = packed if self._order is None else len(self._order)

    def __len__(self) -> int:
        return self._length

    def __reduce__(self) -> tuple[object, ...]:
        made = partial(SequenceReader, heal=self.heal, dead=self.dead, gone=self.gone)
        return (made, (self.folder, self.chunks, self.side))

    @property
    def settings(self) -> ChunkSettings:
        """Sequence length, vocabulary and special ids, as the first chunk says."""
        if not self.chunks:
            raise DamagedError(f"the side {self.side!r} has no chunk", where=str(self.folder))
        return self.chunk(0).settings

    def __getitem__(self, index: int) -> PackedSequence:
        """Sequence `index`.

        Raises:
            IndexError: there is none.
            DamagedError: its chunk is missing or is not what was committed.
        """
        at, row = self.place(index)
        found = self.chunk(at).sequence(row)
        return found if self.dead is None or not len(self.dead) else without(found, self.dead)

    def place(self, index: int) -> tuple[int, int]:
        """Where sequence `index` lies: the number of its chunk among `chunks`, and its place in the chunk.

        Raises:
            IndexError: there is none.
        """
        if not 0 <= index < self._length:
            raise IndexError(index)
        if self._order is not None:
            index = int(self._order[index])
        at = int(self.ends.searchsorted(index, side="right"))
        return at, index - (int(self.ends[at - 1]) if at else 0)

    def index(self, at: int, row: int) -> int | None:
        """The sequence that lies in place `row` of chunk `at`; None when it left the order."""
        packed = row + (int(self.ends[at - 1]) if at else 0)
        if self._order is None:
            return packed
        found = int(self._order.searchsorted(packed))
        return found if found < self._length and self._order[found] == packed else None

    def scan(self) -> Iterator[np.ndarray]:
        """The tokens of all chunks as they are packed, a record batch at a time; dtype as in `PackedSequence`."""
        for at in range(len(self.chunks)):
            yield from self.chunk(at).batches()

    def chunk(self, at: int) -> Chunk:
        """Chunk number `at` of this side, checked when it is first touched."""
        if at not in self._open:
            facts = self.chunks[at]
            try:
                self._open[at] = self._opened(facts)
            except DamagedError:
                if self.heal is None:
                    raise
                self.chunks[at] = self.heal(facts.side, facts.chunk)
                self._open[at] = self._opened(self.chunks[at])
        return self._open[at]

    def _opened(self, facts: ChunkFacts) -> Chunk:
        try:
            return Chunk(facts, self.folder)
        except DamagedError:
            (noted,) = as_noted(self.folder, [facts])
            if noted == facts:
                raise
            return Chunk(noted, self.folder)
