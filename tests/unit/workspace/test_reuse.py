"""Reuse, damage, force, growth: what the engine promises about one stage after another."""

import os
from pathlib import Path

import pytest
from workspace_toys import CLOCK, COUNT, EVEN, HUNGRY, LOSING, Config, config, files_of, make

from pipeline_lib.errors import DamagedError, NotFoundError, StageFailedError
from pipeline_lib.workspace.files import read_json
from pipeline_lib.workspace.services import Services, thread_mapper
from pipeline_lib.workspace.workspace import Workspace
from tests.mappers import process_mapper


@pytest.fixture
def workspace(tmp_path):
    return Workspace.open(tmp_path / "w")


@pytest.fixture
def diary(tmp_path, monkeypatch):
    path = tmp_path / "diary"
    monkeypatch.setenv("TOY_DIARY", str(path))

    def read():
        made = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return sorted(made)

    return read


def spoil(path: Path, data: bytes = b"X"):
    """Change a byte without changing the size."""
    with path.open("r+b") as handle:
        handle.write(data)


def test_the_same_recipe_is_made_once(workspace, diary):
    first = make(workspace)
    assert diary() == ["ash", "birch", "cedar"]
    second = make(workspace)
    assert diary() == []
    assert (first.reused, second.reused) == (False, True)
    assert second.digest == first.digest
    assert [path.read_text() for path in files_of(workspace, second, "upper")] == ["ASH", "BIRCH", "CEDAR"]


def test_nothing_of_the_work_remains(workspace):
    make(workspace)
    assert {path.name for path in workspace.work_folder.iterdir()} <= {"locks", "uses"}


def test_a_published_folder_never_changes(workspace):
    ref = make(workspace)
    folder = workspace.root / "artifacts" / ref.key
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")} | {folder: folder.stat().st_mtime_ns}
    make(workspace)
    files_of(workspace, ref, "letters")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} | {folder: folder.stat().st_mtime_ns} == before


def test_other_parameters_are_another_artifact_and_the_input_counts_by_content(workspace):
    words = make(workspace)
    first = make(workspace, Config(), COUNT, {"words": words})
    assert make(workspace, config(offset=1), COUNT, {"words": words}).fingerprint != first.fingerprint
    forced = make(workspace, force=True)
    assert forced.key == words.key[:-1] + "1"
    assert make(workspace, Config(), COUNT, {"words": forced}).reused  # equal bytes cut off early


def test_a_changed_input_flows_on_only_where_it_is_read(workspace):
    before, after = make(workspace, config("ash", "birch")), make(workspace, config("ash", "cedar"))
    assert not make(workspace, Config(), COUNT, {"words": before}).reused
    assert not make(workspace, Config(), COUNT, {"words": after}).reused
    assert not make(workspace, Config(), EVEN, {"words": before}).reused
    assert make(workspace, Config(), EVEN, {"words": after}).reused  # the details are equal


def test_force_makes_every_shard_again(workspace, diary):
    make(workspace)
    diary()
    forced = make(workspace, force=True)
    assert diary() == ["ash", "birch", "cedar"]
    assert not forced.reused


def test_a_recorded_stage_is_the_truth_until_force_and_a_forced_one_is_next(workspace):
    first = make(workspace, stage=CLOCK)
    assert make(workspace, stage=CLOCK).digest == first.digest
    forced = make(workspace, stage=CLOCK, force=True)
    assert forced.digest != first.digest
    assert make(workspace, stage=CLOCK).digest == forced.digest


def test_unequal_counts_publish_nothing(workspace):
    with pytest.raises(StageFailedError, match="3 went in, 2 are accounted for"):
        make(workspace, stage=LOSING)
    assert list(workspace.store.keys()) == []


@pytest.mark.parametrize("how", ["bytes", "size", "missing"])
def test_damage_goes_to_quarantine_and_only_the_damaged_shard_is_remade(workspace, diary, how):
    ref = make(workspace)
    victim = files_of(workspace, ref, "upper")[1]
    wanted = victim.read_bytes()
    diary()
    if how == "bytes":
        spoil(victim)
    elif how == "size":
        victim.write_bytes(b"BIRCHES")
    else:
        victim.unlink()
    said = []
    again = make(workspace, services=Services(log=said.append))
    assert not again.reused
    assert again.digest == ref.digest
    assert again.key == ref.key  # what refers to it (champion, records) finds it again
    assert diary() == ["birch"]
    assert victim.read_bytes() == wanted
    (aside,) = workspace.quarantine_folder.iterdir()
    assert "upper" in read_json(aside / "reason.json")["reason"]
    assert any("damaged" in line for line in said)
    assert workspace.store.artifact(ref.key).damages(full=True) == {}


def test_an_unreadable_manifest_is_damage_too(workspace, diary):
    ref = make(workspace)
    (workspace.root / "artifacts" / ref.key / "manifest.json").write_text('{"half": ')
    diary()
    assert make(workspace).digest == ref.digest
    assert diary() == ["ash", "birch", "cedar"]


def test_a_consumer_does_not_read_damaged_bytes(workspace):
    ref = make(workspace)
    spoil(files_of(workspace, ref, "letters")[0])
    with pytest.raises(DamagedError, match="bytes differ"):
        make(workspace, Config(), COUNT, {"words": ref})


def test_a_flip_that_hides_its_time_is_found_by_the_rotating_sample(workspace):
    ref = make(workspace)
    victim = files_of(workspace, ref, "letters")[2]
    stat = victim.stat()
    spoil(victim)
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    files = len(workspace.store.manifest(ref.key).files)
    reused = [make(workspace).reused for _ in range(files)]
    assert reused.count(False) == 1
    assert workspace.store.artifact(ref.key).damages(full=True) == {}


def test_a_full_check_finds_it_at_once(workspace):
    ref = make(workspace)
    victim = files_of(workspace, ref, "letters")[2]
    stat = victim.stat()
    spoil(victim)
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert list(workspace.store.artifact(ref.key).damages(full=True).values()) == ["bytes differ from what was committed"]


def test_a_copied_workspace_is_checked_by_digest_and_reused(workspace, tmp_path):
    import shutil

    make(workspace)
    shutil.copytree(workspace.root, tmp_path / "copy")
    assert make(Workspace.open(tmp_path / "copy")).reused


def test_growth_takes_over_segments_and_retires_the_missing(workspace, diary):
    first = make(workspace, config("ash", "birch", "cedar"))
    diary()
    second = make(workspace, config("birch", "cedar", "elm"))
    assert diary() == ["elm"]
    manifest = workspace.store.manifest(second.key)
    assert second.metrics["taken_over"] == 2
    assert manifest.parent == first.digest
    assert len(manifest.tombstones) == 1
    assert manifest.tombstones[0] in workspace.store.manifest(first.key).shards
    homes = {entry.home for entry in manifest.files if entry.table == "letters"}
    assert homes == {first.key, ""}
    assert [path.read_text() for path in files_of(workspace, second, "upper")] == ["BIRCH", "CEDAR", "ELM"]


def test_how_an_artifact_grew_does_not_show_in_its_digest(workspace, tmp_path):
    make(workspace, config("ash", "birch", "cedar"))
    grown = make(workspace, config("birch", "cedar", "elm"))
    at_once = make(Workspace.open(tmp_path / "other"), config("birch", "cedar", "elm"))
    assert grown.digest == at_once.digest
    assert grown.fingerprint == at_once.fingerprint


def test_damage_of_a_segment_leaves_what_others_call_home(workspace, diary):
    first = make(workspace, config("ash", "birch", "cedar"))
    second = make(workspace, config("birch", "cedar", "elm"))
    spoil(files_of(workspace, first, "upper")[0])  # ash: nobody else's
    diary()
    again = make(workspace, config("ash", "birch", "cedar", "fir"))  # known shards: the damaged one is not believed
    assert diary() == ["ash", "fir"]
    assert make(workspace, config("birch", "cedar", "elm")).reused
    assert make(workspace, config("ash", "birch", "cedar")).digest == first.digest
    assert make(workspace, config("birch", "cedar", "elm")).reused
    for ref in (first, second, again):
        assert workspace.store.artifact(ref.key).damages(full=True) == {}


def test_quarantine_of_a_home_keeps_the_intact_files_that_others_need(workspace):
    first = make(workspace, config("ash", "birch"))
    second = make(workspace, config("birch", "elm"))
    spoil(files_of(workspace, first, "letters")[0])
    damages = workspace.store.artifact(first.key).damages()
    workspace.store.quarantine(first.key, "test", damages)
    with pytest.raises(NotFoundError):
        workspace.store.manifest(first.key)
    assert workspace.store.artifact(second.key).damages(full=True) == {}
    assert workspace.store.scrap() == []
    assert make(workspace, config("ash", "birch")).digest == first.digest
    assert workspace.store.artifact(second.key).damages(full=True) == {}


@pytest.mark.parametrize("mapper", [thread_mapper(1), thread_mapper(4), process_mapper(2)], ids=["one", "threads", "processes"])
def test_bytes_do_not_depend_on_workers(tmp_path, mapper):
    items = [f"tree{i}" for i in range(8)]
    reference = make(Workspace.open(tmp_path / "reference"), config(*items))
    told = []
    ref = make(Workspace.open(tmp_path / "w"), config(*items), services=Services(mapper=mapper, announce=told.append))
    assert ref.digest == reference.digest
    assert told[0].total == 8


def test_progress_counts_every_shard_from_threads(workspace):
    told = []
    make(workspace, config(*"abcdef"), services=Services(mapper=thread_mapper(3), announce=told.append))
    assert [progress.done for progress in told] == [0, 1, 2, 3, 4, 5, 6]


def test_peak_memory_is_the_stage_s_own(workspace):
    block = bytearray(os.urandom(2**20) * 200)
    del block  # an earlier peak of the process must not count
    small = workspace.store.manifest(make(workspace).key).peak_memory_bytes
    large = workspace.store.manifest(make(workspace, stage=HUNGRY).key).peak_memory_bytes
    assert 80 * 2**20 < large - small < 160 * 2**20


@pytest.mark.parametrize(
    "key", ["../../etc", "words/../../x.0", "words/" + "g" * 32 + ".0", "/etc/passwd", "words/" + "0" * 32, ""]
)
def test_no_key_leads_out_of_the_store(workspace, key):
    with pytest.raises(NotFoundError):
        workspace.store.manifest(key)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b", "", "a\\..\\b"])
def test_no_path_of_a_manifest_leads_out_of_its_artifact(workspace, path):
    with pytest.raises(DamagedError):
        workspace.store.place("words/" + "0" * 32 + ".0", path)


def test_changed_code_under_an_unchanged_version_is_said(workspace):
    ref = make(workspace)
    path = workspace.root / "artifacts" / ref.key / "manifest.json"
    path.write_text(path.read_text().replace(read_json(path)["code"]["digest"], "0" * 64))
    said = []
    assert make(workspace, services=Services(log=said.append)).reused
    assert any("the code changed" in line for line in said)
