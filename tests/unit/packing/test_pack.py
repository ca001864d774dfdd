"""The stage pack: every token once and in its place, the same bytes however it is run, and after every kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packing_toy import Toy, ToyCorpus, doc_id, run_toy, texts_of

from pipeline_lib.config.model import PackConfig, TokenizerConfig
from pipeline_lib.config.resources import KeepConfig
from pipeline_lib.errors import ConfigError, StageFailedError
from pipeline_lib.packing.cache import chunks_table, read_chunks
from pipeline_lib.packing.chunk import ChunkSettings, Packed, chunk_table, commit_chunk, content_digest, pack_documents
from pipeline_lib.packing.manifest import read_manifest
from pipeline_lib.packing.ranges import SIDES, Range, plan_ranges, plan_rows
from pipeline_lib.packing.sequences import SequenceReader
from pipeline_lib.packing.texts import Documents
from pipeline_lib.quality.signals import CHARACTERS_PER_TOKEN
from pipeline_lib.tables.schemas import CHUNKS, RANGES, ROWS, SELECTION, TURNS
from pipeline_lib.tokens.encode import Encoder
from pipeline_lib.tokens.train import train_tokenizer
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.gc import apply_gc, plan_gc
from pipeline_lib.workspace.resolve import reference
from pipeline_lib.workspace.services import Progress, Services, thread_mapper
from pipeline_lib.workspace.workspace import Workspace

README = Path(__file__).parents[3] / "pipeline_lib" / "packing" / "README.md"


def reader_of(workspace: Workspace, pack: Artifact, side: str) -> SequenceReader:
    return SequenceReader(workspace.cache_folder / pack.details["cache"], read_chunks(pack.files("chunks")), side)


def rebuilt(workspace: Workspace, pack: Artifact, side: str) -> dict[int, np.ndarray]:
    """Tokens of every row of a side, put together again from the pieces; fails when a token is missing or there twice."""
    pieces: dict[int, list[tuple[int, np.ndarray]]] = {}
    reader = reader_of(workspace, pack, side)
    for i in range(len(reader)):
        sequence = reader[i]
        assert len(sequence.tokens) == sequence.doc_len.sum() <= pack.details["sequence_length"]
        ends = np.cumsum(sequence.doc_len)
        for row, offset, end, length in zip(sequence.doc_row, sequence.doc_off, ends, sequence.doc_len, strict=True):
            pieces.setdefault(int(row), []).append((int(offset), sequence.tokens[end - length : end]))
    whole = {}
    for row, found in pieces.items():
        found.sort(key=lambda piece: piece[0])
        at = 0
        for offset, tokens in found:
            assert offset == at
            at += len(tokens)
        whole[row] = np.concatenate([tokens for _, tokens in found])
    return whole


@pytest.mark.parametrize(("length", "repeats", "files"), [(16, 1, 1), (64, 3, 4), (1000, 1, 7)], ids=["short", "repeats", "long"])
def test_every_token_of_every_selected_document_exactly_once(tmp_path: Path, length: int, repeats: int, files: int) -> None:
    toy = ToyCorpus(repeats=repeats, files=files, special=True)
    config = Toy(toy=toy, pack=PackConfig(sequence_length=length, range_tokens=2048))
    workspace, made = run_toy(tmp_path, config, until="pack")
    pack, texts = made["pack"], texts_of(toy)
    encoder = Encoder(pack.files("tokenizer")[0], fast=False)
    rows = pq.read_table(pack.file("rows"))
    assert rows.schema.equals(ROWS)
    number = {doc_id(i): i for i in range(len(texts))}
    wanted: list[bytes] = []
    for i in range(len(texts)):
        side = "dev" if i % 20 == 7 else "test" if i % 20 == 13 else "train"
        if i != 1:  # kept from an earlier night
            wanted += [doc_id(i)] * (repeats if i % 10 == 0 and side == "train" else 1)
    assert sorted(rows["doc_id"].to_pylist()) == sorted(wanted)
    seen = 0
    for side in SIDES:
        for row, tokens in rebuilt(workspace, pack, side).items():
            assert rows["side"][row].as_py() == side
            i = number[rows["doc_id"][row].as_py()]
            assert rows["domain"][row].as_py() == ("even" if i % 2 == 0 else "odd")
            expected, _ = encoder.encode(pa.array([texts[i]], pa.large_string()))
            np.testing.assert_array_equal(tokens, np.append(expected, pack.details["eos_id"]))
            assert (expected != pack.details["eos_id"]).all()
            seen += 1
    assert seen == len(wanted)
    assert pack.manifest.counts == {"in": len(wanted), "out": len(wanted)}
    chunks = pq.read_table(pack.file("chunks"))
    assert chunks.schema.equals(CHUNKS)
    for side in SIDES:
        mine = chunks.filter(pa.compute.equal(chunks["side"], side))
        for name in ("tokens", "sequences", "documents"):
            assert pa.compute.sum(mine[name]).as_py() == pack.details[name][side]


def plain(texts: pa.LargeStringArray) -> Documents:
    return Documents(texts, pa.nulls(len(texts), TURNS))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([pa.array(texts_of(ToyCorpus()), pa.large_string())], 300, folder)
    return Encoder(folder / "tokenizer.json")


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text("ab é", max_size=120), min_size=1, max_size=25),
    length=st.sampled_from([16, 17, 64]),
    first=st.integers(0, 9),
)
def test_pieces_are_whole_documents_cut_at_nothing_but_the_length(
    encoder: Encoder, texts: list[str], length: int, first: int
) -> None:
    array = pa.array(texts, pa.large_string())
    table, cut, _ = pack_documents(encoder, plain(array), first, ChunkSettings(length, 300, 0, 1, "lz4"))
    tokens, offsets = encoder.encode(array)
    whole = {first + i: [*tokens[offsets[i] : offsets[i + 1]].tolist(), 0] for i in range(len(texts))}
    got: dict[int, dict[int, list[int]]] = {}
    for row in table.to_pylist():
        assert len(row["tokens"]) == sum(row["doc_len"]) <= length
        at = 0
        for document, offset, size in zip(row["doc_row"], row["doc_off"], row["doc_len"], strict=True):
            assert got.setdefault(document, {}).setdefault(offset, row["tokens"][at : at + size]) == row["tokens"][at : at + size]
            at += size
    assert {d: [t for offset in sorted(pieces) for t in pieces[offset]] for d, pieces in got.items()} == whole
    assert cut == sum(len(pieces) > 1 for pieces in got.values())
    assert all(set(pieces) == set(range(0, len(whole[d]), length)) for d, pieces in got.items())


def test_workers_and_processes_do_not_change_a_byte(tmp_path: Path) -> None:
    def process_mapper(function: Any, items: Any) -> list[Any]:
        with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
            return list(pool.map(function, items))

    variants = {
        "one": Services(),
        "threads": Services(mapper=thread_mapper(3), workers=3),
        "processes": Services(mapper=process_mapper),
    }
    found = {}
    for name, services in variants.items():
        workspace, made = run_toy(tmp_path / name, services=services)
        folder = workspace.cache_folder / made["pack"].details["cache"]
        files = {path.name: path.read_bytes() for path in folder.glob("*.arrow")}
        found[name] = (made["pack"].manifest.digest, made["fill_gaps"].manifest.digest, files)
    assert len(found["one"][2]) >= 5
    assert found["one"] == found["threads"] == found["processes"]


@pytest.mark.parametrize("point", ["cache.before_commit:3", "cache.after_commit:3", "publish.before_manifest:3"])
def test_a_kill_costs_only_what_was_not_committed(tmp_path: Path, point: str) -> None:
    _, undisturbed = run_toy(tmp_path / "calm", until="pack")
    root = tmp_path / "killed"
    environment = {**os.environ, "MILLRACE_FAULT": point, "PYTHONPATH": str(Path(__file__).parent)}
    program = "import sys; from pathlib import Path; from packing_toy import run_toy; run_toy(Path(sys.argv[1]), until='pack')"
    ended = subprocess.run([sys.executable, "-c", program, str(root)], env=environment, check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    committed = {path.name: path.stat().st_ino for path in root.glob("cache/*/*.arrow")}
    (cache,) = root.glob("cache/*")
    recorded = {f"{name}.arrow" for name in read_manifest(cache).chunks}
    assert len(recorded) >= 2
    stopped = Workspace.open(root)
    assert "cache" not in {thing.kind for thing in apply_gc(stopped, plan_gc(stopped, KeepConfig()))}
    workspace, made = run_toy(root, until="pack")
    assert made["pack"].manifest.digest == undisturbed["pack"].manifest.digest
    folder = workspace.cache_folder / made["pack"].details["cache"]
    assert {name: (folder / name).stat().st_ino for name in recorded} == {name: committed[name] for name in recorded}
    assert not list(folder.glob(".writing-*"))
    (kept,) = [event["detail"] for event in made["pack"].manifest.events if event["kind"] == "chunks_kept"]
    assert kept["chunks"] == len(recorded)


def test_a_chunk_damaged_between_kill_and_resume_is_not_believed(tmp_path: Path) -> None:
    _, undisturbed = run_toy(tmp_path / "calm", until="pack")
    root = tmp_path / "killed"
    environment = {**os.environ, "MILLRACE_FAULT": "cache.after_commit:4", "PYTHONPATH": str(Path(__file__).parent)}
    program = "import sys; from pathlib import Path; from packing_toy import run_toy; run_toy(Path(sys.argv[1]), until='pack')"
    subprocess.run([sys.executable, "-c", program, str(root)], env=environment, check=False)
    (victim,) = root.glob("cache/*/train-00001.arrow")
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    _, made = run_toy(root)
    assert made["pack"].manifest.digest == undisturbed["pack"].manifest.digest
    assert made["fill_gaps"].metrics["filled"] == 0


def test_progress_says_documents_chunks_rate_and_size(tmp_path: Path) -> None:
    said: list[Progress] = []
    run_toy(tmp_path, until="pack", services=Services(announce=said.append))
    last = [line for line in said if line.stage == "pack"][-1]
    assert last.done == last.total == 119
    assert re.fullmatch(r"\d+ chunks · [\d,]+ docs/s · \d+ % (smaller|larger) than uint16", last.note)


def test_ranges_cover_all_rows_once_and_an_appended_document_changes_no_earlier_range() -> None:
    rng = np.random.default_rng(0)

    def rows(n: int) -> pa.Table:
        estimated = rng_lengths[:n]
        columns = [["train"] * n, [0] * n, list(range(n)), [doc_id(i) for i in range(n)], ["d"] * n, estimated]
        columns += [[None] * n] * (len(ROWS) - len(columns))
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, ROWS, strict=True)], schema=ROWS)

    rng_lengths = rng.integers(1, 400, 2000).tolist()
    small, large = plan_ranges(rows(1500), 10_000), plan_ranges(rows(2000), 10_000)
    assert small.schema.equals(RANGES)
    for table, n in ((small, 1500), (large, 2000)):
        firsts, lasts = table["first_row"].to_pylist(), table["last_row"].to_pylist()
        assert firsts == [0, *(last + 1 for last in lasts[:-1])]
        assert lasts[-1] == n - 1
        assert all(5_000 <= size <= 15_400 for size in table["est_tokens"].to_pylist())
    assert large.slice(0, small.num_rows - 1).equals(small.slice(0, small.num_rows - 1))


def selection(roles: list[str], sides: list[str] | None = None) -> pa.Table:
    n = len(roles)
    columns = [[doc_id(i) for i in range(n)], sides or ["train"] * n, ["d"] * n, [1] * n, roles, [1.0] * n, [1.0] * n, [5] * n]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, SELECTION, strict=True)], schema=SELECTION)


def test_refusals_say_what_is_wrong(tmp_path: Path) -> None:
    documents = tmp_path / "documents.parquet"
    pq.write_table(pa.table({"doc_id": pa.array([doc_id(0)], pa.binary(16)), "text": ["a"]}), documents)
    with pytest.raises(StageFailedError, match="no training document"):
        plan_rows(selection(["kept"]), [documents])
    with pytest.raises(StageFailedError, match="no training document"):
        plan_rows(selection(["new"], ["dev"]), [documents])
    with pytest.raises(StageFailedError, match=f"1 selected documents are not.*{doc_id(1).hex()}"):
        plan_rows(selection(["new", "replay"]), [documents])
    pq.write_table(pa.table({"text": ["a"]}), documents)
    with pytest.raises(StageFailedError, match="no column doc_id"):
        plan_rows(selection(["new"]), [documents])


@pytest.mark.parametrize(("documents", "told"), [(8, "the side test "), (5, "the side dev and test ")])
def test_an_empty_side_is_refused_before_the_work(tmp_path: Path, documents: int, told: str) -> None:
    with pytest.raises(StageFailedError, match=told) as refused:
        run_toy(tmp_path, Toy(toy=ToyCorpus(documents=documents)), until="pack")
    assert "split.test_share" in refused.value.fix


def test_a_token_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    _, made = run_toy(tmp_path, until="pack")
    encoder = Encoder(made["pack"].files("tokenizer")[0])
    with pytest.raises(StageFailedError, match="does not fit a vocabulary of 100"):
        pack_documents(encoder, plain(pa.array(["zebra ming"], pa.large_string())), 0, ChunkSettings(16, 100, 0, 1, "lz4"))


def test_a_tokenizer_from_a_folder_and_from_an_earlier_pack(tmp_path: Path) -> None:
    _, first = run_toy(tmp_path, until="pack")
    pack, folder = first["pack"], tmp_path / "mine"
    folder.mkdir()
    for path in pack.files("tokenizer"):
        (folder / path.name).write_bytes(path.read_bytes())
    sources = [str(folder), reference(pack.key, pack.manifest.digest)]
    for source in sources:
        _, again = run_toy(tmp_path, Toy(tokenizer=TokenizerConfig(source=source), toy=ToyCorpus(seed=5)), until="pack")
        assert again["pack"].details["tokenizer_digest"] == pack.details["tokenizer_digest"]
        assert again["pack"].key != pack.key
    with pytest.raises(ConfigError, match=r"holds no tokenizer\.json"):
        run_toy(tmp_path, Toy(tokenizer=TokenizerConfig(source=str(tmp_path / "nothing"))), until="pack")


@pytest.mark.parametrize("codec", ["lz4", "zstd", "none"])
def test_a_vocabulary_beyond_uint16_keeps_its_high_bits(tmp_path: Path, codec: str) -> None:
    wide = ChunkSettings(16, 150_000, 0, 1, codec)
    tokens = np.array([0, 65_535, 65_536, 149_999, 70_000], np.uint32)
    table = chunk_table(
        tokens,
        np.array([0, 3, 5]),
        np.array([0, 1, 2]),
        doc_len=np.array([3, 2]),
        doc_row=np.array([0, 1]),
        doc_off=np.array([0, 0]),
        wide=True,
    )
    facts = commit_chunk(tmp_path, Range("train", 0, 0, 1), Packed(table, 0, 20), wide)
    reader = SequenceReader(tmp_path, [facts], "train")
    assert reader[0].tokens.tolist() + reader[1].tokens.tolist() == tokens.tolist()
    assert reader.settings == wide
    assert facts.content_digest == content_digest(table)
    assert chunks_table([facts]).schema.equals(CHUNKS)


def test_the_three_lines_of_the_readme_read_a_chunk(tmp_path: Path) -> None:
    workspace, made = run_toy(tmp_path)
    folder = workspace.cache_folder / made["fill_gaps"].details["cache"]
    (block,) = re.findall(r"```python\n(import pyarrow.*?)```", README.read_text("utf-8"), flags=re.S)
    assert len([line for line in block.splitlines() if line]) == 3
    names: dict[str, Any] = {}
    exec(block.replace("train-00000.arrow", str(folder / "train-00000.arrow")), names)  # noqa: S102 (our own README)
    reader = reader_of(workspace, made["pack"], "train")
    assert names["first"] == reader[0].tokens.tolist()


def test_a_range_is_never_longer_than_its_columns_can_count() -> None:
    """Places in a chunk are int32. A character is four tokens at most, bytes of UTF-8, and is estimated at a part of one."""
    largest = 1 << 26
    with pytest.raises(ValueError, match=str(largest)):
        PackConfig(range_tokens=largest + 1)
    assert PackConfig(range_tokens=largest).range_tokens * 4 * CHARACTERS_PER_TOKEN < np.iinfo(np.int32).max
