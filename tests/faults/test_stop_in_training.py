"""SIGTERM in mid-training: the step just done is saved, the run is cancelled, and `retry` goes on from that very step."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline_lib.metrics import training_log
from pipeline_lib.workspace.workspace import Workspace
from tests.pipeline_toys import digests, newest, states, write_config
from tests.servers import MILLRACE, REPOSITORY, environment, millrace, wait_for

STEPS = 700  # some four seconds


def steps_seen(home: Path) -> int:
    """The steps that the training under way has told its journal."""
    return sum(path.read_text().count('"first_sequence"') for path in home.glob("work/train-*/journal/attempt-*.jsonl"))


@pytest.mark.slow  # the suite stops a run in test_prefect_embedded.py
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_mid_training(tmp_path: Path, how: signal.Signals) -> None:
    home = tmp_path / "workspace"
    home.mkdir()
    train = {"max_steps": STEPS, "save_every": STEPS}
    config = write_config(home / "small.yaml", train=train, tune={"trials": 0})
    asked = ["run", "--config", str(config), "--until", "train"]
    told = tmp_path / "told"
    with told.open("wb") as output:
        process = subprocess.Popen([*MILLRACE, *asked], env=environment(home), cwd=REPOSITORY, stderr=output)
    wait_for(lambda: steps_seen(home) > 50 or process.poll() is not None, seconds=150)
    assert process.poll() is None, told.read_text()
    process.send_signal(how)
    assert process.wait(timeout=60) == 130
    assert "retry" in told.read_text()
    stopped = newest(home)
    assert (stopped.outcome, states(stopped)["train"]) == ("cancelled", "cancelled")
    (checkpoint,) = home.glob("work/train-*/checkpoints/step-*")
    last = int(checkpoint.name.partition("-")[2])
    assert last > 50
    log = training_log(Workspace.open(home), stopped)  # the run has no artifact of it yet
    assert log["step"].to_pylist() == list(range(1, last + 1))

    millrace("retry", stopped.run_id, home=home)
    done = newest(home)
    assert (done.run_id, done.outcome) == (stopped.run_id, "completed")
    model = Workspace.open(home).artifact(done.ref("train").key)  # type: ignore[union-attr]
    assert last < model.details["steps"]
    assert [e["detail"]["step"] for e in model.manifest.events if e["kind"] == "resumed"] == [last]
    (log,) = [path for path in model.files("observed") if path.name == "steps.parquet"]
    steps = pq.read_table(log).to_pylist()
    assert [row["step"] for row in steps] == list(range(1, model.details["steps"] + 1))  # none was done twice
    assert not any(row["superseded"] for row in steps)

    if how == signal.SIGTERM:
        millrace("run", "--config", str(config), "--only", "train", "--force", home=home)
        assert digests(newest(home))["train"] == digests(done)["train"]
