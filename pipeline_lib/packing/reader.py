"""Packed sequences as a map-style torch dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from pipeline_lib.errors import ConfigError
from pipeline_lib.packing.cache import Healer, cache_folder, read_chunks
from pipeline_lib.packing.chunk import ChunkFacts
from pipeline_lib.packing.growth import eras_after, gone_of, tombstones_of
from pipeline_lib.packing.order import Order
from pipeline_lib.packing.sequences import PackedSequence, SequenceReader

if TYPE_CHECKING:
    from pipeline_lib.workspace.artifact import Artifact
    from pipeline_lib.workspace.workspace import Workspace

IGNORED = -100  # the label that no loss looks at
BLOCK = 4096  # positions that are looked up together


class PackedDataset(Dataset[dict[str, torch.Tensor]]):
    """Sequence i as tensors of length `sequence_length`.

    - `input_ids` int64[L], free places filled with the padding token;
    - `position_ids` int64[L], starting at 0 at each piece of a document and at the padding;
    - `labels` int64[L] = input_ids, -100 on padding and on spans without loss; not shifted (the model shifts);
    - `document_lengths` int64[pieces (+ 1 for the padding)], summing to L, for block-diagonal masks;
    - `document_rows` int64[as above]: rows of the table `rows`, -1 for the padding.
    """

    def __init__(
        self,
        folder: Path,
        chunks: Path,
        side: str,
        *,
        heal: Callable[[str, int], ChunkFacts] | None = None,
        dead: np.ndarray | None = None,
        gone: np.ndarray | None = None,
    ) -> None:
        self.sequences = SequenceReader(folder, read_chunks([chunks]), side, heal=heal, dead=dead, gone=gone)

    @classmethod
    def of(cls, workspace: Workspace, filled: Artifact, side: str) -> PackedDataset:
        """A side of the cache that a `fill_gaps` artifact vouches for; a chunk that is damaged meanwhile is made again.

        It is a snapshot: what is added to the cache later is not in it (see `later_eras`).
        """
        folder = cache_folder(workspace, filled.details["cache"])
        heal, dead = Healer.of(workspace, filled), tombstones_of(filled)
        return cls(folder, filled.file("chunks"), side, heal=heal, dead=dead, gone=gone_of(filled, side))

    def later_eras(self) -> list[Mapping[str, Any]]:
        """What was added to the cache since this snapshot, oldest first (`growth.eras_after`); cheap, for between steps."""
        return eras_after(self.sequences.folder)

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        settings = self.sequences.settings
        return as_tensors(self.sequences[int(index)], settings.sequence_length, settings.pad_id)

    def documents(self, index: int) -> list[tuple[int, int, int]]:
        """The pieces of a sequence: (row of the table `rows`, token offset in the document, tokens)."""
        found = self.sequences[int(index)]
        return list(zip(found.doc_row.tolist(), found.doc_off.tolist(), found.doc_len.tolist(), strict=True))


def refuse_place(who: str, position: int, rank: int, world: int) -> None:
    """Raise ConfigError where no order has such a position, or no world such a rank."""
    if position < 0 or not 0 <= rank < world:
        fix = "position ≥ 0, and 0 ≤ rank < world"
        raise ConfigError(f"rank {rank} of {world} at position {position} cannot be", where=who, fix=fix)


class PositionSampler(Sampler[int]):
    """Indices for a `DataLoader`, from a position on: of every `world` positions the one of this rank.

    All ranks together read the positions in order, whatever their number: a training may go on with another `world`. One integer,
    the position (the number of sequences all ranks have read), is all there is to save.
    """

    def __init__(self, order: Order, *, position: int = 0, stop: int | None = None, rank: int = 0, world: int = 1) -> None:
        refuse_place("PositionSampler", position, rank, world)
        self.order, self.position, self.stop, self.rank, self.world = order, position, stop, rank, world

    def __iter__(self) -> Iterator[int]:
        """Endless without `stop` (the position before which it ends: a fraction of an epoch, or several)."""
        position = self.position
        while self.stop is None or position < self.stop:
            count = BLOCK if self.stop is None else min(BLOCK, self.stop - position)
            ours = np.arange(position, position + count) % self.world == self.rank
            yield from self.order.at(position, count)[ours].tolist()
            position += count


def as_tensors(sequence: PackedSequence, length: int, pad_id: int) -> dict[str, torch.Tensor]:
    """One sequence padded to `length`; keys and meaning as in `PackedDataset`."""
    used = len(sequence.tokens)
    tokens = np.full(length, pad_id, np.int64)
    tokens[:used] = sequence.tokens
    labels = np.full(length, IGNORED, np.int64)
    labels[:used] = sequence.tokens
    for start, end in sequence.no_loss:
        labels[start:end] = IGNORED
    lengths, rows = sequence.doc_len.astype(np.int64), sequence.doc_row
    if used < length:
        lengths, rows = np.append(lengths, length - used), np.append(rows, -1)
    starts = np.cumsum(lengths) - lengths
    positions = np.arange(length, dtype=np.int64) - np.repeat(starts, lengths)
    arrays = {"input_ids": tokens, "position_ids": positions, "labels": labels, "document_lengths": lengths}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {**tensors, "document_rows": torch.tensor(rows)}  # a copy: the rows of a chunk cannot be written to
