"""The last rung of a policy ladder, reached by a real fault: what helps no more ends a training with a report, or is let be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_toy import PLAN, SILENT, Config, run_train

from pipeline_lib.config.model import TrainConfig
from pipeline_lib.config.recovery import RecoveryConfig
from pipeline_lib.config.resources import ExecutionConfig
from pipeline_lib.errors import StageFailedError
from pipeline_lib.training import launch
from pipeline_lib.workspace.artifact import Artifact

NEVER = {"at_most": 0}  # what would help before is not there


def trained(
    root: Path,
    patch: pytest.MonkeyPatch,
    fault: dict[str, Any],
    policies: dict[str, Any],
    *,
    evaluate_every: int = 0,
    **settings: Any,
) -> Artifact:
    torch.set_num_threads(1)
    (root / "marks").mkdir()
    patch.setenv("MILLRACE_TEST_FAULTS", json.dumps([fault]))
    patch.setenv("MILLRACE_TEST_MARKS", str(root / "marks"))
    config = Config(
        plan={**PLAN, "steps": 90, "save_every": 20, "evaluate_every": evaluate_every},
        train=TrainConfig(samples=SILENT, recovery=RecoveryConfig.model_validate({"policies": policies}), **settings),
        execution=ExecutionConfig(extensions=["tests.training_faults"]),
    )
    return run_train(root / "w", config)


def test_a_spike_that_nothing_is_left_for_is_told_and_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trained(tmp_path, monkeypatch, {"kind": "spike", "steps": [80]}, {"spike": NEVER, "spike_again": NEVER})
    kinds = {event["kind"] for event in made.manifest.events}
    assert "loss_spike" in kinds
    assert "recovery" not in kinds
    assert made.details["steps"] == 90


def test_a_divergence_that_nothing_helps_against_ends_with_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policies = dict.fromkeys(["spike", "spike_again", "divergence", "divergence_again"], NEVER)
    fault = {"kind": "diverge", "steps": list(range(36, 70)), "strength": 60.0}
    with pytest.raises(StageFailedError, match=r"divergence at step .*Tried: nothing: no policy was left") as report:
        trained(tmp_path, monkeypatch, fault, policies)
    assert "train.learning_rate" in report.value.fix


def test_ranks_that_die_again_and_again_end_with_what_they_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_command", lambda *given: ["/bin/sh", "-c", "echo no luck >&2; kill -9 $$"])
    policies = {"worker": {"at_most": 2, "pause_seconds": 0.01}}
    with pytest.raises(StageFailedError, match=r"worker_died at step 0.*no luck.*Tried: relaunch \(2 times\)"):
        trained(tmp_path, monkeypatch, {"kind": "nan_loss", "steps": []}, policies, processes=2)


def test_a_divergence_long_after_the_last_evaluation_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Still better than at the beginning, worse than at the checkpoint: that one's own dev loss counts, not an older one's."""
    fault = {"kind": "diverge", "steps": list(range(40, 70)), "strength": 60.0}
    made = trained(tmp_path, monkeypatch, fault, {"spike": NEVER, "spike_again": NEVER}, evaluate_every=1000)
    back = next(event["detail"] for event in made.manifest.events if event["kind"] == "recovery")
    assert (back["policy"], back["action"], back["cost"]["to_step"]) == ("divergence", "roll_back", 20)
    assert back["evidence"]["median"] < made.details["dev_curve"][0][1]
    assert [step for step, _ in made.details["dev_curve"]] == [0, 90]
