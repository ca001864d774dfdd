"""Intervals cover what they claim, and the gate errs as rarely as it says."""

import numpy as np
import pytest

from pipeline_lib.validation.gate import judge
from pipeline_lib.validation.intervals import estimate, relative_difference, resampled_ratios


def test_the_bootstrap_error_of_a_mean_is_the_analytic_one():
    scores = np.random.default_rng(0).normal(3, 1, 2000)  # not so many that no resampling is needed
    found = estimate(scores, np.ones(2000), n_resamples=4000)
    analytic = 1.96 * scores.std() / np.sqrt(2000)
    assert found.value == pytest.approx(scores.mean())
    assert (found.high - found.low) / 2 == pytest.approx(analytic, rel=0.05)


def test_many_items_have_the_interval_that_resampling_would_give():
    draw = np.random.default_rng(5)
    weights = draw.lognormal(0, 0.5, 3000)
    scores = weights * draw.normal(2, 0.4, 3000)
    found, few = estimate(scores, weights, n_resamples=10), resampled_ratios(scores, weights, 4000, 0)
    assert (found.value, found.n) == (scores.sum() / weights.sum(), 3000)
    low, high = np.quantile(few, [0.025, 0.975])
    assert found.high - found.low == pytest.approx(high - low, rel=0.05)
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))


def test_95_percent_intervals_cover_the_truth():
    draw = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        weights = draw.integers(50, 500, 150).astype(float)
        scores = weights * draw.normal(2.0, 0.4, 150)
        found = estimate(scores, weights, n_resamples=400, seed=trial)
        hits += found.low <= 2.0 <= found.high
    assert 0.91 <= hits / 300 <= 0.98


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(1, 1, 0.2065, 1.0), (0, 10, 0.0, 0.2775), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)],  # Newcombe 1998, table I
)
def test_shares_have_the_published_wilson_intervals(right: int, n: int, low: float, high: float) -> None:
    scores = np.repeat([1.0, 0.0], [right, n - right])
    found = estimate(scores, np.ones(n), n_resamples=10)
    assert (found.value, found.n) == (right / n, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_intervals_cover_a_share_near_one_with_few_items() -> None:
    right = np.random.default_rng(4).binomial(20, 0.95, 1000)
    found = [estimate(np.repeat([1.0, 0.0], [k, 20 - k]), np.ones(20), n_resamples=10) for k in right]
    assert np.mean([one.low <= 0.95 <= one.high for one in found]) >= 0.9


def test_a_difference_to_nothing_is_none() -> None:
    assert relative_difference(np.ones(30), np.zeros(30), np.ones(30), n_resamples=50) is None


def test_a_paired_comparison_sees_what_two_intervals_would_not():
    draw = np.random.default_rng(2)
    weights = np.ones(500)
    champion = draw.normal(3, 1, 500)
    candidate = champion * 0.98 + draw.normal(0, 0.01, 500)
    difference = relative_difference(candidate, champion, weights, n_resamples=2000)
    assert difference is not None
    alone = estimate(candidate, weights, n_resamples=2000)
    assert difference.high < 0 < alone.high - champion.mean()
    assert judge(difference, lower_is_better=True, min_gain=0.0)[0] == "pass"
    assert judge(difference, lower_is_better=True, min_gain=0.05)[0] == "fail"
    assert judge(difference, lower_is_better=False, min_gain=0.0)[0] == "fail"


def test_an_equal_model_is_not_promoted():
    draw = np.random.default_rng(3)
    outcomes = []
    for trial in range(200):
        champion = draw.normal(3, 1, 300)
        candidate = champion + draw.normal(0, 0.2, 300)
        difference = relative_difference(candidate, champion, np.ones(300), n_resamples=400, seed=trial)
        assert difference is not None
        outcomes.append(judge(difference, lower_is_better=True, min_gain=0.0)[0])
    assert outcomes.count("pass") <= 12
    assert outcomes.count("not_enough_evidence") >= 180
