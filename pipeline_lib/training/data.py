"""From packed sequences to batches: which sequence is read at which position is a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline_lib.packing.order import sequences_at
from pipeline_lib.training.loss import IGNORED

Batch = dict[str, Tensor]


class Sequences(Protocol):
    """A map-style data set of packed sequences (`packing.reader.PackedDataset`)."""

    def __len__(self) -> int:
        """Sequences."""
        ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """input_ids, labels (not shifted, -100 where nothing is predicted) and position_ids, each int64[length]; where documents
        are known, document_rows and document_lengths, int64[pieces], of the pieces and of the padding (row -1)."""
        ...


def collate(items: Sequence[Mapping[str, Any]]) -> Batch:
    """Stack items into int64[batch, length] tensors; where documents are known, `rows` int32[batch, length] says whose a token is
    (-1: padding).

    The first token of a document is not predicted: what stands before it in the pack is another document. There is no attention
    mask on purpose (see `objective`).
    """
    names = ("input_ids", "labels", "position_ids")
    batch = {name: torch.stack([torch.as_tensor(item[name]) for item in items]).long() for name in names}
    batch["labels"] = batch["labels"].masked_fill(batch["position_ids"] == 0, IGNORED)
    if "document_rows" in items[0]:
        rows = [torch.repeat_interleave(item["document_rows"], item["document_lengths"]) for item in items]
        batch["rows"] = torch.stack(rows).int()
    return batch


class MicroBatches:
    """An endless stream of micro-batches from a position on. The position is the whole state: resuming costs nothing."""

    def __init__(self, data: Sequences, seed: int, micro_batch: int, position: int = 0) -> None:
        self.data, self.seed, self.micro_batch, self.position = data, seed, micro_batch, position

    def __iter__(self) -> Iterator[Batch]:
        position = self.position
        while True:
            chosen = sequences_at(len(self.data), self.seed, position, self.micro_batch)
            position += self.micro_batch
            yield collate([self.data[int(sequence)] for sequence in chosen])


def spread(data: Sequences, limit: int, batch: int) -> list[Batch]:
    """At most `limit` sequences spread evenly over a side, as batches: the same ones at every evaluation."""
    chosen = np.unique(np.linspace(0, len(data) - 1, num=min(limit, len(data))).round().astype(np.int64))
    return [collate([data[int(i)] for i in chosen[start : start + batch]]) for start in range(0, len(chosen), batch)]


class RandomSequences:
    """Uniform random tokens in packs of two documents: speed depends on shapes, not on text."""

    def __init__(self, vocabulary_size: int, sequence_length: int, sequences: int = 64) -> None:
        self.tokens = np.random.default_rng(0).integers(vocabulary_size, size=(sequences, sequence_length))
        half = sequence_length // 2
        self.positions = np.concatenate([np.arange(half), np.arange(sequence_length - half)])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index], "position_ids": self.positions}
