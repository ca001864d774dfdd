"""What mattered in a search: one share a dimension, as Optuna computes it."""

import math

import numpy as np
import pytest

from pipeline_lib.tuning.importance import importance
from pipeline_lib.tuning.samplers import Seen
from pipeline_lib.tuning.space import Dimension

SPACE = {
    "learning_rate": Dimension("learning_rate", 0.1, 10.0),
    "weight_decay": Dimension("weight_decay", 0.2, 5.0),
    "optimizer": Dimension("optimizer", options=("adamw", "muon"), start="adamw"),
}


def seen(count, matters):
    draw = np.random.default_rng(0)
    found = []
    for number in range(count):
        rate, decay = (float(10 ** draw.uniform(-1, 1)), float(5 ** draw.uniform(-1, 1)))
        point = {"learning_rate": rate, "weight_decay": decay, "optimizer": str(draw.choice(["adamw", "muon"]))}
        found.append(Seen(number, point, (matters(point),)))
    return found


def test_what_decides_the_loss_has_the_greatest_share():
    rate = importance(SPACE, seen(60, lambda p: math.log(p["learning_rate"] / 3) ** 2 + 0.01 * math.log(p["weight_decay"])))
    assert next(iter(rate)) == "learning_rate"
    assert rate["learning_rate"] > 0.6
    assert sum(rate.values()) == pytest.approx(1, abs=1e-3)
    option = importance(SPACE, seen(60, lambda p: (p["optimizer"] == "muon") + 0.01 * p["weight_decay"]))
    assert option["optimizer"] > 0.1
    assert importance(SPACE, seen(5, lambda p: p["learning_rate"])) == {}, "too few"
    assert importance(SPACE, seen(9, lambda p: 1.0)) == {}, "all the same"
