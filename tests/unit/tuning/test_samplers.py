"""Samplers: every one proposes points of the space, the same ones for the same record, and the clever ones come closer."""

import math
import statistics

import pytest

from pipeline_lib.tuning.samplers import Seen, propose
from pipeline_lib.tuning.space import Dimension

SPACE = {
    "learning_rate": Dimension("learning_rate", 0.1, 10.0),
    "weight_decay": Dimension("weight_decay", 0.2, 5.0),
    "optimizer": Dimension("optimizer", options=("adamw", "muon", "adafactor"), start="adamw"),
}
ALL = ("quick_gp", "tpe", "gp", "cmaes", "nsga2", "nsga3", "qmc", "grid", "random")


def loss(point):
    bad = {"adamw": 0.3, "muon": 0.0, "adafactor": 0.6}[point["optimizer"]]
    return 3 + bad + math.log(point["learning_rate"] / 3) ** 2 + 0.3 * math.log(point["weight_decay"]) ** 2


def searched(name, trials, seed=0, space=SPACE, values=lambda point: (loss(point),), objectives=1):
    seen = []
    for number in range(trials):
        point, attrs = propose(name, space, number, seen, seed=seed, objectives=objectives)
        seen.append(Seen(number, point, values(point), attrs))
    return seen


@pytest.mark.parametrize("name", ALL)
def test_points_lie_in_the_space_and_follow_from_the_record(name):
    first = searched(name, 9)
    assert all(one.holds(seen.point[key]) for seen in first for key, one in SPACE.items())
    assert [seen.point for seen in searched(name, 9)] == [seen.point for seen in first]
    assert len({tuple(seen.point.values()) for seen in first}) == 9
    if name != "grid":
        assert [seen.point for seen in searched(name, 9, seed=1)] != [seen.point for seen in first]


def test_the_grid_visits_every_point_once():
    points = {tuple(seen.point.values()) for seen in searched("grid", 27)}
    assert len(points) == 27
    assert sorted({rate for rate, _, _ in points}) == pytest.approx([0.1, 1.0, 10.0])


@pytest.mark.parametrize("name", ["quick_gp", "tpe", pytest.param("gp", marks=pytest.mark.slow), "cmaes"])
def test_a_model_of_the_space_comes_closer_than_luck(name):
    numbers = {key: one for key, one in SPACE.items() if not one.options}
    space = numbers if name == "cmaes" else SPACE

    def late(sampler):
        found = searched(sampler, 28, space=space, values=lambda point: (loss({"optimizer": "muon", **point}),))
        return statistics.fmean(seen.values[0] for seen in found[-8:])

    assert late(name) < late("random") - 0.3


def test_failed_trials_are_avoided_not_forgotten():
    seen = searched("tpe", 12)
    failed = [Seen(one.number, one.point, None, failed=True) if one.point["optimizer"] == "muon" else one for one in seen]
    proposed = [propose("tpe", SPACE, 12 + n, failed, seed=n)[0]["optimizer"] for n in range(10)]
    assert proposed.count("muon") < 5


def test_several_objectives():
    space = {"learning_rate": SPACE["learning_rate"], "weight_decay": SPACE["weight_decay"]}
    for name in ("nsga2", "nsga3", "tpe"):
        found = searched(name, 20, space=space, objectives=2, values=lambda p: (p["learning_rate"], 1 / p["weight_decay"]))
        assert len(found) == 20
        if name != "tpe":
            assert any("generation" in key for key in found[-1].attrs), "what the sampler notes is kept"


@pytest.mark.parametrize("name", ["quick_gp", "tpe"])
def test_what_is_at_work_is_not_proposed_again(name):
    seen = searched(name, 12)
    point = propose(name, SPACE, 12, seen, seed=0)[0]
    assert propose(name, SPACE, 12, seen, seed=0)[0] == point
    assert propose(name, SPACE, 12, [*seen, Seen(13, point, None)], seed=0)[0] != point


def test_the_quick_process_finds_a_corner_that_random_points_miss():
    """Twenty points in five dimensions, where the best lies at the end of three ranges."""
    space = {name: Dimension(name, 0.1, 10.0) for name in "abcde"}

    def bad(point):
        a, b, c, d, e = (math.log10(point[name]) for name in "abcde")
        return 3 - 0.3 * a + 0.2 * b + 0.3 * (c - 0.8) ** 2 + 0.02 * d * e

    gaps = []
    for seed in range(6):
        found = searched("quick_gp", 20, seed=seed, space=space, values=lambda point: (bad(point),))
        luck = searched("random", 42, seed=seed, space=space, values=lambda point: (bad(point),))
        gaps.append(min(one.values[0] for one in luck) - min(one.values[0] for one in found))
    assert min(gaps) > 0
    assert statistics.median(gaps) > 0.05


@pytest.mark.parametrize("name", ["quick_gp", "tpe"])
def test_every_option_is_tried_with_a_small_and_a_large_factor_before_a_model_decides(name):
    for seed in range(5):
        points = [propose(name, SPACE, number, [], seed=seed)[0] for number in range(1, 9)]
        for option in SPACE["optimizer"].options:
            rates = [point["learning_rate"] for point in points if point["optimizer"] == option]
            assert min(rates) < 1 < max(rates), f"{option} with seed {seed}"
        assert len({round(point["learning_rate"], 9) for point in points}) == 8
