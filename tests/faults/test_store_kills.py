"""SIGKILL at every commit point of the store: the next plain run finds nothing torn, repeats little, and ends with the same
bytes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOYS = Path(__file__).parents[1] / "unit" / "workspace"
sys.path.insert(0, str(TOYS))

from workspace_toys import COUNT, config, make, run_both  # noqa: E402

from pipeline_lib.config.resources import KeepConfig  # noqa: E402
from pipeline_lib.workspace.gc import apply_gc, plan_gc  # noqa: E402
from pipeline_lib.workspace.verify import verify_all  # noqa: E402
from pipeline_lib.workspace.workspace import Workspace  # noqa: E402

ITEMS = ("ash", "birch", "cedar")
RUN = """
import os, pathlib, sys, time
from workspace_toys import run_both
run_both(sys.argv[1], *sys.argv[2:])
if finish := os.environ.get("TOY_FINISH"):  # live on, as a process with more stages to run would
    pathlib.Path(f"{finish}-{os.getpid()}").touch()
    while not pathlib.Path(finish).exists():
        time.sleep(0.01)
"""

# points that toy stages pass, and how many shards are made after a kill there
POINTS = [
    ("shard.before_commit", 3),
    ("shard.before_commit:2", 2),
    ("shard.after_commit", 2),
    ("shard.after_commit:3", 0),
    ("publish.before_sync", 0),
    ("publish.before_rename", 0),
    ("publish.before_manifest", 0),
    ("publish.after_manifest", 0),
    ("publish.before_sync:2", 0),
    ("publish.before_rename:2", 0),
    ("publish.before_manifest:2", 0),
    ("publish.after_manifest:2", 0),
]


def child(root, *items, fault="", diary=None, **more):
    environment = {**os.environ, "PYTHONPATH": str(TOYS), "MILLRACE_FAULT": fault, "TOY_DIARY": str(diary or ""), **more}
    return subprocess.Popen([sys.executable, "-c", RUN, str(root), *items], env=environment, cwd=Path(__file__).parents[2])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    run_both(str(root), *ITEMS)
    return digests(root)


def digests(root):
    store = Workspace.open(root).store
    keys = store.keys()
    return {key: store.manifest(key).digest for key in keys}


@pytest.mark.parametrize(("point", "made_after"), POINTS)
def test_a_kill_costs_little_and_changes_nothing(tmp_path, undisturbed, point, made_after):
    process = child(tmp_path / "w", *ITEMS, fault=point)
    assert process.wait(60) == -signal.SIGKILL
    workspace = Workspace.open(tmp_path / "w")
    assert verify_all(workspace, full=True) == []  # what is published is whole
    diary = tmp_path / "diary"
    os.environ["TOY_DIARY"] = str(diary)
    try:
        run_both(str(workspace.root), *ITEMS)
    finally:
        del os.environ["TOY_DIARY"]
    assert len(diary.read_text().split() if diary.exists() else []) == made_after
    assert digests(workspace.root) == undisturbed
    assert verify_all(workspace, full=True) == []


@pytest.mark.parametrize("point", ["publish.before_manifest", "publish.after_manifest", "publish.before_rename"])
def test_a_store_without_rename_is_committed_by_its_manifest_alone(tmp_path, undisturbed, point):
    """`file://` stands for a store elsewhere: files are uploaded, the manifest last, the mirror after it."""
    url = f"file://{tmp_path}/store"
    assert child(tmp_path / "w", *ITEMS, fault=point, MILLRACE_STORE=url).wait(60) == -signal.SIGKILL
    published = list(Workspace.open(tmp_path / "there", store_url=url).store.keys("words"))
    assert len(published) == (0 if point == "publish.before_manifest" else 1)
    assert child(tmp_path / "w", *ITEMS, MILLRACE_STORE=url).wait(60) == 0
    elsewhere = Workspace.open(tmp_path / "there", store_url=url)
    keys = elsewhere.store.keys()
    assert {key: elsewhere.store.manifest(key).digest for key in keys} == undisturbed
    assert verify_all(elsewhere, full=True) == []


def test_what_a_kill_leaves_behind_is_collected(tmp_path):
    for items, point in [
        (ITEMS, "publish.before_manifest"),  # repaired by the next line
        (ITEMS, "publish.after_manifest"),  # leaves work in progress of a published artifact
        (("fir",), "publish.before_manifest"),  # leaves a folder without manifest
    ]:
        assert child(tmp_path, *items, fault=point).wait(60) == -signal.SIGKILL
    workspace = Workspace.open(tmp_path)
    keep = KeepConfig(runs=1, days=0)
    kinds = {thing.kind for thing in plan_gc(workspace, keep).doomed}
    assert kinds == {"artifact", "scrap", "work"}
    apply_gc(workspace, plan_gc(workspace, keep))
    assert [path.name for path in (tmp_path / "artifacts").glob("*/*")] == []
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"locks", "uses"}
    assert list((tmp_path / "work" / "locks").glob("words-*")) == []


def test_a_kill_while_an_artifact_is_remade_after_damage(tmp_path):
    run_both(str(tmp_path), *ITEMS)
    workspace = Workspace.open(tmp_path)
    before = digests(tmp_path)
    (key,) = workspace.store.keys("words")
    workspace.store.artifact(key).files("upper")[0].write_bytes(b"XXX")
    for point in ("shard.before_commit", "publish.before_rename", "publish.before_manifest"):
        assert child(tmp_path, *ITEMS, fault=point).wait(60) == -signal.SIGKILL
    run_both(str(tmp_path), *ITEMS)
    assert digests(tmp_path) == before
    assert verify_all(workspace, full=True) == []


def test_two_runs_and_a_collector_at_once(tmp_path):
    """Nothing is built twice, nothing is torn, nothing that is needed is collected."""
    diary = tmp_path / "diary"
    finish = tmp_path / "finish"
    items = [f"tree{number}" for number in range(12)]
    root = tmp_path / "w"
    assert child(root, "old").wait(60) == 0  # garbage: no record and no living process needs it
    workspace = Workspace.open(root)
    garbage = set(workspace.store.keys())
    runs = [child(root, *items, diary=diary, TOY_PAUSE="0.03", TOY_FINISH=str(finish)) for _ in range(2)]
    keep = KeepConfig(runs=1, days=0)
    collected = []
    while len(list(tmp_path.glob("finish-*"))) < 2 and all(process.poll() is None for process in runs):
        collected += apply_gc(workspace, plan_gc(workspace, keep))
    finish.touch()
    assert [process.wait() for process in runs] == [0, 0]
    assert sorted(diary.read_text().split()) == sorted(items)
    assert garbage <= {thing.name for thing in collected}
    assert verify_all(workspace, full=True) == []


def test_a_collector_never_breaks_a_chain_of_runs(tmp_path):
    """Runs that grow from each other while a collector runs all the time: each must find its segments or make them again."""
    code = (
        "from pipeline_lib.workspace.workspace import Workspace\n"
        "from pipeline_lib.workspace.gc import apply_gc, plan_gc\n"
        "from pipeline_lib.config.resources import KeepConfig\n"
        "import sys\n"
        "w, keep = Workspace.open(sys.argv[1]), KeepConfig(runs=1, days=0)\n"
        "while True: apply_gc(w, plan_gc(w, keep))\n"
    )
    Workspace.open(tmp_path)
    collector = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    try:
        for night in range(5):
            assert child(tmp_path, *[f"tree{number}" for number in range(night, night + 4)]).wait(60) == 0
            assert collector.poll() is None
    finally:
        collector.kill()
        collector.wait()
    workspace = Workspace.open(tmp_path)
    assert verify_all(workspace, full=True) == []
    words = make(workspace, config("ash"))
    assert not make(workspace, config("ash"), COUNT, {"words": words}).reused
