"""Packed sequences for people's own loops: as a stream for a `DataLoader`, and as a data set of the library `datasets`.

Both read in the order of training (`order.Order`), check every chunk before its first token is used, and give the labels that
training gives: -100 on padding, on what is not learned, and on the first token of each document (what stands before it is another
document).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.packing.order import Order
from pipeline_lib.packing.reader import BLOCK, IGNORED, PackedDataset, refuse_place
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.workspace import Workspace

if TYPE_CHECKING:
    import datasets


def packed(home: Path, run: str = "latest", side: str = "train") -> PackedDataset:
    """The packed sequences that a run trained on.

    Args:
        home: the workspace.
        run: run id, the beginning of one, or `latest`.
        side: train, dev or test.

    Raises:
        NotFoundError: there is no such run, or it did not pack.
    """
    workspace = Workspace.open(home)
    record = RunBook(workspace.runs_folder).load(run)
    ref = record.ref("fill_gaps")
    if ref is None:
        raise NotFoundError(
            "the run has no packed sequences", where=f"run {record.run_id}", fix=f"millrace retry {record.run_id}"
        )
    return PackedDataset.of(workspace, workspace.artifact(ref.key), side)


def for_training(item: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An item of `PackedDataset` as training gets it: `input_ids`, `position_ids` and `labels`, each int64[length]."""
    labels = item["labels"].masked_fill(item["position_ids"] == 0, IGNORED)
    return {"input_ids": item["input_ids"], "position_ids": item["position_ids"], "labels": labels}


class PackedStream(IterableDataset[dict[str, torch.Tensor]]):
    """Sequences from a position on, for `DataLoader(stream, batch_size=stream.batch_size)`.

    All ranks together read the positions in order, whatever their number and that of workers. One integer is all there is to
    save: after `n` batches on each of `world` ranks the position is `position + n × batch_size × world`; give it to the next
    stream. Nothing is read again and nothing is skipped, and resuming takes no time.

    Args:
        data: the sequences.
        order: which of them is read when.
        batch_size: sequences in a batch of one rank; the loader's must be the same (its workers take turns by batches).
        position: where to begin.
        stop: position before which the stream ends (a fraction of an epoch, or several); None: it never ends.
        rank: of this process.
        world: processes.
    """

    def __init__(
        self,
        data: PackedDataset,
        order: Order,
        *,
        batch_size: int,
        position: int = 0,
        stop: int | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        refuse_place("PackedStream", position, rank, world)
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} cannot be", where="PackedStream", fix="1 or more")
        self.data, self.order, self.batch_size = data, order, batch_size
        self.position, self.stop, self.rank, self.world = position, stop, rank, world

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Items as `for_training` gives them; in a loader's worker the batches that are its turn."""
        worker = get_worker_info()
        workers, turn = (worker.num_workers, worker.id) if worker else (1, 0)
        first = self.position + (self.rank - self.position) % self.world  # the first position of this rank
        begin = 0  # number of an item among those of this rank
        while self.stop is None or first + begin * self.world < self.stop:
            numbers = np.arange(begin, begin + BLOCK)
            positions = first + numbers * self.world
            mine = (numbers // self.batch_size) % workers == turn
            if self.stop is not None:
                mine &= positions < self.stop
            chosen = self.order.at(int(positions[0]), BLOCK * self.world)[:: self.world]
            for sequence in chosen[mine].tolist():
                yield for_training(self.data[sequence])
            begin += BLOCK


def as_datasets(
    data: PackedDataset, order: Order | None = None, *, position: int = 0, count: int | None = None
) -> datasets.Dataset:
    """The sequences as a `datasets.Dataset`: row i has `input_ids`, `position_ids` and `labels` as torch tensors.

    Only the numbers of the sequences are held; tokens are read, checked and decoded when a row is asked for, so that `select`,
    `shuffle` and `train_test_split` cost nothing.

    Args:
        data: the sequences.
        order: of training; None: as they are packed.
        position: of the first row in that order.
        count: rows; None: as many as there are sequences.
    """
    import datasets

    rows = len(data) if count is None else count
    numbers = np.arange(position, position + rows) if order is None else order.at(position, rows)

    def read(batch: dict[str, list[int]]) -> dict[str, Any]:
        items = [for_training(data[number]) for number in batch["sequence"]]
        return {name: [item[name] for item in items] for name in ("input_ids", "position_ids", "labels")}

    return datasets.Dataset.from_dict({"sequence": numbers}).with_transform(read)
