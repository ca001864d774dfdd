"""Verification, disk usage and estimates."""

import json
import shutil

import pytest
from workspace_toys import config, files_of, make

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import RefusedError
from pipeline_lib.workspace.resolve import write_champion
from pipeline_lib.workspace.runs import RunBook, RunRecord, StageRecord
from pipeline_lib.workspace.usage import disk_by_factors, disk_estimate, disk_usage, model_parameters, require_disk
from pipeline_lib.workspace.verify import verify_all
from pipeline_lib.workspace.workspace import Workspace


@pytest.fixture
def workspace(tmp_path):
    return Workspace.open(tmp_path / "w")


def test_verification_names_every_damage(workspace):
    ref, other = make(workspace), make(workspace, config("elm"))
    assert verify_all(workspace, full=True) == []
    files_of(workspace, ref, "upper")[0].write_bytes(b"XXX")
    manifest = workspace.root / "artifacts" / other.key / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"n": 1', '"n": 2'))
    (workspace.runs_folder / "20260101-000000-aaaaaa.json").write_text("{half")
    RunBook(workspace.runs_folder).save(
        RunRecord("20260102-000000-aaaaaa", "p", stages={"x": StageRecord("made", {"key": "x/" + "0" * 32 + ".0"})})
    )
    RunBook(workspace.runs_folder).pin("20260102-000000-aaaaaa")
    write_champion(workspace, {"champion": {"train": "train/" + "0" * 32 + ".0"}, "previous": None})
    found = {finding.where: finding.what for finding in verify_all(workspace, full=False)}
    assert len(found) == 5
    (damaged,) = [where for where in found if where.startswith(ref.key)]
    assert found[damaged] == "bytes differ from what was committed"
    assert "not that of the files and details" in found[other.key]
    assert "cannot be read" in found["runs/20260101-000000-aaaaaa.json"]
    assert "is gone" in found["runs/20260102-000000-aaaaaa.json"]
    assert found["champion.json"].startswith("champion names train/")
    (workspace.root / "champion.json").write_text('{"champion": 3}')
    assert [one.where for one in verify_all(workspace, full=False) if "TypeError" in one.what] == ["champion.json"]
    write_champion(workspace, {"champion": {"train": ref.key, "digest": ref.digest, "promoted": "2026-01-01", "by": "gate"}})
    assert [one.what for one in verify_all(workspace, full=False) if one.where == "champion.json"] == ["champion has no run_id"]


def test_usage_counts_every_byte_once(workspace):
    make(workspace)
    (workspace.cache_folder / "x").mkdir(parents=True)
    (workspace.cache_folder / "x" / "chunk").write_bytes(b"x" * 1000)
    (workspace.cache_folder / "x" / "again").hardlink_to(workspace.cache_folder / "x" / "chunk")
    (workspace.root / "curves" / "run").mkdir(parents=True)  # of TensorBoard: no folder that the collector knows
    (workspace.root / "curves" / "run" / "events").write_bytes(b"x" * 500)
    rows = {what: (files, size) for what, files, size in disk_usage(workspace).rows}
    there = {file.stat().st_ino: file.stat().st_size for file in workspace.root.rglob("*") if file.is_file()}
    assert rows["total"] == (len(there), sum(there.values()))
    assert rows["curves"] == (1, 500)
    assert rows["cache"] == (1, 1000)
    assert rows["artifacts/words"][0] == 9
    assert rows["total"][1] == sum(size for what, (_, size) in rows.items() if what not in {"total", "free"})
    assert rows["free"][1] == pytest.approx(shutil.disk_usage(workspace.root).free, rel=0.01)


def sized(size, folder, **more):
    folder.mkdir(exist_ok=True)
    (folder / "a.txt").write_bytes(b"x" * size)
    return PipelineConfig.model_validate(
        {"ingest": {"sources": [{"name": "s", "kind": "files", "path": str(folder), "max_mb": 1000}]}, **more}
    )


def test_the_estimate_follows_the_sources_and_the_model(workspace, tmp_path):
    small, large = sized(1_000_000, tmp_path / "a"), sized(3_000_000, tmp_path / "b")
    one, three = disk_estimate(workspace, small), disk_estimate(workspace, large)
    assert three.stages["ingest"] == pytest.approx(3 * one.stages["ingest"], abs=3)
    assert three.stages["train"] == one.stages["train"]
    assert disk_estimate(workspace, small, reused=["train"]).total == one.total - one.stages["train"]
    wide = disk_by_factors(sized(1000, tmp_path / "a", model={"width": 384, "heads": 4}))
    assert wide["train"] > 1.9 * one.stages["train"]


def test_parameters_are_those_of_the_real_model():
    """4096 · 192 + 4 · (4 · 192² + 3 · 192 · 512 + 2 · 192) + 192, counted by hand."""
    assert model_parameters(PipelineConfig()) == 786432 + 4 * (147456 + 294912 + 384) + 192


def test_parameters_of_a_start_are_those_in_its_files(workspace, tmp_path):
    header = {"a": {"dtype": "F32", "shape": [1000, 48]}, "b": {"dtype": "F32", "shape": [48]}, "__metadata__": {"format": "pt"}}
    text = json.dumps(header).encode()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    given = sized(1000, tmp_path / "a", model={"start": str(tmp_path / "base")})
    assert model_parameters(given) == 48_048
    assert disk_estimate(workspace, given).stages["train"] % 48_048 == 0
    (tmp_path / "base" / "model.safetensors").write_bytes(b"\xff" * 100)
    assert model_parameters(given) == model_parameters(PipelineConfig())


def test_real_sizes_count_when_there_are_some(workspace, tmp_path):
    given = sized(1_000_000, tmp_path / "a")
    ref = make(workspace)
    own = sum(entry.size for entry in workspace.store.manifest(ref.key).files)
    record = RunRecord("20260101-000000-aaaaaa", given.name, config=given.model_dump(mode="json"), outcome="completed")
    record.stages["ingest"] = StageRecord("made", ref.to_json())
    RunBook(workspace.runs_folder).save(record)
    estimate = disk_estimate(workspace, given)
    assert estimate.stages["ingest"] == own
    assert "20260101-000000-aaaaaa" in estimate.basis
    twice = disk_estimate(workspace, given.model_copy(update={"ingest": sized(2_000_000, tmp_path / "b").ingest}))
    assert twice.stages["ingest"] == pytest.approx(2 * own, abs=1)


def test_too_little_disk_is_refused_before_the_start(workspace, tmp_path):
    given = sized(1000, tmp_path / "a")
    assert require_disk(workspace, given).total > 0
    huge = PipelineConfig.model_validate({"ingest": {"sources": [{"name": "s", "max_mb": 1e12}]}})
    with pytest.raises(RefusedError, match=r"1\.2 times"):
        require_disk(workspace, huge)
