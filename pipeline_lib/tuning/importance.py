"""What mattered: the share of each searched thing in the differences between trials, and the loss along it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline_lib.tuning.samplers import Seen
from pipeline_lib.tuning.space import Dimension, Space

FEWEST = 6  # trials: fewer tell nothing
TOP = 0.1  # the share of the trials that counts as good; at least two
CELLS = 50  # of a factor's range


def importance(space: Space, seen: Sequence[Seen]) -> dict[str, float]:
    """How differently the best trials and all of them lie along each dimension: PED-ANOVA (Watanabe et al. 2023, theorem 1), the
    Pearson divergence of two densities. Computed here: Optuna's own imports scikit-learn for it, half a second of every search.

    Returns:
        Shares that add up to 1, the greatest first; {} when there are too few trials or all are the same.
    """
    done = sorted(
        (one for one in seen if one.values and len(one.values) == 1 and not one.failed), key=lambda one: one.values or ()
    )
    if len(done) < FEWEST or len({one.values for one in done}) < 3:
        return {}
    good = done[: max(math.ceil(TOP * len(done)), 2)]
    found = {}
    for name, one in space.items():
        everywhere = _density(one, [trial.point[name] for trial in done])
        found[name] = float(everywhere @ (_density(one, [trial.point[name] for trial in good]) / everywhere - 1) ** 2)
    whole = math.fsum(found.values())
    shares = {name: round(value / whole, 4) for name, value in found.items()} if whole else {}
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


def _density(one: Dimension, values: Sequence[Any]) -> np.ndarray:
    """float64[cells or options], sums to 1: Gaussians of Scott's width over the logarithms, or counts, and one even share."""
    if one.options:
        counts = np.array([sum(value == option for value in values) for option in one.options], np.float64)
        return np.asarray((counts + 1 / len(one.options)) / (len(values) + 1))
    cells = np.arange(CELLS)
    places = (CELLS - 1) * np.log(np.array(values, np.float64) / one.low) / math.log(one.high / one.low)
    quarters = np.quantile(places, [0.25, 0.75])
    width = max(1.059 * min(float(places.std()), float(quarters[1] - quarters[0]) / 1.34) * len(places) ** -0.2, 0.5)
    bells = np.exp(-0.5 * ((cells[None, :] - places[:, None]) / width) ** 2)
    bells /= bells.sum(axis=1, keepdims=True)
    return np.asarray((bells.sum(axis=0) + 1 / CELLS) / (len(places) + 1))


def slices(space: Space, seen: Sequence[Seen]) -> dict[str, list[list[Any]]]:
    """For each dimension, [value, loss] of every trial that has one, by value."""
    done = [one for one in seen if one.values and not one.failed]
    return {
        name: sorted(
            ([one.point[name], (one.values or (0.0,))[0]] for one in done), key=lambda pair: (str(type(pair[0])), pair[0])
        )
        for name in space
    }
