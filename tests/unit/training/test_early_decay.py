"""A dev loss that falls no more begins the decay of a real training, under the real window controller; it is not cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_toy import PLAN, SILENT, Config, run_train

from pipeline_lib.config.model import EarlyStoppingConfig, TrainConfig


def test_a_training_that_gains_nothing_more_decays_early(tmp_path: Path) -> None:
    early = EarlyStoppingConfig(patience=1, min_gain=0.9, smoothing=1.0, min_steps=12)
    made = run_train(
        tmp_path, Config(plan={**PLAN, "evaluate_every": 3}, train=TrainConfig(samples=SILENT, early_stopping=early))
    )
    events = [(event["kind"], event["detail"]) for event in made.manifest.events]
    kinds = [kind for kind, _ in events if kind in {"early_stopping", "schedule_changed"}]
    assert kinds == ["early_stopping", "schedule_changed"]
    changed = dict(events)["schedule_changed"]
    assert (changed["decision"], changed["step"]) == ("start_decay", 12)
    assert 12 < made.details["steps"] < PLAN["steps"]
    assert made.details["schedule"]["decay_start"] == 12
    assert "has not fallen by 90.0%" in changed["reason"]


def test_a_cosine_cannot_decay_early() -> None:
    with pytest.raises(ValueError, match="a cosine decays from the start"):
        TrainConfig(schedule="cosine", early_stopping=EarlyStoppingConfig(patience=2))
