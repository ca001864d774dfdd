"""Points of past searches come from the memory of runs, whether their artifacts are here or not."""

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


def remembered(run_id, point, **features):
    tuned = {"gain": 0.02, **{f"point/{k}={v}" if isinstance(v, str) else f"point/{k}": 1.0 if isinstance(v, str) else v
                              for k, v in point.items()}}  # fmt: skip
    return Remembered(run_id, ended="2026-01-01T00:00:00+00:00", outcome="completed", features={**ASKED, **features}, tuned=tuned)


@pytest.fixture
def workspace(tmp_path):
    made = Workspace.open(tmp_path)
    near = remembered("20260101-000000-00000001", {"learning_rate": 1.5, "optimizer": "muon", "width": 96}, parameters=5e5)
    far = remembered("20260101-000000-00000002", {"learning_rate": 0.1, "optimizer": "sgd"}, parameters=2e4)
    unsearched = Remembered("20260101-000000-00000003", features=dict(ASKED))
    store_of(made).add_all([near, far, unsearched])
    return made


def test_the_nearest_search_comes_first_and_its_point_is_brought_into_the_space(workspace):
    first, second = past_points(workspace, SPACE, ASKED, 5)
    assert (first.run_id[-1], first.point) == ("1", {"learning_rate": 1.5, "optimizer": "muon", "width": 96})
    assert isinstance(first.point["width"], int), "an option as it is offered"
    assert (second.run_id[-1], second.point) == ("2", {"learning_rate": 0.5, "optimizer": "adamw", "width": 64})
    assert past_points(workspace, SPACE, ASKED, 1) == [first]
    assert past_points(workspace, SPACE, ASKED, 0) == []


def test_nothing_is_taken_from_a_search_of_something_else(workspace):
    other = {"family": "phi", "parameters": 1e12, "cpu": "there"}
    assert past_points(workspace, SPACE, other, 5) == []


def test_an_empty_memory_has_no_points(tmp_path):
    assert past_points(Workspace.open(tmp_path), SPACE, ASKED, 5) == []
