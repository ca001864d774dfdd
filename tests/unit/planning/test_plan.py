"""The stage `plan`: arithmetic of the window, precedence of the limits, refusals whose advice works."""

import re
from pathlib import Path

import pytest
from plan_toy import CALIBRATED, DATA, make_plan, profile
from pydantic import ValidationError

from pipeline_lib.config.model import PlanConfig, TrainConfig
from pipeline_lib.config.resources import ResourcesConfig
from pipeline_lib.errors import RefusedError
from pipeline_lib.planning.forecast import forecast_loss
from pipeline_lib.planning.window import split_batch
from pipeline_lib.training.plan import TrainingPlan

STEP = 8192 / 10_000  # seconds of a step in the toy's calibration


def test_every_second_of_the_window_has_a_part(tmp_path):
    made = make_plan(tmp_path)
    details, parts = made.details, dict(made.details["window"])
    assert details["limit"] == "window"
    assert sum(parts.values()) == pytest.approx(900)
    assert 0 <= parts["unused"] < 2 * STEP + 0.1
    assert parts["spent before the plan"] == 100
    assert parts["margin"] == 60
    assert parts["training steps"] == pytest.approx(details["steps"] * STEP, abs=0.01)
    assert parts["evaluations"] < 0.06 * parts["training steps"]
    assert TrainingPlan.from_details(details).steps == details["steps"]
    assert details["decay_steps"] == pytest.approx(0.2 * details["steps"], abs=1)
    end = details["promises"]["expected_end_seconds"]
    assert end["low"] < end["value"] <= end["high"] <= 900
    spare = details["reserve"]["after_training"] - details["reserve"]["after_expected"]
    assert 0 < spare == pytest.approx(900 - 60 - parts["unused"] - end["value"], abs=0.1)
    assert [row[0] for row in made.manifest.summary.rows] == list(parts)


@pytest.mark.parametrize(
    ("train", "windowless", "limit", "steps"),
    [
        ({"max_steps": 50}, False, "max_steps", 50),
        ({"max_steps": 100_000}, False, "window", None),
        ({"max_epochs": 0.5}, False, "epochs", 312),  # 10,000 sequences in steps of 32
        ({"max_epochs": 0.5, "max_steps": 500}, True, "epochs", 312),
        ({"max_steps": 500}, True, "max_steps", 500),
        ({}, True, "epochs", 2500),
    ],
)
def test_the_deadline_goes_before_max_steps_before_epochs(tmp_path, train, windowless, limit, steps):
    details = make_plan(tmp_path, windowless=windowless, train=TrainConfig(**train)).details
    assert details["limit"] == limit
    assert steps is None or details["steps"] == steps
    assert details["max_steps"] >= details["steps"]


def test_a_window_too_short_is_refused_and_the_advice_works(tmp_path):
    with pytest.raises(RefusedError, match="no training step fits") as refused:
        make_plan(tmp_path, spent=830)
    hours = float(re.search(r"max_hours to ([\d.]+)", refused.value.fix).group(1))
    wider = ResourcesConfig(max_hours=hours, margin_minutes=1)
    assert 1 <= make_plan(tmp_path, spent=830, resources=wider).details["steps"] < 200


def test_memory_chooses_the_profile_and_refuses_with_advice_that_works(tmp_path):
    def limited(gib):
        return make_plan(tmp_path, resources=ResourcesConfig(max_hours=0.25, margin_minutes=1, memory_gib=gib)).details

    assert limited(3)["micro_batch"] == 8
    assert limited(1.5)["micro_batch"] == 4
    with pytest.raises(RefusedError, match=r"needs 1\.00 GiB") as refused:
        limited(0.5)
    assert limited(float(re.search(r"memory_gib to ([\d.]+)", refused.value.fix).group(1)))["micro_batch"] == 4


def test_money_is_a_limit(tmp_path):
    prices = {"max_hours": 0.25, "margin_minutes": 1, "price_per_hour": 8.0, "watts": 1000.0, "price_per_kwh": 0.5}
    details = make_plan(tmp_path, resources=ResourcesConfig(**prices, money=3.0)).details
    hours = details["promises"]["expected_end_seconds"]["value"] / 3600
    assert details["promises"]["energy_kwh"]["value"] == pytest.approx(hours, rel=1e-3)
    assert details["promises"]["price"]["value"] == pytest.approx(8.5 * hours, rel=1e-3)
    with pytest.raises(RefusedError, match=r"1\.00 are allowed") as refused:
        make_plan(tmp_path, resources=ResourcesConfig(**prices, money=1.0))
    hours = float(re.search(r"max_hours to ([\d.]+)", refused.value.fix).group(1))
    cheaper = ResourcesConfig(**{**prices, "max_hours": hours}, money=1.0)
    assert make_plan(tmp_path, resources=cheaper).details["promises"]["price"]["value"] <= 1.0


def test_the_learning_rate_comes_from_the_user_then_the_search_then_the_law(tmp_path):
    tuned = {"best": {"learning_rate_factor": 0.5, "weight_decay": 0.2}, "curve": [[1e4, 7.0], [1e5, 6.0], [2e5, 5.6]]}
    law = make_plan(tmp_path).details
    searched = make_plan(tmp_path, tuned=tuned).details
    configured = make_plan(tmp_path, tuned=tuned, train=TrainConfig(learning_rate=1.5e-3)).details
    assert law["learning_rate"] == 5e-3
    assert "final_dev_loss" not in law["promises"]
    assert searched["learning_rate"] == 2.5e-3
    assert searched["weight_decay"] == 0.2
    assert 2 < searched["promises"]["final_dev_loss"]["value"] < 5.6
    assert (configured["learning_rate"], configured["learning_rate_why"]) == (1.5e-3, "configured")


def test_little_time_shrinks_the_batch_unless_speed_was_asked_for(tmp_path):
    balanced = make_plan(tmp_path, spent=765).details
    speed = make_plan(tmp_path, spent=765, plan=PlanConfig(priority="speed")).details
    assert balanced["batch_sequences"] < speed["batch_sequences"] == 32
    assert balanced["steps"] > speed["steps"]
    assert any(words.startswith("batch:") for words in balanced["gave_up"])
    assert balanced["batch_sequences"] % balanced["micro_batch"] == 0


def test_without_replanning_the_slow_edge_is_planned_for(tmp_path):
    careful = make_plan(tmp_path, plan=PlanConfig(replan=False)).details
    assert careful["steps"] == pytest.approx(0.8 * make_plan(tmp_path).details["steps"], rel=0.03)
    assert careful["replan"] is False


def test_a_large_micro_batch_never_exceeds_the_batch(tmp_path):
    calibrated = {**CALIBRATED, "profiles": [profile(48, 9_000.0, 1.0)]}
    for tokens in (256, 1024, 8192, 100_000):
        details = make_plan(tmp_path, calibrated=calibrated, train=TrainConfig(batch_tokens=tokens)).details
        assert TrainingPlan.from_details(details).accumulation >= 1
        assert tokens / 256 * 0.4 <= details["batch_sequences"] <= tokens / 256 + 1  # halved at most once


def test_no_data_is_refused(tmp_path):
    with pytest.raises(RefusedError, match="no training data"):
        make_plan(tmp_path, data={**DATA, "sequences": {"train": 0, "dev": 1, "test": 1}})


def test_the_loss_forecast_follows_a_power_law():
    curve = [(10.0**k, 20 * (10.0**k) ** -0.1) for k in (4.0, 4.5, 5.0, 5.5, 6.0)]
    promised = forecast_loss(curve, 1e7)
    assert promised.value == pytest.approx(20 * 1e7**-0.1, rel=1e-6)
    assert promised.low < promised.value < promised.high
    assert forecast_loss([], 1e7) is None


@pytest.mark.parametrize(
    ("batch_tokens", "micro_batch", "most", "expected"),
    [
        (8192, 16, 1e9, (32, 16)),
        (24 * 256, 16, 1e9, (24, 12)),  # not 32: more than was asked for
        (1000, 16, 1e9, (4, 4)),
        (17 * 256, 16, 1e9, (16, 8)),
        (100, 16, 1e9, (1, 1)),
        (8192, 16, 5.5, (5, 5)),  # a step of more would be more passes than allowed
        (8192, 16, 0.5, (1, 1)),
    ],
)
def test_batch_is_whole_sequences_in_equal_forward_passes(
    batch_tokens: int, micro_batch: int, most: float, expected: tuple[int, int]
) -> None:
    assert split_batch(batch_tokens, sequence_length=256, micro_batch=micro_batch, most=most) == expected


def test_tiny_data_is_not_read_more_often_than_allowed(tmp_path: Path) -> None:
    details = make_plan(tmp_path, data=DATA | {"sequences": {"train": 5, "dev": 1, "test": 1}}, train=TrainConfig(max_epochs=1))
    assert details.details["epochs"] <= 1


def test_a_search_and_a_margin_that_take_the_whole_window_contradict_each_other() -> None:
    with pytest.raises(ValidationError, match=r"search_share = 0\.25 would"):
        ResourcesConfig(max_hours=1, margin_minutes=30, search_share=0.6)
    assert ResourcesConfig(max_hours=1, margin_minutes=30, search_share=0.25).search_share == 0.25
