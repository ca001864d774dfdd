"""From packed sequences to batches: which sequence is read at which position is a pure function of seed and position."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Batch = dict[str, Tensor]
COLUMNS = ("input_ids", "labels", "position_ids")


class Sequences(Protocol):
    """A map-style data set of packed sequences (`packing.reader.PackedDataset`)."""

    def __len__(self) -> int:
        """Sequences."""
        ...

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """input_ids, labels (not shifted, -100 where nothing is predicted) and position_ids, each [length] int64."""
        ...

    def order(self, seed: int, epoch: int, /) -> NDArray[np.int64]:
        """The permutation of an epoch."""
        ...


def collate(items: Sequence[Mapping[str, Any]]) -> Batch:
    """Stack items into [batch, length] int64 tensors."""
    return {name: torch.stack([torch.as_tensor(item[name]) for item in items]).long() for name in COLUMNS}


class MicroBatches:
    """An endless stream of micro-batches from a position on. The position is the whole state: resuming costs nothing."""

    def __init__(self, data: Sequences, seed: int, micro_batch: int, position: int = 0) -> None:
        self.data, self.seed, self.micro_batch, self.position = data, seed, micro_batch, position

    def __iter__(self) -> Iterator[Batch]:
        size, epoch, order = len(self.data), -1, np.empty(0, dtype=np.int64)
        position = self.position
        while True:
            items = []
            for place in range(position, position + self.micro_batch):
                if place // size != epoch:
                    epoch = place // size
                    order = self.data.order(self.seed, epoch)
                items.append(self.data[int(order[place % size])])
            position += self.micro_batch
            yield collate(items)


def spread(data: Sequences, limit: int, batch: int) -> list[Batch]:
    """At most `limit` sequences spread evenly over a side, as batches: the same ones at every evaluation."""
    chosen = np.unique(np.linspace(0, len(data) - 1, num=min(limit, len(data))).round().astype(np.int64))
    return [collate([data[int(i)] for i in chosen[start : start + batch]]) for start in range(0, len(chosen), batch)]


class RandomSequences:
    """Uniform random tokens in packs of two documents: speed depends on shapes, not on text."""

    def __init__(self, vocabulary_size: int, sequence_length: int, sequences: int = 64) -> None:
        generator = np.random.default_rng(0)
        self.tokens = generator.integers(vocabulary_size, size=(sequences, sequence_length))
        half = sequence_length // 2
        self.positions = np.concatenate([np.arange(half), np.arange(sequence_length - half)])
        self.labels = self.tokens.copy()
        self.labels[:, [0, half]] = -100

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        return {"input_ids": self.tokens[index], "labels": self.labels[index], "position_ids": self.positions}

    def order(self, seed: int, epoch: int, /) -> NDArray[np.int64]:
        """The order in which they were made."""
        return np.arange(len(self.tokens))
