"""A cache that grows: earlier chunks stay, readers keep their snapshot, tombstones are not read, epochs never repeat or skip."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_toy import Toy, ToyCorpus, doc_id, rot, run_toy, texts_of
from torch.utils.data import DataLoader

from pipeline_lib.config.model import PackConfig, TokenizerConfig
from pipeline_lib.packing.cache import ancestry, damages_of, read_chunks
from pipeline_lib.packing.chunk import ChunkFacts, ChunkSettings, Packed, chunk_table, commit_chunk
from pipeline_lib.packing.fill import intact
from pipeline_lib.packing.growth import _keys, eras_after
from pipeline_lib.packing.manifest import Listing, append_growth, read_manifest, rewrite
from pipeline_lib.packing.order import Order, order
from pipeline_lib.packing.ranges import SIDES, Range
from pipeline_lib.packing.reader import PackedDataset, PositionSampler, as_tensors
from pipeline_lib.packing.sequences import SequenceReader
from pipeline_lib.tables.schemas import ROWS
from pipeline_lib.tokens.encode import Encoder
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.resolve import reference
from pipeline_lib.workspace.workspace import Workspace

POOL = 240


def night(
    root: Path, documents: int, parent: Artifact | None = None, *, drop_every: int = 0, length: int = 64, vocabulary: int = 400
) -> tuple[Workspace, dict[str, Artifact]]:
    named = reference(parent.key, parent.manifest.digest) if parent else "none"
    config = Toy(
        toy=ToyCorpus(documents=documents, pool=POOL, drop_every=drop_every),
        pack=PackConfig(sequence_length=length, range_tokens=2048, parent=named),
        tokenizer=TokenizerConfig(vocabulary_size=vocabulary),
    )
    return run_toy(root, config)


def everything(workspace: Workspace, filled: Artifact, side: str) -> list[list[int]]:
    data = PackedDataset.of(workspace, filled, side)
    return [data.sequences[i].tokens.tolist() for i in range(len(data))]


def documents_read(workspace: Workspace, made: dict[str, Artifact]) -> dict[int, list[int]]:
    """Tokens by document number, put together from the pieces that readers return; fails when a piece comes twice."""
    rows = pa.concat_tables([pq.read_table(pack.file("rows")) for pack in ancestry(workspace, made["pack"])])
    number = {doc_id(i): i for i in range(POOL)}
    pieces: dict[int, dict[int, list[int]]] = {}
    for side in SIDES:
        data = PackedDataset.of(workspace, made["fill_gaps"], side)
        for i in range(len(data)):
            sequence = data.sequences[i]
            ends = np.cumsum(sequence.doc_len)
            assert len(sequence.tokens) == sequence.doc_len.sum() > 0
            for row, offset, end, size in zip(sequence.doc_row, sequence.doc_off, ends, sequence.doc_len, strict=True):
                assert rows["side"][int(row)].as_py() == side
                mine = pieces.setdefault(number[rows["doc_id"][int(row)].as_py()], {})
                assert mine.setdefault(int(offset), sequence.tokens[end - size : end].tolist()) is mine[int(offset)]
    return {document: [t for offset in sorted(found) for t in found[offset]] for document, found in pieces.items()}


def test_a_grown_cache_keeps_what_was_packed_and_reads_exactly_what_is_selected(tmp_path: Path) -> None:
    workspace, first = night(tmp_path, 150)
    old_folder = workspace.cache_folder / first["pack"].details["cache"]
    files = {p.name: (p.read_bytes(), p.stat().st_ino, p.stat().st_mtime_ns) for p in old_folder.glob("*.arrow")}
    reader = PackedDataset.of(workspace, first["fill_gaps"], "train")
    before = everything(workspace, first["fill_gaps"], "train")
    assert reader.later_eras() == []

    _, second = night(tmp_path, POOL, first["pack"], drop_every=10)
    assert {p.name: (p.read_bytes(), p.stat().st_ino, p.stat().st_mtime_ns) for p in old_folder.glob("*.arrow")} == files
    assert [reader.sequences[i].tokens.tolist() for i in range(len(reader))] == before
    (era,) = reader.later_eras()
    details = second["fill_gaps"].details
    assert (era["era"], era["cache"], era["sequences"]) == (1, details["cache"], details["sequences"])
    for name in ("tokenizer_digest", "vocabulary_size"):
        assert second["pack"].details[name] == first["pack"].details[name]

    encoder = Encoder(first["pack"].files("tokenizer")[0], fast=False)
    texts = texts_of(ToyCorpus(documents=POOL, pool=POOL))
    wanted = [i for i in range(POOL) if i % 10 and i != 1]
    read = documents_read(workspace, second)
    assert sorted(read) == wanted
    for i in wanted:
        tokens, _ = encoder.encode(pa.array([texts[i]], pa.large_string()))
        assert read[i] == [*tokens.tolist(), second["pack"].details["eos_id"]]
    for side in SIDES:
        data = PackedDataset.of(workspace, second["fill_gaps"], side)
        assert len(data) == details["sequences"][side]
        assert sum(len(data.sequences[i].tokens) for i in range(len(data))) == details["tokens"][side]
    assert sum(details["documents"].values()) == len(wanted)


READER = """
import json, sys, time
from pathlib import Path
from pipeline_lib.packing.order import Order
from pipeline_lib.packing.reader import PackedDataset
from pipeline_lib.workspace.workspace import Workspace
workspace = Workspace.open(Path(sys.argv[1]))
def opened(key):
    return PackedDataset.of(workspace, workspace.artifact(key), "train")
def published(era):
    while True:
        for key in workspace.store.newest("fill_gaps"):
            if workspace.artifact(key).details["era"] == era:
                return key
        time.sleep(0.02)
data, position, ends = {0: opened(sys.argv[2])}, 0, None
course = Order.of(5, len(data[0]))
while ends is None or position < ends:
    if ends is None and (later := data[0].later_eras()):  # noticed between steps
        era = later[0]["era"]
        data[era] = opened(published(era))
        course = course.grown(position, era, len(data[era]))
        ends = course.spans[-1].position + 2 * len(data[era])
    era, sequence = course.span_at(position).era, int(course.at(position, 1)[0])
    print(json.dumps([era, sequence, data[era].sequences[sequence].tokens.tolist()]), flush=True)
    position += 1
    time.sleep(0.001)
"""


def test_a_process_that_reads_while_the_cache_grows_repeats_and_skips_nothing(tmp_path: Path) -> None:
    workspace, first = night(tmp_path, 150)
    command = [sys.executable, "-c", READER, str(tmp_path), first["fill_gaps"].key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout
        lines = [reader.stdout.readline() for _ in range(30)]
        _, second = night(tmp_path, POOL, first["pack"], drop_every=10)
        lines += reader.stdout.readlines()
    assert reader.returncode == 0
    log = [tuple(json.loads(line)) for line in lines]
    assert sorted({era for era, _, _ in log}) == [0, 1]
    assert [era for era, _, _ in log] == sorted(era for era, _, _ in log)
    for era, made in ((0, first), (1, second)):
        tokens = everything(workspace, made["fill_gaps"], "train")
        read = [(sequence, seen) for found, sequence, seen in log if found == era]
        assert len(read) % len(tokens) == 0  # whole epochs: growth was noticed within one, and took over behind it
        for begin in range(0, len(read), len(tokens)):
            epoch = read[begin : begin + len(tokens)]
            assert sorted(sequence for sequence, _ in epoch) == list(range(len(tokens)))
            assert all(seen == tokens[sequence] for sequence, seen in epoch)


def test_to_ask_for_growth_again_and_again_costs_next_to_nothing(tmp_path: Path) -> None:
    facts = ChunkFacts("train", 0, "f" * 64, "c" * 64, 100, 1, 16, 1)
    rewrite(tmp_path, Listing({one.name: one for one in (replace(facts, chunk=i) for i in range(3000))}))
    assert eras_after(tmp_path) == []
    begin = time.perf_counter()
    read_manifest(tmp_path)
    once = time.perf_counter() - begin
    begin = time.perf_counter()
    assert all(eras_after(tmp_path) == [] for _ in range(20))
    assert time.perf_counter() - begin < once
    append_growth(tmp_path, {"era": 1, "cache": "later"})
    assert [era["era"] for era in eras_after(tmp_path)] == [1]


def test_both_links_of_a_grown_cache_are_filled_and_a_third_night_goes_on(tmp_path: Path) -> None:
    workspace, first = night(tmp_path, 120)
    _, second = night(tmp_path, 180, first["pack"], drop_every=20)
    folders = [workspace.cache_folder / made["pack"].details["cache"] for made in (first, second)]
    oldest = folders[0] / "train-00001.arrow"
    lost = {oldest: oldest.read_bytes()}
    newest = sorted(folders[1].glob("*.arrow"))[-1]
    lost[newest] = newest.read_bytes()
    for path in lost:
        path.unlink()
    assert "2 of" in intact(second["fill_gaps"], workspace)
    _, again = night(tmp_path, 180, first["pack"], drop_every=20)
    assert again["fill_gaps"].manifest.digest == second["fill_gaps"].manifest.digest
    assert {path: path.read_bytes() for path in lost} == lost
    _, third = night(tmp_path, POOL, second["pack"], drop_every=20)
    assert third["pack"].details["era"] == 2
    assert sorted(documents_read(workspace, third)) == [i for i in range(POOL) if i % 20 and i != 1]
    reader = PackedDataset.of(workspace, first["fill_gaps"], "train")
    assert [era["era"] for era in reader.later_eras()] == [1, 2]
    assert not damages_of(folders[1], read_chunks(third["fill_gaps"].files("chunks")), full=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"length": 32}, "64 tokens"), ({"drop_every": 2}, "no longer selected")],
    ids=["length", "mostly dead"],
)
def test_what_does_not_go_together_is_packed_afresh_and_says_why(tmp_path: Path, change: dict[str, int], reason: str) -> None:
    _, first = night(tmp_path, 150)
    _, second = night(tmp_path, 150, first["pack"], **change)
    (event,) = [event["detail"] for event in second["pack"].manifest.events if event["kind"] == "packed_afresh"]
    assert reason in event["reason"]
    assert (second["pack"].details["era"], second["pack"].details["parent"]) == (0, "")


def test_growth_heals_a_chunk_whose_bits_turned_on_the_disk(tmp_path: Path) -> None:
    workspace, first = night(tmp_path, 150)
    path = workspace.cache_folder / first["pack"].details["cache"] / "train-00000.arrow"
    whole = path.read_bytes()
    rot(path)
    _, second = night(tmp_path, POOL, first["pack"], drop_every=10)
    assert path.read_bytes() == whole
    assert sorted(documents_read(workspace, second)) == [i for i in range(POOL) if i % 10 and i != 1]


def test_a_span_without_loss_moves_up_when_a_piece_before_it_is_dead(tmp_path: Path) -> None:
    table = chunk_table(
        np.arange(2, 15, dtype=np.uint32), np.array([0, 13]), np.array([0, 3]), doc_len=np.array([5, 4, 4]),
        doc_row=np.array([4, 9, 5]), doc_off=np.array([0, 0, 0]), no_loss=pa.array([[1, 3, 4, 7, 10, 12]], pa.list_(pa.int32())),
    )  # fmt: skip
    facts = commit_chunk(tmp_path, Range("train", 0, 4, 9), Packed(table, 0, 0), ChunkSettings(16, 30, 0, 1, "lz4"))
    kept = SequenceReader(tmp_path, [facts], "train", dead=np.array([4, 7]))[0]
    assert (kept.tokens.tolist(), kept.doc_len.tolist(), kept.doc_row.tolist()) == ([*range(7, 15)], [4, 4], [9, 5])
    assert kept.no_loss.tolist() == [[0, 2], [5, 7]]
    assert as_tensors(kept, 16, 1)["labels"].tolist() == [-100, -100, 9, 10, 11, -100, -100, 14] + [-100] * 8


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    noticed=st.lists(st.integers(0, 90), min_size=3, max_size=3),
    steps=st.lists(st.integers(1, 17), min_size=5, max_size=30),
)
def test_no_epoch_repeats_or_skips_whenever_growth_is_noticed(sizes: list[int], noticed: list[int], steps: list[int]) -> None:
    """A log of what was read while the cache grows between steps: every finished epoch is a permutation of its era."""
    current, position = Order.of(3, sizes[0]), 0
    waiting = sorted(zip(noticed, enumerate(sizes[1:], 1), strict=False))
    log: list[tuple[int, int]] = []  # (era, sequence)
    for step in steps:
        while waiting and waiting[0][0] <= position:
            current = current.grown(position, *waiting.pop(0)[1])
        read = current.at(position, step)
        log += [(current.span_at(position + i).era, int(index)) for i, index in enumerate(read)]
        position += step
    for number, span in enumerate(current.spans):
        end = current.spans[number + 1].position if number + 1 < len(current.spans) else position
        assert (end - span.position) % span.sequences == 0 or end == position
        for epoch, begin in enumerate(range(span.position, end, span.sequences)):
            mine = log[begin : min(begin + span.sequences, position)]
            assert mine == [(span.era, int(i)) for i in order(span.sequences, 3, span.epoch + epoch)[: len(mine)]]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_any_number_of_ranks_reads_the_same_global_order_and_resumes_from_one_integer(world: int) -> None:
    course, stop = Order.of(7, 50).grown(60, 1, 70), 170
    whole = course.at(0, stop).tolist()
    for position in (0, 24, 96, 149):
        ranks = [list(PositionSampler(course, position=position, stop=stop, rank=r, world=world)) for r in range(world)]
        together = [0] * (stop - position)
        for r, read in enumerate(ranks):
            together[(r - position) % world :: world] = read
        assert together == whole[position:]


def test_workers_of_a_loader_read_in_the_order_of_the_sampler(tmp_path: Path) -> None:
    workspace, made = night(tmp_path, 120)
    data = PackedDataset.of(workspace, made["fill_gaps"], "train")
    course = Order.of(1, len(data))
    sampler = PositionSampler(course, position=5, stop=len(data) // 2)
    loader = DataLoader(data, batch_size=None, sampler=sampler, num_workers=2, multiprocessing_context="spawn")
    read = [item["input_ids"].tolist() for item in loader]
    assert read == [data[i]["input_ids"].tolist() for i in course.at(5, len(data) // 2 - 5)]


def test_a_row_is_another_one_when_anything_about_it_changes() -> None:
    base = {"side": "train", "pass": 0, "document": 5, "doc_id": doc_id(1), "domain": "d", "text_hash": doc_id(2)}
    others = [{"side": "dev"}, {"pass": 1}, {"doc_id": doc_id(3)}, {"text_hash": doc_id(3)}, {"text_hash": None}]
    others += [{"cuts": cuts} for cuts in ([0, 1], [1, 2], [0, 1, 2, 3], [0, 3], [0, 2, 1, 3])]
    same = [{"document": 6}, {"est_tokens": 1}, {"domain": "e"}]
    keys = _keys(pa.Table.from_pylist([{**base, **change} for change in [{}, *same, *others]], ROWS)).to_pylist()
    assert set(keys[: 1 + len(same)]) == {keys[0]}
    assert len(set(keys)) == 1 + len(others)
