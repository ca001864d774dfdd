"""What stays and what goes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from workspace_toys import COUNT, config, make

from pipeline_lib.config.resources import KeepConfig
from pipeline_lib.errors import RefusedError
from pipeline_lib.tracking.spool import Spool
from pipeline_lib.workspace.gc import apply_gc, plan_gc
from pipeline_lib.workspace.resolve import reference, write_champion
from pipeline_lib.workspace.runs import RunBook, RunRecord, StageRecord
from pipeline_lib.workspace.uses import _marks
from pipeline_lib.workspace.workspace import Workspace

KEEP = KeepConfig(runs=1, days=0)


@pytest.fixture
def workspace(tmp_path):
    yield Workspace.open(tmp_path / "w")
    forget()


def forget():
    """As if the process that made everything had ended."""
    for mark in _marks.values():
        mark.lock.release()
        mark.path.unlink(missing_ok=True)
    _marks.clear()


def record(workspace, run_id, *refs, outcome="completed", **more):
    stages = {ref.stage: StageRecord("made", ref.to_json()) for ref in refs}
    value = RunRecord(run_id, "p", started="2020-01-01T00:00:00+00:00", outcome=outcome, stages=stages, **more)
    RunBook(workspace.runs_folder).save(value)
    return value


def names(plan, kind="artifact"):
    return {thing.name for thing in plan.doomed if thing.kind == kind}


def night(workspace, *items):
    words = make(workspace, config(*items))
    return words, make(workspace, config(*items), COUNT, {"words": words})


def test_what_this_process_made_stays_while_it_lives(workspace):
    words, count = night(workspace, "ash")
    assert names(plan_gc(workspace, KEEP)) == set()
    forget()
    assert names(plan_gc(workspace, KEEP)) == {words.key, count.key}


def test_newest_pinned_and_running_runs_stay_with_their_inputs(workspace):
    nights = [night(workspace, item) for item in ("a", "b", "c", "d")]
    for number, (_, count) in enumerate(nights):
        record(workspace, f"2020010{number}-000000-aaaaaa", count, outcome="running" if number == 1 else "completed")
    forget()
    book = RunBook(workspace.runs_folder)
    book.pin("20200100-000000-aaaaaa")
    plan = plan_gc(workspace, KEEP)
    assert names(plan) == {ref.key for ref in nights[2]}  # not pinned, not running, not the newest
    assert plan.kept[nights[0][1].key] == "pinned run 20200100-000000-aaaaaa"
    assert plan.kept[nights[0][0].key].startswith(f"needed by {nights[0][1].key}")
    book.unpin("20200100-000000-aaaaaa")
    assert names(plan_gc(workspace, KEEP)) == {ref.key for ref in (*nights[2], *nights[0])}


def test_a_pin_survives_the_saves_of_a_live_run(workspace):
    live = record(workspace, "20200101-000000-aaaaaa", outcome="running")
    book = RunBook(workspace.runs_folder)
    book.pin(live.run_id)
    book.save(live)  # it does not know of the pin
    assert book.load(live.run_id).pinned


def test_young_runs_stay(workspace):
    words, _ = night(workspace, "a")
    old, young = record(workspace, "20200101-000000-aaaaaa", words), record(workspace, "20200102-000000-aaaaaa")
    forget()
    assert words.key in names(plan_gc(workspace, KeepConfig(runs=1, days=3)))
    old.started = __import__("datetime").datetime.now(__import__("datetime").UTC).isoformat()
    RunBook(workspace.runs_folder).save(old)
    assert words.key not in names(plan_gc(workspace, KeepConfig(runs=1, days=3)))
    assert young.run_id > old.run_id


def test_champion_and_previous_stay_and_what_a_run_resolved(workspace):
    first, second, third, fourth = (make(workspace, config(item)) for item in "abcd")
    write_champion(workspace, {"champion": {"train": first.key}, "previous": {"train": second.key}})
    record(workspace, "20200101-000000-aaaaaa", resolved={"model.start=champion": reference(third.key, third.digest)})
    forget()
    plan = plan_gc(workspace, KEEP)
    assert names(plan) == {fourth.key}
    assert plan.kept[first.key] == "champion"
    assert plan.kept[second.key] == "previous"


def test_former_champions_stay_alone_while_the_gate_compares_with_them(workspace):
    made, compared = night(workspace, "ash")
    older, past = night(workspace, "oak")
    history = [
        {"train": ref.key, "compared_until": f"{year}-01-01T00:00:00+00:00"} for ref, year in ((past, 2020), (compared, 2999))
    ]
    write_champion(workspace, {"history": [{}, *history]})
    forget()
    plan = plan_gc(workspace, KEEP)
    assert names(plan) == {made.key, older.key, past.key}
    assert plan.kept[compared.key] == "a former champion"


def test_segments_that_others_call_home_stay(workspace):
    first = make(workspace, config("a", "b"))
    second = make(workspace, config("b", "c"))
    unrelated = make(workspace, config("x"))
    record(workspace, "20200101-000000-aaaaaa", second)
    forget()
    plan = plan_gc(workspace, KEEP)
    assert names(plan) == {unrelated.key}
    apply_gc(workspace, plan)
    forget()
    assert workspace.store.artifact(second.key).damages(full=True) == {}
    assert workspace.store.has(first.key)


def test_a_dry_run_removes_nothing_and_applying_frees_what_was_said(workspace):
    words, count = night(workspace, "ash", "birch")
    forget()
    plan = plan_gc(workspace, KEEP)
    assert workspace.store.has(words.key)
    own = [path for path in (workspace.root / "artifacts").rglob("*.*") if path.is_file() and path.name != "manifest.json"]
    assert plan.bytes == sum(path.stat().st_size for path in own)
    removed = apply_gc(workspace, plan)

    assert {thing.name for thing in removed} == {words.key, count.key}
    assert list((workspace.root / "artifacts").glob("*/*")) == []
    assert apply_gc(workspace, plan) == []


def test_what_came_into_use_after_the_plan_is_not_removed(workspace):
    words, count = night(workspace, "ash")
    forget()
    plan = plan_gc(workspace, KEEP)
    assert make(workspace, config("ash")).reused
    assert {thing.name for thing in apply_gc(workspace, plan)} == {count.key}
    assert workspace.store.has(words.key)


def test_packed_chunks_live_as_long_as_their_pack(workspace):
    fingerprint = "a" * 32
    for name in (fingerprint, "b" * 32):
        folder = workspace.cache_folder / name
        folder.mkdir(parents=True)
        (folder / "chunk").write_bytes(b"x" * 100)
    value = record(workspace, "20200101-000000-aaaaaa")
    value.stages["pack"] = StageRecord("made", {"stage": "pack", "key": f"pack/{fingerprint}.0", "digest": "d"})
    RunBook(workspace.runs_folder).save(value)
    plan = plan_gc(workspace, KEEP)
    assert names(plan, "cache") == {"cache/" + "b" * 32}
    assert plan.bytes == 100
    apply_gc(workspace, plan)
    assert [path.name for path in workspace.cache_folder.iterdir()] == [fingerprint]


def test_work_of_a_living_owner_and_young_work_stay(workspace):
    key, day = "words-" + "c" * 32, 86400
    folder = workspace.work_folder / f"{key}.0"
    (folder / "shards").mkdir(parents=True)
    keep = KeepConfig(runs=1, days=2)
    assert names(plan_gc(workspace, keep), "work") == set()
    for path in (folder, folder / "shards"):
        os.utime(path, (time.time() - 3 * day, time.time() - 3 * day))
    code = "import sys, time; from pathlib import Path; from pipeline_lib.workspace.lease import lease\n"
    code += "with lease(Path(sys.argv[1]), wait=True, log=print):\n    print('held', flush=True); time.sleep(60)\n"
    command = [sys.executable, "-c", code, str(workspace.lease_path(key))]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
    try:
        assert owner.stdout.readline() == "held\n"
        assert names(plan_gc(workspace, keep), "work") == set()
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    plan = plan_gc(workspace, keep)
    assert names(plan, "work") == {f"work/{key}.0"}
    apply_gc(workspace, plan)
    assert not folder.exists()


def test_only_the_owner_of_a_store_collects(tmp_path):
    url = f"memory://{tmp_path.name}"
    first = Workspace.open(tmp_path / "first", store_url=url)
    make(first)
    forget()
    plan = plan_gc(first, KEEP)
    assert len(names(plan)) == 1
    assert first.store.owner(first.id) == first.id
    second = Workspace.open(tmp_path / "second", store_url=url)
    with pytest.raises(RefusedError, match=first.id):
        apply_gc(second, plan_gc(second, KEEP))
    assert len(apply_gc(first, plan)) == 1
    assert list(first.store.keys()) == []


def test_a_spool_goes_when_all_of_it_arrived_long_ago_and_its_run_is_over(workspace):
    record(workspace, "20200101-000000-aaaaaaaa")
    record(workspace, "20200102-000000-aaaaaaaa", outcome="running")
    spools = {}
    for day, delivered, days_old in [("01", True, 20), ("02", True, 20), ("03", False, 20), ("04", True, 1)]:
        spool = spools[day] = Spool(workspace.spool_folder / f"202001{day}-000000-aaaaaaaa.jsonl")
        spool.append("tags", "run", values={})
        if delivered:
            spool.note(spool.path.stat().st_size)
        spool.path.with_suffix(".lock").touch()
        then = time.time() - days_old * 86400
        os.utime(spool.path, (then, then))
    plan = plan_gc(workspace, KeepConfig(runs=1, days=14))
    assert names(plan, "spool") == {f"spool/{spools['01'].path.name}"}
    apply_gc(workspace, plan)
    assert not list(workspace.spool_folder.glob("20200101*"))
    assert len(list(workspace.spool_folder.glob("*.jsonl"))) == 3
