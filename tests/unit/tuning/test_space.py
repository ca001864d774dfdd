"""The space and the budget of a search: arithmetic and refusals."""

import pytest

from pipeline_lib.config.model import ModelConfig, TrainConfig, TuneConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.planning.laws import step_law_learning_rate
from pipeline_lib.tuning.budget import FEWEST_STEPS, plan_trials
from pipeline_lib.tuning.space import checked_space, values_at

PROFILE = {"tokens_per_second": 10_000.0, "micro_batch": 8, "precision": "bf16", "error": "", "estimated_bytes": 1}
CALIBRATED = {"build_seconds": 0.5, "evaluate_tokens_per_second": 40_000.0, "profiles": [PROFILE]}


def trials(seconds, train=None, **tune):
    return plan_trials(
        TuneConfig(**tune), train or TrainConfig(), calibrated=CALIBRATED, profile=PROFILE, sequence_length=256, seconds=seconds
    )


def test_what_is_configured_is_not_searched():
    space = {"weight_decay": (0.3, 3.0), "learning_rate": (0.5, 2.0)}
    assert list(checked_space(space, TrainConfig())) == ["learning_rate", "weight_decay"]
    assert list(checked_space(space, TrainConfig(learning_rate=1e-3))) == ["weight_decay"]
    assert list(checked_space(space, TrainConfig(weight_decay=0))) == ["learning_rate"]


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"learning_rat": (0.5, 2.0)}, "did you mean learning_rate"),
        ({"dropout": (0.5, 2.0)}, "searchable are|did you mean"),
        ({"learning_rate": (1.5, 2.0)}, "does not contain 1"),
        ({"learning_rate": (0.0, 2.0)}, "does not contain 1"),
        ({"sequence_length": (0.5, 2.0)}, "one length(.|\n)*pack.sequence_length"),
    ],
)
def test_a_wrong_space_is_refused(space, words):
    with pytest.raises(ConfigError, match=words):
        checked_space(space, TrainConfig())


def test_a_factor_means_more_tokens_more_rate():
    options = {"model": ModelConfig(), "train": TrainConfig(), "parameters": 10**9}
    short = values_at({"learning_rate": 2.0}, tokens=10**9, **options)
    long = values_at({"learning_rate": 2.0}, tokens=10**10, **options)
    assert short["learning_rate"] == pytest.approx(2 * step_law_learning_rate(1e9, 1e9))
    assert long["learning_rate"] / short["learning_rate"] == pytest.approx(10**0.307)
    assert long["weight_decay"] == 0.1


def test_the_trials_fit_into_their_seconds():
    plan = trials(40.0, trials=4)
    assert plan.trials == 4
    assert plan.steps >= 20
    assert plan.batch_sequences % plan.micro_batch == 0
    assert plan.trials * (plan.tokens(256) / 10_000 + 0.5) < 40


def test_little_time_means_fewer_trials_then_none():
    assert 2 <= trials(8.0, trials=8).trials < 8
    assert trials(8.0, trials=8).steps >= FEWEST_STEPS
    assert trials(2.0, trials=4).trials == 0
    assert trials(0.0, trials=4).trials == 0


def test_configured_steps_and_no_window():
    assert trials(None, trials=5, steps=7).steps == 7
    assert trials(None, trials=5).seconds == 0
    assert trials(None, TrainConfig(max_steps=100), trials=5).steps == 20
    fixed = trials(60.0, trials=50, steps=20)
    assert fixed.steps == 20
    assert 2 <= fixed.trials < 50


def test_a_large_forward_pass_does_not_cost_a_trial():
    """A trial's batch may be smaller than the micro-batch that is fastest in the training."""
    wide = plan_trials(
        TuneConfig(trials=3), TrainConfig(batch_tokens=65_536), calibrated=CALIBRATED,
        profile={**PROFILE, "micro_batch": 256}, sequence_length=256, seconds=12.0,
    )  # fmt: skip
    assert wide.trials == 3
    slow = {**PROFILE, "micro_batch": 4, "tokens_per_second": 5_000.0}
    measured = plan_trials(
        TuneConfig(trials=3), TrainConfig(batch_tokens=65_536), calibrated={**CALIBRATED, "profiles": [slow, PROFILE]},
        profile={**PROFILE, "micro_batch": 256}, sequence_length=256, seconds=12.0,
    )  # fmt: skip
    assert measured.tokens(256) <= 0.55 * wide.tokens(256), "small forward passes are slower, as calibrated"
    assert wide.micro_batch <= wide.batch_sequences < 256
