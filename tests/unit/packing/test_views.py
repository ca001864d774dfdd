"""What people's own loops read is what training reads, in its order, for any number of ranks and workers."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from packing_toy import run_toy
from torch.utils.data import DataLoader

from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.packing.order import Order
from pipeline_lib.packing.reader import PackedDataset, PositionSampler
from pipeline_lib.packing.views import PackedStream, as_datasets, packed
from pipeline_lib.training.data import MicroBatches
from pipeline_lib.workspace.runs import RunBook, RunRecord

SEED = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    root = tmp_path_factory.mktemp("home")
    workspace, made = run_toy(root)
    record = RunRecord(run_id="20260101-000000-abcdef", pipeline="toy")
    record.stage("fill_gaps").ref = made["fill_gaps"].ref().to_json()
    RunBook(workspace.runs_folder).save(record)
    return packed(root)


def rows(batches: list[dict[str, torch.Tensor]]) -> list[list[int]]:
    return [row.tolist() for batch in batches for row in batch["labels"]]


def trained(data: PackedDataset, count: int, position: int = 0) -> list[list[int]]:
    """Labels of the sequences that training reads, in its order."""
    return rows(list(islice(MicroBatches(data, SEED, 1, position), count)))


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (3, 0), (8, 0), (1, 2), (2, 1)])
def test_any_world_and_any_workers_read_the_order_of_training(data: PackedDataset, world: int, workers: int) -> None:
    order, steps, size = Order.of(SEED, len(data)), len(data) // (world * 2) + 3, 2  # into the second epoch
    ranks = []
    for rank in range(world):
        stream = PackedStream(data, order, batch_size=size, rank=rank, world=world)
        loader = DataLoader(stream, batch_size=size, num_workers=workers, multiprocessing_context="spawn" if workers else None)
        ranks.append(rows(list(islice(loader, steps))))
    together = [ranks[i % world][i // world] for i in range(steps * size * world)]
    assert together == trained(data, len(together))


@pytest.mark.parametrize(("position", "world"), [(0, 1), (7, 2), (12, 3)])
def test_one_integer_resumes_on_another_world(data: PackedDataset, position: int, world: int) -> None:
    order = Order.of(SEED, len(data))
    streams = [
        PackedStream(data, order, batch_size=1, position=position, rank=r, world=world, stop=position + 20) for r in range(world)
    ]
    parts = {rank: [item["labels"].tolist() for item in stream] for rank, stream in enumerate(streams)}
    assert sum(map(len, parts.values())) == 20
    together = [parts[(position + i) % world].pop(0) for i in range(20)]
    assert together == trained(data, 20, position)


def test_the_view_of_datasets(data: PackedDataset) -> None:
    view = as_datasets(data, Order.of(SEED, len(data)), position=3, count=10)
    assert len(view) == 10
    assert [row["labels"].tolist() for row in view] == trained(data, 10, 3)
    assert view.select([4])[0]["input_ids"].equal(view[4]["input_ids"])
    plain = as_datasets(data)
    assert len(plain) == len(data)
    assert plain[2]["input_ids"].equal(data[2]["input_ids"])
    shuffled = plain.shuffle(seed=1)
    assert sorted(row["labels"].tolist() for row in shuffled) == sorted(trained(data, len(data)))
    batch = next(iter(DataLoader(view, batch_size=4)))
    assert rows([batch]) == trained(data, 4, 3)


def test_what_cannot_be(data: PackedDataset, tmp_path: Path) -> None:
    for place in ({"rank": 2, "world": 2}, {"rank": -1, "world": 2}, {"position": -1}, {"world": 0}):
        with pytest.raises(ConfigError, match="cannot be"):
            PackedStream(data, Order.of(0, 4), batch_size=1, **place)
        with pytest.raises(ConfigError, match="cannot be"):
            PositionSampler(Order.of(0, 4), **place)
    with pytest.raises(ConfigError, match="batch_size 0"):
        PackedStream(data, Order.of(0, 4), batch_size=0)
    with pytest.raises(NotFoundError):
        packed(tmp_path)
