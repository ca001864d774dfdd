"""Packed sequences as a map-style torch dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline_lib.packing.cache import read_chunks
from pipeline_lib.packing.chunk import ChunkFacts
from pipeline_lib.packing.sequences import PackedSequence, SequenceReader

IGNORED = -100  # the label that no loss looks at


class PackedDataset(Dataset[dict[str, torch.Tensor]]):
    """Sequence i as tensors of length `sequence_length`.

    - `input_ids` int64[L], free places filled with the padding token;
    - `position_ids` int64[L], starting at 0 at each piece of a document and at the padding;
    - `labels` int64[L] = input_ids, -100 on padding and on spans without loss; not shifted (the model shifts);
    - `document_lengths` int64[pieces (+ 1 for the padding)], summing to L, for block-diagonal masks.
    """

    def __init__(
        self,
        cache_folder: Path,
        chunks: Path,
        side: str,
        *,
        heal: Callable[[str, int], ChunkFacts] | None = None,
    ) -> None:
        self.sequences = SequenceReader(cache_folder, read_chunks([chunks]), side, heal=heal)

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        settings = self.sequences.settings
        return as_tensors(self.sequences[int(index)], settings.sequence_length, settings.pad_id)

    def documents(self, index: int) -> list[tuple[int, int, int]]:
        """The pieces of a sequence: (row of the table `rows`, token offset in the document, tokens)."""
        found = self.sequences[int(index)]
        return list(zip(found.doc_row.tolist(), found.doc_off.tolist(), found.doc_len.tolist(), strict=True))


def as_tensors(sequence: PackedSequence, length: int, pad_id: int) -> dict[str, torch.Tensor]:
    """One sequence padded to `length`; keys and meaning as in `PackedDataset`."""
    used = len(sequence.tokens)
    tokens = np.full(length, pad_id, np.int64)
    tokens[:used] = sequence.tokens
    labels = np.full(length, IGNORED, np.int64)
    labels[:used] = sequence.tokens
    for start, end in sequence.no_loss:
        labels[start:end] = IGNORED
    lengths = sequence.doc_len.astype(np.int64)
    if used < length:
        lengths = np.append(lengths, length - used)
    starts = np.cumsum(lengths) - lengths
    positions = np.arange(length, dtype=np.int64) - np.repeat(starts, lengths)
    arrays = {"input_ids": tokens, "position_ids": positions, "labels": labels, "document_lengths": lengths}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
