"""Rungs and pruners: pure functions of what is recorded."""

import math

import numpy as np
import pytest

from pipeline_lib.tuning.pruning import Rule, Standing, gives_up, promotable
from pipeline_lib.tuning.rungs import cost_of, mean_share, rungs_of


def asha(losses, **options):
    """Readings by trial: a list of losses, one a rung."""
    return [Standing(n, dict(enumerate(one)), **options.get(f"t{n}", {})) for n, one in enumerate(losses)]


def test_rungs_read_at_a_third_of_the_tokens_of_the_next():
    rungs = rungs_of(90, rungs=3, reduction=3)
    assert [rung.steps for rung in rungs] == [10, 30, 90]
    assert [rung.hold for rung in rungs] == [8, 24, 72]
    assert [rung.steps for rung in rungs_of(30, rungs=3, reduction=3)] == [10, 30], "no rung is shorter than a training can be"
    assert len(rungs_of(8, rungs=3, reduction=3)) == 1


def test_a_promoted_trial_pays_only_for_what_is_new():
    rungs = rungs_of(90, rungs=3, reduction=3)
    assert cost_of(rungs, 0, 0) == 10
    assert cost_of(rungs, 1, 1) == 24 - 8 + 6
    assert sum(cost_of(rungs, k, k) for k in range(3)) == cost_of(rungs, 0, 2) == 90 + 2 + 6
    assert mean_share(90, rungs=3, reduction=3, pruner="none") == 1
    assert 0.2 < mean_share(90, rungs=3, reduction=3, pruner="asha") < 0.45
    assert mean_share(90, rungs=3, reduction=3, pruner="asha") < mean_share(90, rungs=3, reduction=3, pruner="hyperband") < 0.7


def test_asha_promotes_the_best_third_whenever_there_is_one():
    rule = Rule("asha", 3, 3.0)
    assert promotable(asha([[5.0], [4.0]]), rule) is None
    assert promotable(asha([[5.0], [4.0], [6.0]]), rule).number == 1
    assert promotable(asha([[5.0], [4.0, 3.0], [6.0]]), rule) is None
    assert promotable(asha([[5.0], [4.0], [6.0], [3.0], [7.0], [8.0]]), rule).number == 3, "the best of those that may"
    late = asha([[5.0], [4.0, 3.5], [6.0], [3.0], [7.0], [8.0]])
    assert promotable(late, rule).number == 3, "one that came later goes on all the same"


def test_at_the_end_the_best_of_each_rung_goes_on_to_be_read_whole():
    rule = Rule("asha", 3, 3.0)
    assert promotable(asha([[5.0], [4.0]]), rule, closing=True).number == 1
    assert promotable(asha([[5.0], [4.0, 3.0]]), rule, closing=True).number == 1
    assert promotable(asha([[5.0], [4.0, 3.0, 2.0]]), rule, closing=True) is None
    assert promotable(asha([[math.inf], [math.inf]]), rule, closing=True) is None


def test_hyperband_compares_within_a_bracket():
    rule = Rule("hyperband", 3, 3.0)
    assert [rule.first(number) for number in range(4)] == [0, 1, 2, 0]
    trials = [Standing(n, {0: loss}) for n, loss in ((0, 9.0), (3, 8.0), (6, 7.0))]
    trials += [Standing(n, {1: loss}, bracket=1) for n, loss in ((1, 1.0), (4, 0.5))]
    assert promotable(trials, rule).number == 6


def test_the_default_is_always_read_whole():
    trials = asha([[9.0], [4.0], [3.0], [2.0]], t0={"protected": True})
    assert promotable(trials, Rule("asha", 3, 3.0)).number == 0
    assert not gives_up(trials[0], trials, Rule("median", 3, 3.0))


def test_the_median_ends_the_worse_half():
    rule = Rule("median", 2, 3.0)
    trials = asha([[5.0], [4.0], [4.5], [4.6], [4.4]])
    assert gives_up(trials[3], trials, rule)
    assert not gives_up(trials[4], trials, rule)
    two = asha([[1.0], [4.0]])
    assert not gives_up(two[1], two, rule), "one other is no median"


@pytest.mark.parametrize(("shift", "ends"), [(0.05, True), (0.0, False), (-0.05, False)])
def test_wilcoxon_ends_what_is_surely_worse_part_by_part(shift, ends):
    noise = np.random.default_rng(0).normal(0, 0.02, (2, 12))
    best, mine = 4 + noise[0], 4 + shift + noise[0] + 0.1 * noise[1]
    trials = [Standing(n, {0: float(part.mean())}, {0: part.tolist()}) for n, part in enumerate((best, mine))]
    assert gives_up(trials[1], trials, Rule("wilcoxon", 2, 3.0)) is ends
