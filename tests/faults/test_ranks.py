"""Two processes train like one; and what happens when one of them dies, stands still, or loses its parent."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "training"))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "packing"))

from training_toy import PLAN, Config, run_train

from pipeline_lib.config.model import TrainConfig
from pipeline_lib.config.recovery import RecoveryConfig
from pipeline_lib.config.resources import ExecutionConfig
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.services import Services

STEPS = 16


def train(
    root: Path, monkeypatch: pytest.MonkeyPatch, *faults: dict[str, Any], services: Services | None = None, **settings: Any
) -> Artifact:
    marks = root / "marks"
    marks.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("MILLRACE_TEST_FAULTS", json.dumps(faults))
    monkeypatch.setenv("MILLRACE_TEST_MARKS", str(marks))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    recovery = RecoveryConfig.model_validate({"policies": {"worker": {"pause_seconds": 0.1}}})
    config = Config(
        plan={**PLAN, "steps": STEPS, "micro_batch": 1, "evaluate_every": 0, "save_every": 4},
        train=TrainConfig(recovery=recovery, **settings),
        execution=ExecutionConfig(extensions=["tests.training_faults"]),
    )
    return run_train(root / "w", config, services=services)


def losses(made: Artifact) -> list[float]:
    (log,) = [path for path in made.files("observed") if path.name == "steps.parquet"]
    return [row["loss"] for row in pq.read_table(log).to_pylist() if not row["superseded"]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        return train(tmp_path_factory.mktemp("alone"), patch)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_have_the_loss_curve_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Artifact, parallel: str
) -> None:
    """Also when one is killed on the way: a fresh launch goes on from the last checkpoint, of whatever number of processes. And
    also when torchrun starts them."""
    faults = [{"kind": "kill", "steps": [11], "rank": 1}] if parallel == "ddp" else []
    launcher = "own" if faults else "torchrun"
    made = train(tmp_path, monkeypatch, *faults, processes=2, parallel=parallel, launcher=launcher)
    assert losses(made) == pytest.approx(losses(alone), rel=1e-4)
    assert made.metrics["dev_loss"] == pytest.approx(alone.metrics["dev_loss"], rel=1e-4)
    told = [event["detail"] for event in made.manifest.events if event["kind"] == "recovery"]
    assert [(t["action"], t["evidence"]["who"], t["evidence"]["how"]) for t in told] == (
        [("relaunch", "rank 1", "was ended by SIGKILL")] if faults else []
    )
    assert made.metrics["tokens_per_second"] > 0
    assert not [child for child in psutil.Process().children(recursive=True) if "training.rank" in " ".join(child.cmdline())]


@pytest.mark.slow  # torchrun's variables are taken above, too
@pytest.mark.parametrize("by", ["torchrun", "mpirun"])
def test_processes_that_somebody_starts_by_hand(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Artifact
) -> None:
    """As the stage says, with torchrun; or as `accelerate launch --mpirun_hostfile` would, with a precision that is not the
    plan's. It waits for them, and publishes what they leave."""
    started = []

    def start(line: str) -> None:
        if "waits for 2 processes" not in line:
            return
        words = shlex.split(line.partition(": ")[2].partition(": ")[2])
        if by == "torchrun":
            started.append(subprocess.Popen(words, stdout=subprocess.DEVNULL))
            return
        for rank in "01":
            told = {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": "2", "ACCELERATE_MIXED_PRECISION": "fp16"}
            started.append(subprocess.Popen([sys.executable, *words[-3:]], env={**os.environ, **told}))

    made = train(tmp_path, monkeypatch, services=Services(log=start), processes=2, launcher="external")
    assert losses(made) == pytest.approx(losses(alone), rel=1e-4)
    assert [process.wait(20) for process in started] == [0] * len(started)
