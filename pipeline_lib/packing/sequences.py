"""Random access to packed sequences as numpy arrays, every chunk verified before its first token is used. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from pipeline_lib.errors import DamagedError
from pipeline_lib.packing.chunk import ChunkFacts, ChunkSettings, read_settings
from pipeline_lib.workspace.identity import bytes_digest


@dataclass(frozen=True)
class PackedSequence:
    """One packed sequence. Pieces of documents lie one after the other; the rest of the sequence is free."""

    tokens: np.ndarray  # int64[used], used ≤ sequence_length
    doc_len: np.ndarray  # int32[pieces], sums to used
    doc_row: np.ndarray  # int64[pieces]: row of the table `rows`
    doc_off: np.ndarray  # int64[pieces]: where the piece starts in its document, in tokens
    no_loss: np.ndarray  # int32[spans, 2]: start and end of tokens that are read but not learned


class SequenceReader:
    """The sequences of one side, 0…len-1 in the order of the chunks.

    Opening reads the list of chunks only. A chunk is mapped into memory and digested when it is first touched; one that is not
    what was committed is made again by `heal` where that is given, and refused otherwise. Picklable: another process maps for
    itself.
    """

    def __init__(
        self, folder: Path, chunks: Sequence[ChunkFacts], side: str, *, heal: Callable[[str, int], ChunkFacts] | None = None
    ) -> None:
        self.folder, self.side, self.heal = folder, side, heal
        self.chunks = [facts for facts in chunks if facts.side == side]
        self.ends = np.cumsum([facts.sequences for facts in self.chunks], dtype=np.int64)
        self._open: dict[int, tuple[ipc.RecordBatchFileReader, int]] = {}
        self._settings: ChunkSettings | None = None

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __reduce__(self) -> tuple[object, ...]:
        return (partial(SequenceReader, heal=self.heal), (self.folder, self.chunks, self.side))

    @property
    def settings(self) -> ChunkSettings:
        """Sequence length, vocabulary and special ids, as the first chunk says."""
        if not self.chunks:
            raise DamagedError(f"the side {self.side!r} has no chunk", where=str(self.folder))
        if self._settings is None:
            self._settings = read_settings(self._chunk(0)[0].schema, self.chunks[0].name)
        return self._settings

    def __getitem__(self, index: int) -> PackedSequence:
        """Sequence `index`.

        Raises:
            IndexError: there is none.
            DamagedError: its chunk is missing or is not what was committed.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        at = int(np.searchsorted(self.ends, index, side="right"))
        reader, batch_rows = self._chunk(at)
        row = index - (int(self.ends[at - 1]) if at else 0)
        batch = reader.get_batch(row // batch_rows)
        row %= batch_rows
        tokens = _values(batch, "tokens", row).astype(np.int64)
        if "tokens_high" in batch.schema.names:
            tokens |= _values(batch, "tokens_high", row).astype(np.int64) << 16
        doc_len, doc_row, doc_off = (_values(batch, name, row) for name in ("doc_len", "doc_row", "doc_off"))
        return PackedSequence(tokens, doc_len, doc_row, doc_off, _values(batch, "no_loss", row).reshape(-1, 2))

    def _chunk(self, at: int) -> tuple[ipc.RecordBatchFileReader, int]:
        if at not in self._open:
            facts = self.chunks[at]
            try:
                self._open[at] = _map(facts, self.folder)
            except DamagedError:
                if self.heal is None:
                    raise
                self.chunks[at] = self.heal(facts.side, facts.chunk)
                self._open[at] = _map(self.chunks[at], self.folder)
        return self._open[at]


def _map(facts: ChunkFacts, folder: Path) -> tuple[ipc.RecordBatchFileReader, int]:
    """Map a chunk and digest the mapped bytes, the ones that will be read."""
    path = facts.file(folder)
    fix = "`millrace cache fill` makes it again"
    try:
        mapped = pa.memory_map(str(path))
    except FileNotFoundError:
        raise DamagedError("file is missing", where=str(path), fix=fix) from None
    data = mapped.read_buffer()
    if data.size != facts.size or bytes_digest(memoryview(data)) != facts.file_digest:
        raise DamagedError("bytes differ from what was committed", where=str(path), fix=fix)
    reader = ipc.open_file(data, options=ipc.IpcReadOptions(use_threads=False))
    return reader, int(reader.schema.metadata[b"millrace.batch_rows"])


def _values(batch: pa.RecordBatch, name: str, row: int) -> np.ndarray:
    values: np.ndarray = batch.column(name)[row].values.to_numpy(zero_copy_only=False)
    return values
