"""Kill a pipeline run again and again and continue it: shared by the fault tests and the benchmark `kills`.

`python -m tests.kills HOME RECORDED CONFIG` is the process that is killed: one plain run that follows a recorded plan to the
step, then the gate's decision and a promotion.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import NotFoundError
from pipeline_lib.promotion import decide, promote
from pipeline_lib.run import RECORDED, run_plain
from pipeline_lib.stages import STAGES
from pipeline_lib.workspace.faults import POINTS
from pipeline_lib.workspace.recorded import export_recorded
from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace
from tests.pipeline_toys import PURE, digests, write_json
from tests.servers import REPOSITORY, environment

# Every commit point, in the order in which work remains: each restart gets further than the one before. The comment says what is
# under way; `:n` counts passages of one process, which first passes what earlier ones left.
ALONG_THE_LINE = (
    "record.before_save",  # the run is opened
    "publish.before_rename",  # calibrate is imported
    "publish.after_manifest:2",  # calibrate again, tune is imported
    "publish.before_sync:2",  # plan is imported, suites
    "publish.before_manifest",  # suites
    "shard.before_commit",  # ingest
    "shard.after_commit",  # ingest
    "publish.after_manifest",  # ingest
    "shard.before_commit:2",  # score
    "record.before_save:9",  # score is published, the record does not know
    "shard.after_commit",  # dedup
    "publish.before_rename",  # dedup
    "publish.before_sync:2",  # dedup again, split
    "publish.before_manifest:2",  # split again, select
    "cache.before_commit:2",  # select again, pack
    "cache.after_commit",  # pack
    "publish.before_sync",  # pack
    "publish.after_manifest:2",  # pack, fill_gaps
    "evaluation.midway",  # train, before the first step
    "step.before_micro_batch:6",  # train, in the third step
    "checkpoint.copied",  # train
    "checkpoint.file_written:2",  # train
    "checkpoint.after_commit",  # train
    "checkpoint.before_commit:2",  # train, from its first checkpoint on
    "publish.before_manifest",  # train
    "publish.before_rename:2",  # train again, validate
    "promote.before_champion",
    "promote.after_champion",
)
assert {fault.partition(":")[0] for fault in ALONG_THE_LINE} == {p for p in POINTS if not p.startswith(("forget.", "memory."))}
ORDER = [stage.name for stage in STAGES]


@dataclass(frozen=True)
class Plan:
    """What every child follows, and what an undisturbed run of it gave."""

    recorded: Path
    config: Path
    digests: dict[str, tuple[str, str]]  # pure stage → fingerprint, output digest
    keys: list[str]  # everything that is published in the end
    champion: str  # output digest of the model

    def matches(self, home: Path) -> list[str]:
        """Pure stages whose fingerprint and output digest equal the undisturbed run's, in the newest run of a workspace."""
        found = digests(RunBook(Workspace.open(home).runs_folder).load("latest"))
        return [name for name in PURE if found.get(name) == self.digests[name]]


def undisturbed(folder: Path, config: PipelineConfig) -> Plan:
    """Run once with nothing in the way: the recorded stages for all others to follow, and the digests to compare with."""
    folder.mkdir(parents=True, exist_ok=True)
    planner = Workspace.open(folder / "planner")
    record = run_plain(planner, config, until="plan")
    recorded = write_json(folder / "recorded.json", export_recorded(planner, record, RECORDED))
    described = write_json(folder / "config.json", config.model_dump(mode="json"))
    home = folder / "undisturbed"
    process = start(home, recorded, described)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    workspace = Workspace.open(home)
    done = RunBook(workspace.runs_folder).load("latest")
    return Plan(
        recorded, described, digests(done), sorted(workspace.store.keys()), read_champion(workspace)["champion"]["digest"]
    )


def start(home: Path, recorded: Path, config: Path, *, fault: str = "") -> subprocess.Popen[str]:
    """Start the process that is killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.kills", str(home), str(recorded), str(config)],
        env={**environment(home), "MILLRACE_FAULT": fault},
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@dataclass(frozen=True)
class Life:
    """How one process went."""

    code: int  # exit code, −9 after SIGKILL
    said: str
    seconds: float
    stage: str  # that was being made when it ended, "" when none
    resumed_after: float  # seconds until the stage that was interrupted before was reached again; NaN when it was not


def live(home: Path, plan: Plan, *, fault: str = "", seconds: float = 0.0, into: str = "", interrupted: str = "") -> Life:
    """One process, until it ends or is killed.

    Args:
        home: the workspace.
        plan: what it follows.
        fault: kill it at this commit point.
        seconds: kill it this long after its start, or after `into` began to run; 0: never.
        into: a stage.
        interrupted: the stage in which the process before it died.
    """
    begin = time.monotonic()
    process = start(home, plan.recorded, plan.config, fault=fault)
    reached, resumed_after = begin if not into else 0.0, float("nan")
    while process.poll() is None:
        time.sleep(0.01)
        states = stages_of(home, process.pid)
        if interrupted in states and math.isnan(resumed_after):
            resumed_after = time.monotonic() - begin
        if into in states and not reached:
            reached = time.monotonic()
        if seconds and reached and time.monotonic() - reached >= seconds:
            process.send_signal(signal.SIGKILL)
            break
    said = process.communicate(timeout=60)[0]
    running = [name for name, state in stages_of(home, process.pid).items() if state == "running"]
    return Life(process.returncode, said, time.monotonic() - begin, running[0] if running else "", resumed_after)


def stages_of(home: Path, pid: int) -> dict[str, str]:
    """Stage → state, of the run of a process."""
    if not (home / "runs").exists():
        return {}
    book = RunBook(home / "runs")
    for run_id in reversed(book.ids()[-2:]):
        try:
            record: RunRecord = book.load(run_id)
        except NotFoundError:
            continue
        if record.attempts[-1].pid == pid:
            return {name: entry.state for name, entry in record.stages.items()}
    return {}


def main(home: str, recorded: str, config: str) -> None:
    """One plain run along the recorded plan, the decision and the promotion."""
    workspace = Workspace.open(Path(home))
    loaded = PipelineConfig.model_validate(json.loads(Path(config).read_text()))
    record = run_plain(workspace, loaded, recorded=recorded)
    promote(workspace, record, decide(workspace, record), by="the test")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main(*sys.argv[1:])
