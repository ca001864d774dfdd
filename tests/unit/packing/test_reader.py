"""Readers: no token of a damaged chunk is ever used; tensors, order and resume are exact."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from packing_toy import run_toy
from pyarrow import ipc
from torch.utils.data import DataLoader

from pipeline_lib.errors import DamagedError
from pipeline_lib.packing.cache import read_chunks
from pipeline_lib.packing.chunk import ChunkSettings, Packed, chunk_table, commit_chunk
from pipeline_lib.packing.order import order
from pipeline_lib.packing.ranges import Range
from pipeline_lib.packing.reader import PackedDataset, as_tensors
from pipeline_lib.packing.sequences import SequenceReader
from pipeline_lib.training.data import collate


def test_every_flipped_bit_is_found_before_a_token_is_used(tmp_path: Path) -> None:
    workspace, made = run_toy(tmp_path)
    folder = workspace.cache_folder / made["fill_gaps"].details["cache"]
    facts = read_chunks(made["fill_gaps"].files("chunks"))
    path = folder / "train-00000.arrow"
    whole = path.read_bytes()
    rng = np.random.default_rng(3)
    for bit in rng.choice(8 * len(whole), 120, replace=False):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(data)
        with pytest.raises(DamagedError, match="bytes differ"):
            SequenceReader(folder, facts, "train")[0]
    path.write_bytes(whole)
    assert len(SequenceReader(folder, facts, "train")[0].tokens) > 0


def small(folder: Path) -> SequenceReader:
    """Two sequences of length 16: one of two documents with a span without loss, one of a single document."""
    table = chunk_table(
        np.arange(2, 25, dtype=np.uint32),
        np.array([0, 13, 23]),
        np.array([0, 2, 3]),
        doc_len=np.array([5, 8, 10]),
        doc_row=np.array([4, 9, 5]),
        doc_off=np.array([0, 32, 0]),
        no_loss=pa.array([[1, 3, 6, 7], []], pa.list_(pa.int32())),
    )
    return SequenceReader(
        folder, [commit_chunk(folder, Range("train", 0, 4, 9), Packed(table, 0, 90), ChunkSettings(16, 30, 0, 1, "lz4"))], "train"
    )


def test_tensors_of_a_sequence(tmp_path: Path) -> None:
    item = as_tensors(small(tmp_path)[0], 16, 1)
    assert item["input_ids"].tolist() == [*range(2, 15), 1, 1, 1]
    assert item["position_ids"].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]
    assert item["labels"].tolist() == [2, -100, -100, 5, 6, 7, -100, 9, 10, 11, 12, 13, 14, -100, -100, -100]
    assert item["document_lengths"].tolist() == [5, 8, 3]
    assert item["document_rows"].tolist() == [4, 9, -1]
    assert all(tensor.dtype == torch.int64 for tensor in item.values())


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
@pytest.mark.parametrize("wide", [False, True])
def test_every_column_reads_as_pyarrow_reads_it_over_many_record_batches(tmp_path: Path, codec: str, wide: bool) -> None:
    rng = np.random.default_rng(5)
    pieces = rng.integers(1, 9, 700)
    piece_starts = np.append(0, np.cumsum(pieces))
    doc_len = rng.integers(1, 40, piece_starts[-1])
    token_starts = np.append(0, np.cumsum(doc_len))[piece_starts]
    spans = [[1, 2] if i % 5 == 0 else [0, 1, 2, 3] if i % 7 == 0 else [] for i in range(700)]
    table = chunk_table(
        rng.integers(0, 100_000 if wide else 60_000, token_starts[-1]).astype(np.uint32), token_starts, piece_starts,
        doc_len=doc_len, doc_row=rng.integers(0, 10**12, len(doc_len)), doc_off=rng.integers(0, 10**6, len(doc_len)),
        no_loss=pa.array(spans, pa.list_(pa.int32())), wide=wide,
    )  # fmt: skip
    facts = commit_chunk(tmp_path, Range("train", 0, 0, 9), Packed(table, 0, 0), ChunkSettings(400, 100_000, 0, 1, codec))
    plain = ipc.open_file(facts.file(tmp_path))
    assert plain.num_record_batches > 10
    reader = SequenceReader(tmp_path, [facts], "train")
    high = table["tokens_high"].to_pylist() if wide else None
    for i, row in enumerate(plain.read_all().select(["tokens", "doc_len", "doc_row", "doc_off", "no_loss"]).to_pylist()):
        found = reader[i]
        tokens = [low + (top << 16) for low, top in zip(row["tokens"], high[i], strict=True)] if high else row["tokens"]
        assert found.tokens.tolist() == tokens
        assert found.no_loss.ravel().tolist() == row["no_loss"]
        assert [found.doc_len.tolist(), found.doc_row.tolist(), found.doc_off.tolist()] == [
            row["doc_len"], row["doc_row"], row["doc_off"],
        ]  # fmt: skip
    assert np.concatenate(list(reader.scan())).tolist() == [token for i in range(700) for token in reader[i].tokens.tolist()]


def test_dataset_batches_and_provenance(tmp_path: Path) -> None:
    workspace, made = run_toy(tmp_path)
    dataset = PackedDataset(
        workspace.cache_folder / made["fill_gaps"].details["cache"], made["fill_gaps"].file("chunks"), "train"
    )
    assert len(dataset) == made["fill_gaps"].details["sequences"]["train"]
    batches = list(DataLoader(dataset, batch_size=8, collate_fn=collate))
    assert set(batches[0]) == {"input_ids", "position_ids", "labels", "rows"}
    assert batches[0]["input_ids"].shape == (8, 64)
    learned = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    pieces = [piece for i in range(len(dataset)) for piece in dataset.documents(i)]
    assert learned == made["fill_gaps"].details["tokens"]["train"] - len(pieces)  # the first token of a piece is not predicted
    rows = {row for row, _, _ in pieces}
    assert len(rows) == made["fill_gaps"].details["documents"]["train"]
    copy = pickle.loads(pickle.dumps(dataset))  # noqa: S301 (our own object, in memory)
    assert torch.equal(copy[5]["input_ids"], dataset[5]["input_ids"])
    for index in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset[index]


def test_a_side_without_chunks_is_empty(tmp_path: Path) -> None:
    facts = small(tmp_path).chunks
    assert len(SequenceReader(tmp_path, facts, "dev")) == 0


def test_order_is_a_function_of_seed_and_epoch() -> None:
    np.testing.assert_array_equal(order(1000, 1, 2), order(1000, 1, 2))
    assert sorted(order(1000, 1, 2)) == list(range(1000))
    assert (order(1000, 1, 2) != order(1000, 1, 3)).any()
    assert (order(1000, 1, 2) != order(1000, 2, 2)).any()


def test_reading_needs_no_torch() -> None:
    modules = "pipeline_lib.packing.pack, pipeline_lib.packing.fill, pipeline_lib.packing.sequences"
    program = f"import sys, {modules}; sys.exit(bool({{'torch', 'transformers'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
