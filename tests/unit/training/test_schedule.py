import math
from itertools import pairwise

import pytest
from training_toy import PLAN

from pipeline_lib.errors import StageFailedError
from pipeline_lib.training.plan import TrainingPlan
from pipeline_lib.training.schedule import planned


def test_wsd_warms_up_holds_and_decays_by_one_minus_sqrt() -> None:
    schedule = planned("wsd", steps=100, warmup_steps=10, decay_steps=20)
    assert [schedule.factor(s) for s in (0, 4, 9, 10, 79)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert schedule.factor(84) == pytest.approx(1 - 0.99 * math.sqrt(5 / 20))
    assert schedule.factor(99) == pytest.approx(0.01)
    assert schedule.factor(100) == 0.0


@pytest.mark.parametrize("kind", ["wsd", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_the_last_step_is_at_a_hundredth_of_the_peak_however_short_the_decay(kind: str, steps: int) -> None:
    schedule = planned(kind, steps=steps, warmup_steps=steps // 50, decay_steps=1 + steps // 5)  # type: ignore[arg-type]
    assert schedule.factor(steps - 1) == pytest.approx(0.01)
    late = 1 + schedule.decay_start
    for moved in (schedule.moved(late, late + 1, 0), schedule.decay_now(late, 1), schedule.decay_now(late, 100)):
        assert moved.factor(moved.total_steps - 1) == pytest.approx(0.01)


def test_an_end_that_moves_inside_the_decay_goes_on_along_the_same_curve() -> None:
    schedule = planned("wsd", steps=100, warmup_steps=0, decay_steps=20)
    moved = schedule.moved(90, 95, 0)  # half of the decay is left, for half of the steps
    assert [moved.factor(s) for s in range(90, 95)] == pytest.approx([*(schedule.factor(s) for s in range(91, 99, 2)), 0.01])
    assert (moved.decay_start, moved.total_steps) == (80, 95)
    assert moved.moved(92, 100, 0).factor(92) < moved.factor(91)


@pytest.mark.parametrize("kind", ["wsd", "linear", "cosine"])
def test_an_end_that_moves_during_the_warm_up_leaves_the_peak(kind: str) -> None:
    schedule = planned(kind, steps=1000, warmup_steps=50, decay_steps=950)  # type: ignore[arg-type]
    for total in (700, 1300):
        moved = schedule.moved(5, total, 45)
        assert max(moved.factor(step) for step in range(5, total)) == 1.0
        assert moved.total_steps == total


def test_linear_and_cosine_end_where_they_should() -> None:
    linear = planned("linear", steps=100, warmup_steps=0, decay_steps=0)
    assert [linear.factor(s) for s in (0, 49, 99, 100)] == pytest.approx([1 - 0.99 / 100, 0.505, 0.01, 0.0])
    cosine = planned("cosine", steps=100, warmup_steps=0, decay_steps=0)
    assert [round(cosine.factor(s), 3) for s in (0, 49, 99, 100)] == [1.0, 0.55, 0.1, 0.1]


@pytest.mark.parametrize("kind", ["wsd", "linear", "cosine"])
@pytest.mark.parametrize("at", [0, 3, 30, 79, 80, 95])
def test_a_moved_end_never_raises_the_rate_after_the_warm_up(kind: str, at: int) -> None:
    schedule = planned(kind, steps=100, warmup_steps=5, decay_steps=20)  # type: ignore[arg-type]
    for changed in (schedule.decay_now(at, 10), schedule.moved(at, 60, 50), schedule.moved(at, 150, 120)):
        rates = [schedule.factor(s) for s in range(at)] + [changed.factor(s) for s in range(at, changed.total_steps)]
        jumps = [b - a for a, b in pairwise(rates[4:])]
        assert max(jumps, default=0.0) <= (1 / 5 + 1e-9 if at < 5 else 1e-9)
        assert all(0 <= rate <= 1 for rate in rates)
        assert changed.total_steps > at


def test_before_its_decay_a_wsd_end_is_only_a_date() -> None:
    schedule = planned("wsd", steps=100, warmup_steps=5, decay_steps=20).moved(40, 200, 160)
    assert (schedule.factor(159), schedule.total_steps) == (1.0, 200)
    assert schedule.factor(179) == pytest.approx(1 - 0.99 * math.sqrt(0.5))


def test_stop_ends_at_once() -> None:
    assert planned("wsd", steps=100, warmup_steps=5, decay_steps=20).stopped(41).total_steps == 41


def test_a_plan_that_cannot_be_followed_is_refused_with_the_number() -> None:
    with pytest.raises(StageFailedError, match="micro_batch = 3 does not divide batch_sequences = 4"):
        TrainingPlan.from_details({**PLAN, "micro_batch": 3})
    with pytest.raises(StageFailedError, match="precision = 'auto'"):
        TrainingPlan.from_details({**PLAN, "precision": "auto"})
    with pytest.raises(StageFailedError, match="batch_sequences"):
        TrainingPlan.from_details({k: v for k, v in PLAN.items() if k != "batch_sequences"})
    assert TrainingPlan.from_details({**PLAN, "promises": {}}).accumulation == 2
