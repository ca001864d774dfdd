"""Intervals cover what they claim, and the gate errs as rarely as it says."""

from statistics import NormalDist

import numpy as np
import pytest

from pipeline_lib.validation.gate import judge, level_of
from pipeline_lib.validation.intervals import (
    LEVEL,
    Estimate,
    detectable,
    estimate,
    linearised,
    paired_change,
    paired_shares,
    relative_difference,
    resampled_ratios,
    spelled,
    wilson,
)


def test_the_bootstrap_error_of_a_mean_is_the_analytic_one():
    scores = np.random.default_rng(0).normal(3, 1, 2000)  # not so many that no resampling is needed
    found = estimate(scores, np.ones(2000), n_resamples=4000)
    analytic = 1.96 * scores.std() / np.sqrt(2000)
    assert found.value == pytest.approx(scores.mean())
    assert found.error == pytest.approx(scores.std() / np.sqrt(2000), rel=0.05)
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
    assert found.error == pytest.approx(np.sqrt(right * (n - right) / n**3))


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


def test_a_model_passes_by_the_wide_interval_and_fails_by_the_usual_one() -> None:
    wide, usual = Estimate(0.02, -0.01, 0.05, 500, 0.015), Estimate(0.02, 0.01, 0.03, 500, 0.005)
    for min_gain, outcome in ((-0.02, "pass"), (0.0, "not_enough_evidence"), (0.04, "fail")):
        found, reason = judge(wide, usual, level=0.99, min_gain=min_gain)
        assert found == outcome
    assert "99 % interval -1.00% to +5.00%" in reason


def test_a_true_difference_of_the_detectable_size_is_found_in_80_of_100_cases() -> None:
    draw = np.random.default_rng(6)
    for level in (LEVEL, level_of(30)):
        smallest = detectable(linearised(draw.normal(0, 1, 1000), np.ones(1000), level=level), level=level)
        trials = [linearised(draw.normal(smallest, 1, 1000), np.ones(1000), level=level) for _ in range(1000)]
        assert abs(np.mean([found.low > 0 for found in trials]) - 0.8) < 0.06


def test_thirty_nights_of_equals_together_err_as_rarely_as_one_comparison() -> None:
    draw = np.random.default_rng(3)
    passed, at_once, undecided = 0, 0, 0
    for _ in range(300):
        champion = draw.normal(3, 1, 200)
        outcomes = []
        for attempt in range(1, 31):
            candidate, level = champion + draw.normal(0, 0.2, 200), level_of(attempt)
            found = [linearised(champion - candidate, champion, level=one) for one in (level, LEVEL)]
            outcomes.append(judge(*found, level=level, min_gain=0.0)[0])
            at_once += found[1].low > 0
        passed += "pass" in outcomes
        undecided += outcomes.count("not_enough_evidence")
    assert passed <= 16, "one-sided: 2.5 % of 300"
    assert at_once > 150, "without the correction, every month or two would have a lucky one"
    assert undecided >= 0.95 * 300 * 30


def test_rare_levels_are_wider_than_any_resample_tells() -> None:
    draw = np.random.default_rng(5)
    champion = draw.normal(3, 1, 300)
    candidate = champion + draw.normal(0, 0.2, 300)
    widths = []
    for level in (0.95, 0.975, 0.999, 0.99995):
        found = relative_difference(candidate, champion, np.ones(300), n_resamples=1000, level=level)
        assert found is not None
        widths.append((found.high - found.low) / 2)
    normal = [NormalDist().inv_cdf((1 + level) / 2) for level in (0.95, 0.975, 0.999, 0.99995)]
    two = linearised(np.array([0.0, 1.0]), np.ones(2), level=0.99995)
    assert two.high > 1000, "two items say next to nothing"
    assert np.allclose(np.array(widths) / widths[0], np.array(normal) / normal[0], rtol=0.06)


def test_a_single_document_tells_nothing_about_others() -> None:
    assert spelled(estimate(np.array([30.0]), np.array([10.0]), n_resamples=100).to_json()) == "unknown"
    assert spelled(estimate(np.ones(1), np.ones(1), n_resamples=100).to_json()) == "0.2065 to 1.0000"
    assert spelled(estimate(np.array([30.0, 30.0]), np.array([10.0, 10.0]), n_resamples=100).to_json()) == "3.0000 to 3.0000"


def test_lost_and_won_answers_are_no_sure_change_while_they_are_few() -> None:
    one_won, one_lost = (paired_change(np.append(one, np.zeros(79)), np.ones(80), n_resamples=10) for one in (1.0, -1.0))
    assert one_won.low < 0 < one_won.high
    assert (one_won.low, one_won.high) == pytest.approx((-one_lost.high, -one_lost.low))
    none = paired_shares(0, 0, 80)
    z = NormalDist().inv_cdf(0.975)
    assert (none.low, none.high) == pytest.approx((-(z**2) / (80 + z**2), z**2 / (80 + z**2)))
    all_won = paired_shares(80, 0, 80)
    assert (all_won.low, all_won.high) == pytest.approx((wilson(80, 80).low * 2 - 1, 1), abs=0.01)


@pytest.mark.parametrize(("n", "won", "lost"), [(30, 0.1, 0.1), (80, 0.02, 0.05), (200, 0.05, 0.01), (400, 0.3, 0.25)])
def test_intervals_of_paired_answers_cover_the_true_change(n: int, won: float, lost: float) -> None:
    seen = np.random.default_rng(7).multinomial(n, [won, lost, 1 - won - lost], 800)
    cases = [(int(more), int(less)) for more, less, _ in seen]
    found = {case: paired_shares(*case, n) for case in set(cases)}
    held = [found[case].low <= won - lost <= found[case].high for case in cases]
    assert 0.93 <= np.mean(held) <= 0.985, "on the cautious side where almost nothing changes"
