"""SIGKILL at random moments of packing: what the folder lists is whole at every one of them, and the cache ends bit-identical."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOYS = Path(__file__).parents[1] / "unit" / "packing"
# One process imports, and forks a packer for every kill: starting Python anew would be most of the time.
CAMPAIGN = """
import json, os, random, signal, sys, time
from pathlib import Path
from packing_toy import Toy, ToyCorpus, run_toy
from pipeline_lib.packing import bestfit, fill, pack
from pipeline_lib.packing.manifest import read_manifest
from pipeline_lib.workspace.identity import file_digest

root, kills = Path(sys.argv[1]), int(sys.argv[2])
config = Toy(toy=ToyCorpus(documents=200))

def packer(home):
    child = os.fork()
    if child == 0:
        try:
            run_toy(home, config)
            os._exit(0)
        finally:
            os._exit(1)
    return child

def files(home):
    return {path.name: file_digest(path) for path in home.glob("cache/*/*.arrow")}

begin = time.monotonic()
_, calm = os.waitpid(packer(root / "calm"), 0)
seconds = time.monotonic() - begin
chance, killed, seen, torn = random.Random(7), 0, [], []
while killed < kills:
    child = packer(root / "hurt")
    time.sleep(chance.uniform(0.05, 1) * seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    for folder in (root / "hurt").glob("cache/*"):
        listed = read_manifest(folder)
        torn += [name for name, facts in listed.chunks.items() if not facts.is_whole(facts.file(folder).read_bytes())]
        seen.append(len(listed.chunks))
    if os.WIFSIGNALED(status):
        killed += 1
    else:  # it was done: begin again elsewhere
        (root / "hurt").rename(root / f"done-{killed}-{time.monotonic_ns()}")
_, last = os.waitpid(packer(root / "hurt"), 0)
ended = {str(home): files(home) for home in root.iterdir()}
print(json.dumps({"status": [calm, last], "seen": seen, "torn": torn, "ended": ended, "left": [
    str(path) for path in root.glob("hurt/cache/*/.writing-*")]}))
"""
# Kills a filling of four damaged chunks at a commit point, and fills on.
FILLING = """
import json, os, sys
from pathlib import Path
from packing_toy import run_toy
from pipeline_lib.packing import bestfit, fill
from pipeline_lib.packing.cache import read_chunks

workspace, made = run_toy(Path(sys.argv[1]))
folder = workspace.cache_folder / made["pack"].details["cache"]
facts = read_chunks(made["pack"].files("chunks"))
calm = {path.name: path.read_bytes() for path in folder.glob("*.arrow")}
found = {}
for case in json.loads(sys.argv[2]):
    how, point = case.split()
    go = lambda: run_toy(Path(sys.argv[1])) if how == "stage" else fill.fill_cache(workspace, made["fill_gaps"])
    for one in facts[:3]:
        one.file(folder).unlink()
    facts[3].file(folder).write_bytes(calm[facts[3].name + ".arrow"][:-9])
    child = os.fork()
    if child == 0:
        os.environ["MILLRACE_FAULT"] = point
        go()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    torn = [one.name for one in facts if (path := one.file(folder)).exists() and not one.is_whole(path.read_bytes())]
    left = fill.check_cache(workspace, made["fill_gaps"], full=True)
    go()
    same = {path.name: path.read_bytes() for path in folder.glob("*.arrow")} == calm
    found[case] = [os.WTERMSIG(status), torn, len(left), same]
print(json.dumps(found))
"""


def test_a_filling_killed_at_a_commit_point_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(TOYS)}
    left = {"stage cache.before_commit:1": 4, "command cache.before_commit:3": 2, "stage cache.after_commit:2": 2}
    command = [sys.executable, "-c", FILLING, str(tmp_path), json.dumps(list(left))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {case: [signal.SIGKILL, [], number, True] for case, number in left.items()}
    assert json.loads(done.stdout.splitlines()[-1]) == expected


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_random_kills_leave_a_readable_prefix_and_end_with_the_same_bytes(tmp_path: Path, kills: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(TOYS)}
    command = [sys.executable, "-c", CAMPAIGN, str(tmp_path), str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["status"], found["torn"], found["left"]) == ([0, 0], [], [])
    calm = found["ended"].pop(str(tmp_path / "calm"))
    assert len(calm) > 6
    assert found["ended"]
    assert all(files == calm for files in found["ended"].values())
