"""Promises are graded when a run is over, and the next plan shows how they were kept."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from plan_toy import START, TRAINED, Config, make_plan

from pipeline_lib.planning.graded import AFTER_USUAL, after_factors, coverage, grade, in_metrics
from pipeline_lib.run import close_run
from pipeline_lib.workspace.artifact import ArtifactRef
from pipeline_lib.workspace.runs import RunBook, RunRecord, StageRecord
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

GIB = 1 << 30
TUNED = {"best": {}, "curve": [[1e4, 7.0], [1e5, 6.0], [2e5, 5.6]]}


def graded_run(root: Path, *, training: float, after: float, **changes: Any) -> tuple[Workspace, RunRecord, dict[str, Any]]:
    """A run that planned 100 s after its start, trained for so long, and ended so long after that."""
    plan = make_plan(root, tuned=TUNED)
    workspace = Workspace.open(root)
    config = Config(trained={"dev_loss": 9.0, "peak_memory_bytes": 2 * GIB, "tokens_per_second": 9_000.0})
    stages = {
        "plan": StageRecord("made", ArtifactRef("plan", plan.key, plan.manifest.digest).to_json()),
        "train": StageRecord("made", execute(workspace, TRAINED, config, {}).to_json(), training),
    }
    record = RunRecord(
        "20260101-000000-00000001", "p", started=START.isoformat(),
        ended=(START + timedelta(seconds=100 + training + after)).isoformat(), outcome="completed", stages=stages,
        config={"resources": config.resources.model_dump()}, machine={"cpu": "EPYC"},
    )  # fmt: skip
    for name, value in changes.items():
        setattr(record, name, value)
    return workspace, record, plan.details


def test_every_promise_is_scored_and_the_time_by_part(tmp_path: Path) -> None:
    workspace, record, plan = graded_run(tmp_path, training=700.0, after=30.0)
    found = grade(workspace, record)
    end, loss = found["promises"]["expected_end_seconds"], found["promises"]["final_dev_loss"]
    assert end["actual"] == pytest.approx(830)
    assert end["error"] == pytest.approx(830 / end["value"] - 1, abs=1e-4)
    assert (end["inside"], loss["inside"]) == (True, False)
    assert found["promises"]["peak_memory_bytes"]["actual"] == 2 * GIB
    parts = found["parts"]
    assert parts["training"]["actual"] == 700
    assert parts["validation and report"]["actual"] == pytest.approx(30)
    assert parts["validation and report"]["planned"] == pytest.approx(AFTER_USUAL * plan["reserve"]["after_training"], abs=0.01)
    planned = parts["training"]["planned"] + parts["validation and report"]["planned"]
    assert found["time_error"] == pytest.approx(730 / planned - 1, abs=1e-4)
    told = in_metrics(found)
    assert told["plan_error/final_dev_loss"] == pytest.approx(loss["error"])
    assert 0 < told["plan_promises_inside"] < 1


@pytest.mark.parametrize("changes", [{"outcome": "failed"}, {"stages": {}}])
def test_a_run_that_did_not_train_or_end_well_keeps_no_promise(tmp_path: Path, changes: dict[str, Any]) -> None:
    workspace, record, _ = graded_run(tmp_path, training=700.0, after=30.0, **changes)
    assert grade(workspace, record) == {}
    assert in_metrics({}) == {}


def test_a_reused_training_grades_nothing(tmp_path: Path) -> None:
    workspace, record, _ = graded_run(tmp_path, training=700.0, after=30.0)
    record.stages["train"].state = "reused"
    assert grade(workspace, record) == {}


def test_past_promises_stand_beside_the_next_ones_and_correct_the_reserve(tmp_path: Path) -> None:
    workspace, record, plan = graded_run(tmp_path, training=700.0, after=20.0)
    record.graded = grade(workspace, record)
    error = abs(record.graded["promises"]["final_dev_loss"]["error"])
    assert coverage([record, record])["final_dev_loss"] == {"runs": 2, "inside": 0.0, "error": pytest.approx(error, abs=1e-4)}
    estimated = plan["reserve"]["after_estimated"]
    assert plan["reserve"]["after_training"] == estimated
    usual = 20 / estimated
    assert after_factors([record], "EPYC") == pytest.approx((1.1 * usual, usual), rel=1e-3), "more is believed at once"
    quiet = replace(record, graded={"parts": {"validation and report": {"estimated": 10.0, "actual": 5.0}}})
    assert after_factors([quiet], "EPYC") == pytest.approx((1 - 0.45 / 5, 0.5)), "less by a fifth with every run"
    assert after_factors([quiet] * 5, "EPYC") == pytest.approx((0.55, 0.5))
    assert after_factors([*[quiet] * 5, record], "EPYC") == pytest.approx((1.1 * usual, 0.5), rel=1e-3)
    assert after_factors([record], "another") == (1.0, AFTER_USUAL)
    RunBook(workspace.runs_folder).save(record)
    again = make_plan(tmp_path, tuned=TUNED, spent=101.0)
    assert again.details["promises"]["final_dev_loss"]["kept"] == {}  # recorded: the first published plan is the truth
    other = make_plan(tmp_path, tuned={**TUNED, "best": {"weight_decay": 0.2}})
    assert other.details["promises"]["final_dev_loss"]["kept"]["runs"] == 1


def test_a_training_that_was_slowed_down_is_not_remembered_by_its_speed(tmp_path: Path) -> None:
    for number, (rate, kept) in enumerate([(9_000.0, True), (4_000.0, False)]):
        workspace, record, _ = graded_run(tmp_path / str(number), training=700.0, after=30.0)
        ref = execute(workspace, TRAINED, Config(trained={"tokens_per_second": rate}), {})
        record.stages["train"] = StageRecord("made", ref.to_json(), 700.0)
        closed = close_run(workspace, record, "completed")
        assert closed.graded["speed_error"] == pytest.approx(rate / 10_000 - 1, abs=1e-3)
        assert closed.features.get("tokens_per_second") == (rate if kept else None)
