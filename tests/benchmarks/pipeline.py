"""The quickstart: floors of every stage, seconds and memory, overhead of orchestration and tracking, second run."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.stages import ORDER
from pipeline_lib.tables.duck import connect
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.figures import Book, timed

REPOSITORY = Path(__file__).parents[2]
QUICKSTART = REPOSITORY / "deployments" / "pipelines" / "quickstart.yaml"
# The overhead is measured on a run whose own work is short and the same both times: training follows steps, not the clock.
SHORT = (
    "resources.max_hours=1", "resources.margin_minutes=1", "ingest.sources=[{name: machine, kind: machine, max_mb: 3}]",
    "tokenizer.vocabulary_size=512", "pack.sequence_length=128", "model.width=64", "model.depth=2", "model.ffn_width=128",
    "calibrate.seconds=1", "tune.trials=3", "tune.steps=5", "train.max_steps=40", "train.batch_tokens=1024",
    "validation.language_tokens=5000",
)  # fmt: skip
PLAIN = """
import json, sys, time
from pathlib import Path
begin = time.perf_counter()
from pipeline_lib.config.load import load_config
from pipeline_lib.reporting.report import write_report
from pipeline_lib.run import run_plain
from pipeline_lib.stages import ORDER
from pipeline_lib.workspace.services import Services, thread_mapper
from pipeline_lib.workspace.workspace import Workspace
config = load_config(Path(sys.argv[2]), sys.argv[3:])
workspace = Workspace.open(sys.argv[1])
write_report(workspace, run_plain(workspace, config, services=Services(mapper=thread_mapper(2), workers=2)), ORDER)
print(json.dumps({"seconds": time.perf_counter() - begin}))
"""
SERVER = """
import sys, time
begin = time.perf_counter()
from flows.environment import prefect_for
from pipeline_lib.workspace.workspace import Workspace
with prefect_for(Workspace.open(sys.argv[1])):
    from flows.pipeline import pipeline
    print(time.perf_counter() - begin)
"""


def options(parser: argparse.ArgumentParser) -> None:
    """A finished quickstart can be looked at instead of run."""
    parser.add_argument("--workspace", type=Path, default=None, help="a workspace whose latest run is a whole, first quickstart")


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Print the floors from a whole quickstart, then the second run's time and the overhead."""
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        home = arguments.workspace or Path(folder) / "quickstart"
        if arguments.workspace is None:
            seconds = _millrace(home, "run")
            book.add("first run, whole command", seconds, "s", most=300)
        workspace = Workspace.open(home)
        records = [record for record in RunBook(workspace.runs_folder).all() if record.outcome == "completed"]
        first = records[0]
        _floors(book, workspace, first)
        _stages(book, workspace, first)
        _healing(book, workspace, first, home)
        seconds, note = timed(lambda: _millrace(home, "run"), times=3)
        again = RunBook(workspace.runs_folder).load("latest")
        book.add("second run, whole command", seconds, "s", most=15, setup=note)
        reused = sum(entry.state == "reused" for entry in again.stages.values())
        book.add("second run: stages reused", reused, "stages", least=len(ORDER) - 1)
        _overhead(book, Path(folder), times=1 if arguments.quick else 3)
    if arguments.quick:
        book.leave_out("overhead as a median of three pairs")


def _millrace(home: Path, *words: str) -> float:
    begin = time.perf_counter()
    command = [sys.executable, "-m", "flows.cli.main", *words]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "MILLRACE_HOME": str(home)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return time.perf_counter() - begin


def _artifact(workspace: Workspace, record: RunRecord, stage: str) -> Artifact:
    ref = record.ref(stage)
    assert ref is not None, f"the run has no {stage}"
    return workspace.store.artifact(ref.key)


def _count(workspace: Workspace, record: RunRecord, stage: str, table: str, what: str, *, where: str = "true") -> int:
    with connect({table: _artifact(workspace, record, stage).files(table)}) as db:
        ((value,),) = db.sql(f"SELECT {what} FROM {table} WHERE {where}").fetchall()  # noqa: S608 - fixed texts
    return int(value)


def _floors(book: Book, workspace: Workspace, record: RunRecord) -> None:
    """What "simple, but real" means, stage by stage."""
    book.add("domains", _count(workspace, record, "ingest", "documents", "count(DISTINCT domain)"), "domains", least=3)
    rules = _count(workspace, record, "score", "decisions", "count(DISTINCT rule)", where="NOT kept")
    book.add("rules that rejected documents", rules, "rules", least=5)
    unexplained = _count(workspace, record, "select", "decisions", "count(*)", where="NOT kept AND coalesce(reason, '') = ''")
    book.add("rejections without a reason", unexplained, "rows", most=0)
    counts = _artifact(workspace, record, "select").manifest.counts
    book.add("documents not accounted for", abs(counts["in"] - counts["out"]), "documents", most=0)
    pairs = _count(workspace, record, "dedup", "pairs", "count(*)", where="accepted AND jaccard < 1")
    book.add("near-duplicate pairs, exactly verified", pairs, "pairs", least=1)
    book.add(
        "duplicate clusters", _count(workspace, record, "dedup", "clusters", "count(DISTINCT cluster_id)"), "clusters", least=1
    )
    trials = _count(workspace, record, "tune", "trials", "count(*)", where="dev_loss IS NOT NULL")
    book.add("search trials", trials, "trials", least=3)
    train = _artifact(workspace, record, "train")
    share = 100 * float(train.details["dev_loss"]) / math.log(int(train.details["vocabulary_size"]))
    book.add("dev loss, share of ln(vocabulary)", share, "%", most=70)
    book.add("committed checkpoints", "checkpoints" in train.manifest.tables, "published", least=1)
    items = _count(workspace, record, "suites", "suite_items", "count(*)")
    book.add("validation items", items, "items", least=1000)
    report = Path(record.report)
    book.add("report", report.stat().st_size / 1e6 if report.exists() else 0, "MB", least=0.01)
    validate = _artifact(workspace, record, "validate")
    book.add("validation", validate.manifest.seconds, "s", most=30)


def _stages(book: Book, workspace: Workspace, record: RunRecord) -> None:
    for name, entry in record.stages.items():
        peak = _artifact(workspace, record, name).manifest.peak_memory_bytes / 2**20
        book.add(f"stage {name}", entry.seconds, "s", setup=f"peak {peak:,.0f} MiB")


def _healing(book: Book, workspace: Workspace, record: RunRecord, home: Path) -> None:
    """Remove a chunk of the cache; the next run must fill it with the same bytes and reuse the training."""
    cache = workspace.cache_folder / str(_artifact(workspace, record, "fill_gaps").details["cache"])
    chunk = sorted(cache.glob("train-*.arrow"))[0]
    before = chunk.read_bytes()
    chunk.unlink()
    _millrace(home, "run")
    after = RunBook(workspace.runs_folder).load("latest")
    identical = chunk.exists() and chunk.read_bytes() == before
    book.add("a removed chunk is filled bit-identically", identical, "yes", least=1)
    book.add("and the training is reused", after.stages["train"].state == "reused", "yes", least=1)


def _overhead(book: Book, folder: Path, *, times: int) -> None:
    """Flow minus the same library calls in plain Python minus Prefect's own start, in fresh workspaces, one after the other."""
    overheads, flows = [], []
    overrides = [text for override in SHORT for text in ("--set", override)]
    for number in range(times):
        plain = _plain(folder / f"plain-{number}", SHORT)
        flow = _millrace(folder / f"flow-{number}", "run", *overrides)
        start = _start(folder / f"start-{number}")
        flows.append(flow)
        overheads.append(flow - plain - start)
    overhead = sorted(overheads)[len(overheads) // 2]
    spread = f"of {times}: " + ", ".join(f"{value:.2f}" for value in overheads)
    book.add("orchestration and tracking overhead", overhead, "s", most=3, setup=f"flow {flows[0]:.1f} s; {spread}")
    book.add("overhead, share of a ten-minute run", 100 * overhead / 600, "%", most=2)


def _child(script: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return done.stdout.strip().splitlines()[-1]


def _plain(home: Path, overrides: Sequence[str]) -> float:
    measured: dict[str, Any] = json.loads(_child(PLAIN, str(home), str(QUICKSTART), *overrides))
    return float(measured["seconds"])


def _start(home: Path) -> float:
    return float(_child(SERVER, str(home)))
