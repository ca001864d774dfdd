"""Points of past searches come from the memory of runs, whether their artifacts are here or not."""

import math

import pytest

from pipeline_lib.memory.keep import store_of
from pipeline_lib.memory.record import Remembered
from pipeline_lib.tuning.space import Dimension
from pipeline_lib.tuning.warm import past_points
from pipeline_lib.workspace.workspace import Workspace

SPACE = {
    "learning_rate": Dimension("learning_rate", 0.5, 2.0),
    "optimizer": Dimension("optimizer", options=("adamw", "muon"), start="adamw"),
    "width": Dimension("width", options=(64, 96), start=64),
}
ASKED = {"family": "llama", "parameters": 1e6, "cpu": "here"}


def remembered(run_id, point, gain=0.02, noise=0.005, **features):
    words = {f"point/{k}={v}": 1.0 for k, v in point.items() if isinstance(v, str)}
    numbers = {f"point/{k}": v for k, v in point.items() if not isinstance(v, str)}
    tuned = {"gain": gain, "noise": noise, **words, **numbers}
    return Remembered(run_id, ended="2026-01-01T00:00:00+00:00", outcome="completed", features={**ASKED, **features}, tuned=tuned)


@pytest.fixture
def workspace(tmp_path):
    made = Workspace.open(tmp_path)
    near = remembered("20260101-000000-00000001", {"learning_rate": 1.5, "optimizer": "muon", "width": 96}, parameters=5e5)
    far = remembered("20260101-000000-00000002", {"learning_rate": 0.1, "optimizer": "sgd"}, parameters=2e4)
    unsearched = Remembered("20260101-000000-00000003", features=dict(ASKED))
    store_of(made).add_all([near, far, unsearched])
    return made


def test_the_nearest_search_comes_first_of_those_alone_and_its_point_is_brought_into_the_space(workspace):
    together, first, second = past_points(workspace, SPACE, ASKED, 5)
    assert (first.run_id[-1], first.point) == ("1", {"learning_rate": 1.5, "optimizer": "muon", "width": 96})
    assert isinstance(first.point["width"], int), "an option as it is offered"
    assert (second.run_id[-1], second.point) == ("2", {"learning_rate": 0.5, "optimizer": "adamw", "width": 64})
    assert together.why.startswith("2 searches like this one")
    assert 1.0 < together.point["learning_rate"] < 1.5
    assert past_points(workspace, SPACE, ASKED, 1) == [together]
    assert past_points(workspace, SPACE, ASKED, 0) == []


def test_what_searches_say_together_is_drawn_to_the_law_by_how_sure_they_are(tmp_path):
    """1 / variance in units of the law's spread ln 2: x·√(noise / gain) for a point that won, 1 for a default that stayed."""

    def first(name, *searches):
        made = Workspace.open(tmp_path / name)
        rows = [
            remembered(f"20260101-000000-{n:08d}", {"learning_rate": f}, gain, noise)
            for n, (f, gain, noise) in enumerate(searches)
        ]
        store_of(made).add_all(rows)
        return next(iter(past_points(made, {"learning_rate": SPACE["learning_rate"]}, ASKED, 1)), None)

    sure, luck = first("sure", (2.0, 0.02, 0.005)), first("luck", (2.0, 0.0051, 0.005))
    assert math.log2(sure.point["learning_rate"]) == pytest.approx(4 / 5, abs=0.01)  # variance 1/4 beside 1
    assert math.log2(luck.point["learning_rate"]) == pytest.approx(0.5, abs=0.01)
    ten = first("ten", *[(2.0, 0.0051, 0.005)] * 10)
    assert math.log2(ten.point["learning_rate"]) == pytest.approx(10 / 11, abs=0.01)
    assert first("default", *[(1.0, 0.0, 0.005)] * 3) is None  # the law's: nothing to try
    mixed = first("mixed", (2.0, 0.02, 0.005), *[(1.0, 0.0, 0.005)] * 3)
    assert math.log2(mixed.point["learning_rate"]) == pytest.approx(4 / 8, abs=0.01)


def test_nothing_is_taken_from_a_search_of_something_else(workspace):
    other = {"family": "phi", "parameters": 1e12, "cpu": "there"}
    assert past_points(workspace, SPACE, other, 5) == []


def test_an_empty_memory_has_no_points(tmp_path):
    assert past_points(Workspace.open(tmp_path), SPACE, ASKED, 5) == []
