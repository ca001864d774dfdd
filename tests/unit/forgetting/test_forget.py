"""What was forgotten is found nowhere, whatever happens in between; what was not stays as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forget_toy import MARK, ORDER, config_of, make, marked_ids, story, traces, train_on, write_sources
from typer.testing import CliRunner

from flows.cli.main import make_app
from pipeline_lib.errors import BusyError, NotFoundError
from pipeline_lib.forgetting.forget import forget, plan_forget
from pipeline_lib.forgetting.packed import STAND_IN
from pipeline_lib.packing.cache import ancestry, cache_behind
from pipeline_lib.packing.fill import caches, fill_cache
from pipeline_lib.packing.growth import tombstones_of
from pipeline_lib.reporting.page import report_folder
from pipeline_lib.run import run_plain
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.forgotten import Forgotten
from pipeline_lib.workspace.resolve import reference
from pipeline_lib.workspace.runs import RunBook, RunRecord, this_attempt
from pipeline_lib.workspace.verify import verify_all
from pipeline_lib.workspace.workspace import Workspace


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One real run, copied for every test. A failed attempt, a damaged artifact and MLflow hold texts too."""
    folder = tmp_path_factory.mktemp("made")
    write_sources(folder)
    workspace, record = make(folder)
    train_on(workspace, record)
    record.mlflow = {"run_id": "0f0f"}  # where the tracker puts a copy of the report
    RunBook(workspace.runs_folder).save(record)
    shutil.copytree(report_folder(workspace, record.run_id), workspace.root / "mlartifacts/1/0f0f/artifacts/report")
    ingest = workspace.store.artifact(record.ref("ingest").key)  # type: ignore[union-attr]
    for name in ("work/ingest-" + "0" * 32 + ".0/shards/x", "quarantine/ingest-" + "0" * 32 + "-20260101T000000-abcd/documents"):
        (workspace.root / name).mkdir(parents=True)
        shutil.copy(ingest.files("documents")[0], workspace.root / name)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "f")
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path / "f" / "home"))
    return tmp_path / "f"


def open_home(folder: Path) -> Workspace:
    return Workspace.open(folder / "home")


def millrace(*arguments: str, fault: str = "") -> int:
    """The command in a process of its own, killed where a test wants it."""
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", *arguments],
        env={**os.environ, "MILLRACE_FAULT": fault},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode


def test_a_forgotten_document_is_found_nowhere(folder: Path) -> None:
    workspace = open_home(folder)
    ids = marked_ids(workspace)
    before = traces(workspace.root)
    kinds = ("documents/", "quarantine/", "cache/", "reports/", "mlartifacts/", "work/")
    assert len(ids) == 2
    assert all(any(kind in path for path in before) for kind in kinds), before
    done = forget(workspace, plan_forget(workspace, ids), order=ORDER)
    assert traces(workspace.root) == []
    for doc_id in ids:
        assert traces(workspace.root, doc_id=doc_id) == ["forgotten/documents.parquet"] or _only_quarantine(workspace, doc_id)
    assert verify_all(workspace, full=True) == []
    assert [key.partition("/")[0] for key in done.models] == ["train"]
    assert [key.partition("/")[0] for key in done.tokenizers] == ["pack"]
    assert done.finished


def _only_quarantine(workspace: Workspace, doc_id: str) -> bool:
    """The id of the marked document also stands beside its earlier version's empty excerpt."""
    held = [path for path in traces(workspace.root, doc_id=doc_id) if not path.startswith("forgotten/")]
    rows = [row for path in held for row in pq.read_table(workspace.root / path).to_pylist()]
    return all("quarantine" in path for path in held) and all(row["head"] == b"" for row in rows if row["doc_id"].hex() == doc_id)


def test_everything_else_stays_as_it_was(folder: Path) -> None:
    workspace = open_home(folder)
    record = RunBook(workspace.runs_folder).load("latest")
    key = record.ref("ingest").key  # type: ignore[union-attr]
    before = read_tables(workspace.store.artifact(key).files("documents"))
    ids = marked_ids(workspace)
    chunks_before = {
        n: c.content_digest for a in caches(workspace).values() for n, c in cache_behind(workspace, a).chunks.items()
    }
    plan = plan_forget(workspace, ids)
    packed = {name for packing in plan.packings for name in packing.ranges}
    forget(workspace, plan, order=ORDER)
    after = read_tables(workspace.store.artifact(key).files("documents"))
    gone = {bytes.fromhex(doc_id) for doc_id in ids}
    assert after.to_pylist() == [row for row in before.to_pylist() if row["doc_id"] not in gone]
    (filled,) = caches(workspace).values()
    chunks = {name: facts.content_digest for name, facts in cache_behind(workspace, filled).chunks.items()}
    assert {name for name in chunks if chunks[name] != chunks_before[name]} == packed
    assert 0 < len(packed) < len(chunks)
    for chunk in (workspace.cache_folder / filled.details["cache"]).glob("*.arrow"):
        chunk.unlink()
    assert len(fill_cache(workspace, filled)) == len(chunks)  # every chunk comes out of its range again, with equal content


def test_the_next_run_leaves_it_out_and_reads_only_its_part_again(folder: Path) -> None:
    workspace = open_home(folder)
    old = RunBook(workspace.runs_folder).load("latest")
    ids = marked_ids(workspace)
    forget(workspace, plan_forget(workspace, ids), order=ORDER)
    record = run_plain(workspace, config_of(folder), until="fill_gaps")
    assert record.outcome == "completed", record.error
    assert traces(workspace.root) == []
    ingest = workspace.store.artifact(record.ref("ingest").key)  # type: ignore[union-attr]
    before = workspace.store.manifest(old.ref("ingest").key).counts  # type: ignore[union-attr]
    assert ingest.manifest.counts == {**before, "barred": 3, "replaced": 0, "documents": before["documents"] - 2}
    rows = read_tables(ingest.files("quarantine")).to_pylist()
    assert {(row["reason"], row["head"]) for row in rows} == {("forgotten", b"")}
    assert {row["doc_id"].hex() for row in rows} == set(ids)
    assert [entry.home != "" for entry in ingest.manifest.files if entry.table == "documents"] == [False, True]


def continued(folder: Path, key: str) -> RunRecord:
    """A run that continues the cache of a packing, up to `fill_gaps`."""
    workspace = open_home(folder)
    parent = reference(key, workspace.store.manifest(key).digest)
    record = run_plain(workspace, config_of(folder, pack={"parent": parent}), until="fill_gaps")
    assert record.outcome == "completed", record.error
    return record


def test_every_era_of_a_cache_that_grew_forgets(folder: Path) -> None:
    """A marked document in the first era, one in the second; then a third era buries the rows that others took."""
    workspace = open_home(folder)
    with (folder / "b.jsonl").open("a") as handle:
        handle.writelines(json.dumps({"text": story(n, mark=MARK if n == 2010 else "")}) + "\n" for n in range(2000, 2040))
    first = RunBook(workspace.runs_folder).load("latest").ref("pack").key  # type: ignore[union-attr]
    second = continued(folder, first).ref("pack").key  # type: ignore[union-attr]
    ids = marked_ids(workspace)
    plan = plan_forget(workspace, ids)
    assert [(packing.key, len(packing.ranges)) for packing in plan.packings] == [(key, 1) for key in sorted((first, second))]
    before = {name: filled.details for name, filled in caches(workspace).items()}
    forget(workspace, plan, order=ORDER)
    assert traces(workspace.root) == []
    assert verify_all(workspace, full=True) == []
    for name, filled in caches(workspace).items():
        cache = cache_behind(workspace, filled)
        assert filled.details["documents"] == before[name]["documents"]
        assert fill_cache(workspace, filled) == {}
        for facts in cache.chunks.values():
            facts.file(cache.folder).unlink()
        assert len(fill_cache(workspace, filled)) == len(cache.chunks)  # out of the ranges of both eras, with equal content
    assert traces(workspace.root) == []

    third = workspace.store.artifact(continued(folder, second).ref("pack").key)  # type: ignore[union-attr]
    assert (third.details["era"], third.details["parent"].partition("#")[0]) == (2, f"artifact:{second}")
    rows = pa.concat_tables([pq.read_table(pack.file("rows")) for pack in ancestry(workspace, third)])
    taken = np.flatnonzero(rows["pass"].to_numpy() == STAND_IN)
    assert len(taken) == 2
    assert set(taken) <= set(tombstones_of(third).tolist())
    assert traces(workspace.root) == []


def test_no_tombstone_comes_back_in_the_place_of_a_forgotten_document(folder: Path) -> None:
    workspace = open_home(folder)
    first = RunBook(workspace.runs_folder).load("latest").ref("pack").key  # type: ignore[union-attr]
    rows = pq.read_table(workspace.store.artifact(first).file("rows")).to_pylist()
    train = [number for number, row in enumerate(rows) if row["side"] == "train"]
    alone, buried = rows[train[40]]["doc_id"].hex(), rows[train[41]]["doc_id"].hex()
    texts = {row["doc_id"].hex(): row["text"] for row in _documents_of(workspace)}
    for name in ("a.jsonl", "b.jsonl"):  # the next night does not bring it any more
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(line for line in lines if json.loads(line)["text"] != texts[buried]))
    second = workspace.store.artifact(continued(folder, first).ref("pack").key)  # type: ignore[union-attr]
    assert train[41] in tombstones_of(second)
    forget(workspace, plan_forget(workspace, [alone]), order=ORDER)
    after = pq.read_table(workspace.store.artifact(first).file("rows"))["doc_id"].to_pylist()
    assert after[train[40]].hex() not in (alone, buried)
    assert verify_all(workspace, full=True) == []


def _documents_of(workspace: Workspace) -> list[dict[str, Any]]:
    ingest = RunBook(workspace.runs_folder).load("latest").ref("ingest")
    return read_tables(workspace.store.artifact(ingest.key).files("documents")).to_pylist()  # type: ignore[union-attr]


def test_a_source_goes_for_ever(folder: Path) -> None:
    workspace = open_home(folder)
    plan = plan_forget(workspace, source="blog")
    assert plan.documents.num_rows == 60
    forget(workspace, plan, order=ORDER)
    assert traces(workspace.root, "Night 1007 ends") == []
    more = (folder / "b.jsonl").read_text() + json.dumps({"text": "A new page of the blog that nobody wants to read."}) + "\n"
    (folder / "b.jsonl").write_text(more)
    record = run_plain(workspace, config_of(folder), until="ingest")
    documents = read_tables(workspace.store.artifact(record.ref("ingest").key).files("documents"))  # type: ignore[union-attr]
    assert set(documents["source"].to_pylist()) == {"diary"}


def test_a_copy_under_another_id_is_told_and_goes_when_asked(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"{MARK}  says {n // 2}"}) + "\n" for n in range(6)))
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "1", "text": f"{MARK} SAYS 0"}) + "\n")
    workspace = Workspace.open(tmp_path / "home")
    assert run_plain(workspace, config_of(tmp_path), until="ingest").outcome == "completed"
    one = marked_ids(workspace, "says 0")[0]
    plan = plan_forget(workspace, [one])
    assert (plan.documents.num_rows, plan.copies) == (1, 2)
    assert plan_forget(workspace, [one], copies=True).documents.num_rows == 3


def test_near_duplicates_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near = [story(7, mark=MARK), *(f"{story(7, mark=MARK)} Version {n}." for n in range(3))]
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "1", "text": story(8)}) + "\n")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [near[0], *near]))
    workspace = Workspace.open(tmp_path / "home")
    assert run_plain(workspace, config_of(tmp_path), until="dedup").outcome == "completed"
    (one,) = marked_ids(workspace, "Version 0.")
    plan = plan_forget(workspace, [one])
    assert (plan.copies, plan.near) == (0, 4)
    ids = marked_ids(workspace)
    assert len(ids) == 5
    assert plan_forget(workspace, ids).near == 0
    monkeypatch.setenv("MILLRACE_HOME", str(workspace.root))
    assert "4 near duplicates stay" in CliRunner().invoke(make_app(), ["forget", one]).output


@pytest.mark.parametrize(
    "fault", ["forget.before_manifest", "forget.after_manifest:3", "cache.before_commit", "forget.after_manifest:6"]
)
def test_a_kill_in_the_middle_is_completed_by_the_next_call(folder: Path, fault: str) -> None:
    workspace = open_home(folder)
    ids = marked_ids(workspace)
    assert millrace("forget", *ids, "--yes", fault=fault) == -9
    assert traces(workspace.root)  # the kill came early enough to matter
    assert Forgotten.read(workspace.root).unfinished
    done = forget(workspace, plan_forget(workspace), order=ORDER)
    assert done.finished
    assert done.models
    assert traces(workspace.root) == []
    assert verify_all(workspace, full=True) == []
    (filled,) = caches(workspace).values()
    assert fill_cache(workspace, filled) == {}


def test_with_a_run_alive_only_the_list_is_written(folder: Path) -> None:
    workspace = open_home(folder)
    book = RunBook(workspace.runs_folder)
    record = book.load("latest")
    record.outcome, record.attempts = "running", [this_attempt()]
    book.save(record)
    ids = marked_ids(workspace)
    with pytest.raises(BusyError):
        forget(workspace, plan_forget(workspace, ids), order=ORDER)
    assert {doc_id.hex() for doc_id in Forgotten.read(workspace.root).ids.to_pylist()} == set(ids)
    assert traces(workspace.root)
    record.outcome = "completed"
    book.save(record)
    forget(workspace, plan_forget(workspace), order=ORDER)
    assert traces(workspace.root) == []


def test_without_yes_nothing_happens(folder: Path) -> None:
    workspace = open_home(folder)
    ids = marked_ids(workspace)
    shown = CliRunner().invoke(make_app(), ["forget", *ids])
    assert shown.exit_code == 0
    assert "nothing was done" in shown.output
    assert "learned by model train/" in shown.output
    told = json.loads(CliRunner().invoke(make_app(), ["forget", *ids, "--json"]).output)
    assert told["documents"] == 2
    assert not told["done"]
    assert marked_ids(workspace) == ids
    assert not Forgotten.read(workspace.root).requests
    assert CliRunner().invoke(make_app(), ["forget", "0" * 32]).exit_code == NotFoundError.exit_code
    assert CliRunner().invoke(make_app(), ["forget", "nonsense"]).exit_code == 2


def test_a_store_elsewhere_forgets_too(tmp_path: Path) -> None:
    write_sources(tmp_path)
    (tmp_path / "store").mkdir()
    workspace = Workspace.open(tmp_path / "home", store_url=f"file://{tmp_path}/store")
    record = run_plain(workspace, config_of(tmp_path), until="ingest")
    assert record.outcome == "completed", record.error
    assert traces(tmp_path / "store")
    forget(workspace, plan_forget(workspace, marked_ids(workspace)), order=ORDER)
    assert traces(tmp_path / "store") == []
    assert traces(workspace.root) == []
    assert verify_all(workspace, full=True) == []


def test_what_earlier_nights_share_is_cut_once_for_all(folder: Path) -> None:
    """A second night takes the marked part over from the first: its artifact names the first one's file."""
    workspace = open_home(folder)
    with (folder / "b.jsonl").open("a") as handle:
        handle.write(json.dumps({"text": "One more page."}) + "\n")
    record = run_plain(workspace, config_of(folder), until="score")
    manifest = workspace.store.manifest(record.ref("ingest").key)  # type: ignore[union-attr]
    assert any(entry.home for entry in manifest.files if entry.table == "documents")
    forget(workspace, plan_forget(workspace, marked_ids(workspace)), order=ORDER)
    assert traces(workspace.root) == []
    assert verify_all(workspace, full=True) == []
