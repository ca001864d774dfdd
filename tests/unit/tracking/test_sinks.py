"""Curves beside MLflow, read back with the tools' own readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline_lib.errors import ConfigError
from pipeline_lib.tracking import sinks
from pipeline_lib.tracking.run import Run
from pipeline_lib.tracking.sinks import SinkTracker, open_sinks
from pipeline_lib.tracking.spool import Spool


@pytest.mark.slow  # the library is an extra, outside the lock
def test_tensorboard_reads_what_a_run_told_it(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(Spool(tmp_path / "spool.jsonl"), "r1")
    run.sinks = open_sinks(["tensorboard"], tmp_path / "curves", run_id="r1", project="p")
    for step in range(1, 4):
        run.metrics({"train_loss": 5.0 / step, "dev_loss/domain/prose": 4.0}, step=step)
    (sink,) = run.sinks
    sink.close()
    found = EventAccumulator(str(tmp_path / "curves" / "tensorboard" / "r1")).Reload()
    assert set(found.Tags()["scalars"]) == {"train_loss", "dev_loss/domain/prose"}
    assert [(e.step, e.value) for e in found.Scalars("train_loss")] == [(1, 5.0), (2, 2.5), (3, pytest.approx(5 / 3))]
    assert [line["step"] for line in run.spool.all()] == [1, 2, 3]  # MLflow gets them as before


@pytest.mark.slow  # likewise
def test_weights_and_biases_stays_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    tracker = SinkTracker(open_sinks(["wandb"], tmp_path, run_id="20260101-000000-abcdef", project="p"))
    for step in range(20):
        tracker.metrics({"train_loss": 1.5 / (step + 1)}, step=step)
    tracker.sinks[0].close()
    (file,) = tmp_path.glob("wandb/wandb/offline-run-*/run-20260101-000000-abcdef.wandb")
    assert file.read_bytes().count(b"train_loss") >= 20  # the last ones, too


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(module: str) -> Any:
        return None

    monkeypatch.setattr(sinks, "find_spec", nothing)
    with pytest.raises(ConfigError, match="is not installed") as error:
        open_sinks([name], tmp_path, run_id="r", project="p")
    assert f"millrace[{name}]" in error.value.fix
    assert not list(tmp_path.iterdir())
