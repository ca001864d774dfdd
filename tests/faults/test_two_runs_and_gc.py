"""Two runs and a garbage collector at once on one workspace: nothing is built twice, torn, or taken away while needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from pipeline_lib.run import run_plain
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.verify import verify_all
from pipeline_lib.workspace.workspace import Workspace
from tests.pipeline_toys import PURE, digests, made, small, small_config, states, write_json, write_stories
from tests.servers import REPOSITORY, environment

RUN = """
import json, sys
from pathlib import Path
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.run import run_plain
from pipeline_lib.workspace.workspace import Workspace
print("ready", flush=True)
sys.stdin.readline()
config = PipelineConfig.model_validate(json.loads(Path(sys.argv[2]).read_text()))
run_plain(Workspace.open(Path(sys.argv[1])), config, until="fill_gaps")
"""
COLLECT = """
import json, sys
from pathlib import Path
from pipeline_lib.config.resources import KeepConfig
from pipeline_lib.workspace.gc import apply_gc, plan_gc
from pipeline_lib.workspace.workspace import Workspace
workspace, keep = Workspace.open(Path(sys.argv[1])), KeepConfig(runs=2, days=0)
print("ready", flush=True)
while True:
    done = apply_gc(workspace, plan_gc(workspace, keep))
    if done:
        print(json.dumps([thing.name for thing in done]), flush=True)
"""
DATA = PURE[: PURE.index("train")]


def child(code: str, home: Path, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(home), *arguments],
        env=environment(home), cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_runs_and_a_collector(tmp_path: Path) -> None:
    home = tmp_path / "w"
    workspace = Workspace.open(home)
    incoming = home / "incoming"
    incoming.mkdir()
    for number in range(6):
        write_stories(incoming / f"{number}.jsonl", 60, number)
    source = {"name": "news", "kind": "files", "path": str(incoming / "*.jsonl"), "domain": "stories"}
    sections = {"ingest": {"sources": [source]}, "score": {"rules": {"*": "none"}}, "execution": {"workers": 1}}
    config = write_json(tmp_path / "config.json", small(**sections))
    # Garbage: an older run with another seed. What both share stays, the rest is nobody's once a newer run exists.
    old = child(RUN, home, str(write_json(tmp_path / "old.json", small(**{**sections, "seed": 5}))))
    old.communicate("go\n", timeout=120)
    assert old.returncode == 0
    garbage = [key for key in list(workspace.store.keys()) if key.startswith(("split", "select", "pack", "fill_gaps"))]

    runs = [child(RUN, home, str(config)) for _ in range(2)]
    collector = child(COLLECT, home)
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    try:
        assert [run.wait(timeout=120) for run in runs] == [0, 0]
        assert collector.poll() is None
    finally:
        collector.kill()
    said, _ = collector.communicate()
    collected = {name for line in said.splitlines() for name in json.loads(line)}

    records = list(RunBook(workspace.runs_folder).all())[1:]
    assert [record.outcome for record in records] == ["completed", "completed"]
    work = sorted(made(records[0]) + made(records[1]))
    assert work == sorted(set(work))  # by one of them, once
    assert {"split", "select", "pack", "fill_gaps"} <= set(work)
    assert [state for record in records for state in states(record).values() if state not in {"made", "reused"}] == []
    assert digests(records[0]) == digests(records[1])
    assert list(digests(records[0])) == DATA
    assert verify_all(workspace, full=True) == []
    assert set(garbage) <= collected
    again = run_plain(workspace, small_config(**sections), until="fill_gaps")
    assert set(states(again).values()) == {"reused"}
