"""A small Gaussian process over a space: where the next trial is expected to gain most.

Made for searches of ten to some hundred trials that cost seconds each: a proposal takes some milliseconds and imports nothing but
numpy, where Optuna's `GPSampler` takes 60 ms and needs torch. Matérn 5/2 (Rasmussen & Williams 2006, eq. 4.17) with a length
for each dimension; lengths and noise by coordinate steps on the likelihood times a log-normal prior, the scale integrated out;
expected improvement (Jones et al. 1998) over random points and over points around the best three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pipeline_lib.tuning.space import Space, Value

Array = npt.NDArray[np.float64]
CANDIDATES = 400
NEAR = (0.05, 0.15, 0.3)  # standard deviations around the best points, shares of a range
KEEP = 0.9  # chance that a point around a good one keeps an option of it
APART = 0.7  # two options are as far apart as the ends of a range
LENGTH, NOISE = 1.0, math.exp(-4.0)  # middle of the priors: ranges, share of the variance
SHORTEST, LONGEST = 1 / 8, 1 / 0.15
MOST = 120  # trials that are looked at, the best ones: a proposal stays at some ten milliseconds


def proposed(
    space: Space,
    done: Sequence[tuple[Mapping[str, Value], float]],
    at_work: Sequence[Mapping[str, Value]],
    draw: np.random.Generator,
    at: Callable[[Sequence[float]], dict[str, Value]],
) -> dict[str, Value]:
    """The candidate with the greatest expected improvement.

    Args:
        space: what is searched.
        done: points with their losses; infinite for one that failed.
        at_work: points without a loss yet: the process believes its own mean there, so that none is proposed twice.
        draw: random numbers.
        at: the point of the space at shares [0, 1] of its dimensions.
    """
    done = sorted(done, key=lambda pair: pair[1])[:MOST]
    losses = np.array([loss for _, loss in done], np.float64)
    middle = float(np.median(losses[np.isfinite(losses)]))
    losses = np.minimum(losses, middle + 2 * (middle - losses[0]) + 1e-9)  # a loss that exploded says no more than "bad"
    known = np.array([_place(space, point) for point, _ in done])
    values = (losses - losses.mean()) / (losses.std() + 1e-12)
    process = Process.fitted(known, values)
    if at_work:
        more = np.array([_place(space, point) for point in at_work])
        believed = process.at(more)[0]
        process = Process(np.vstack([known, more]), np.concatenate([values, believed]), process.lengths, process.noise)
    best = [point for point, _ in done[: len(NEAR)]]
    candidates = [at(row.tolist()) for row in draw.random((CANDIDATES // 2, len(space)))]
    candidates += [_near(space, best[i % len(best)], NEAR[i // len(best) % len(NEAR)], draw) for i in range(CANDIDATES // 2)]
    mean, spread = process.at(np.array([_place(space, point) for point in candidates]))
    gain = float(process.at(known)[0].min()) - mean
    share = gain / spread
    tail = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in share])
    expected = gain * tail + spread * np.exp(-(share**2) / 2) / math.sqrt(2 * math.pi)
    return candidates[int(np.argmax(expected))]


class Process:
    """A Gaussian process through what is known.

    Args:
        known: float64[n, d], places.
        values: float64[n], about standardised.
        lengths: float64[d].
        noise: variance of a value beside that of the process.
    """

    def __init__(self, known: Array, values: Array, lengths: Array, noise: float) -> None:
        self.known, self.lengths, self.noise = known, lengths, noise
        self.factor = np.linalg.cholesky(_kernel(known, known, lengths) + noise * np.eye(len(known)))
        self.weights = np.linalg.solve(self.factor.T, np.linalg.solve(self.factor, values))
        self.scale = float(values @ self.weights + 1) / (len(values) + 1)  # of its variance, with one value of 1 as prior

    @property
    def cost(self) -> float:
        """Negative log of likelihood times prior."""
        prior = float((np.log(self.lengths / LENGTH) ** 2).sum()) / 2 + (math.log(self.noise / NOISE) / 1.5) ** 2 / 2
        return len(self.known) / 2 * math.log(self.scale) + float(np.log(np.diag(self.factor)).sum()) + prior

    @classmethod
    def fitted(cls, known: Array, values: Array) -> Process:
        """With lengths and noise that are likely."""
        best = cls(known, values, np.full(known.shape[1], LENGTH), NOISE)
        for _ in range(2):
            for dimension in range(known.shape[1]):
                for step in (0.4, 2.5):
                    lengths = best.lengths.copy()
                    lengths[dimension] = min(max(lengths[dimension] * step, SHORTEST), LONGEST)
                    best = min(best, cls(known, values, lengths, best.noise), key=lambda one: one.cost)
            for step in (0.25, 4.0):
                noise = min(max(best.noise * step, 1e-4), 0.5)
                best = min(best, cls(known, values, best.lengths, noise), key=lambda one: one.cost)
        return best

    def at(self, places: Array) -> tuple[Array, Array]:
        """Mean and standard deviation at float64[m, d] places."""
        cross = _kernel(places, self.known, self.lengths)
        left = self.scale * (1 - (np.linalg.solve(self.factor, cross.T) ** 2).sum(axis=0))
        return cross @ self.weights, np.sqrt(np.maximum(left, 1e-12))


def _kernel(a: Array, b: Array, lengths: Array) -> Array:
    a, b = a / lengths, b / lengths
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * a @ b.T
    away = np.sqrt(5 * np.maximum(squares, 0))
    return np.asarray((1 + away + away**2 / 3) * np.exp(-away))


def _place(space: Space, point: Mapping[str, Value]) -> list[float]:
    """A factor is one number, its share of its range; an option one of several that is not 0."""
    found: list[float] = []
    for name, one in space.items():
        if one.options:
            found += [APART * (point[name] == option) for option in one.options]
        else:
            found.append(math.log(float(point[name]) / one.low) / math.log(one.high / one.low))
    return found


def _near(space: Space, point: Mapping[str, Value], width: float, draw: np.random.Generator) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, one in space.items():
        if one.options:
            found[name] = point[name] if draw.random() < KEEP else one.options[int(draw.integers(len(one.options)))]
        else:
            moved = float(point[name]) * (one.high / one.low) ** draw.normal(0, width)
            found[name] = min(max(float(moved), one.low), one.high)
    return found
