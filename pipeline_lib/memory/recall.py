"""Recall of past runs: the nearest ones by their features and by the text of their goal, and careful guesses from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.memory.frame import Features, Frame, RecordFrame
from pipeline_lib.memory.possible import doubts, logarithmic, scaled
from pipeline_lib.workspace.runs import RunRecord

__all__ = ["Features", "Guess", "Neighbour", "doubts", "guess_in", "guess_throughput", "nearest", "nearest_in"]

UNEQUAL = 1.0  # distance of two unlike categories, or of a value that one side lacks: one standard deviation
# A factor of e counts as one standard deviation at least: among nearly equal runs, noise must not be blown up to distance.
SMALLEST_LOG_SPREAD = 1.0
TEXT_WEIGHT = 2.0  # what a goal says counts as much as two features: it says what people meant by the numbers

# A guess: slopes over log features, drawn to a prior as hard as this many runs. Of the first slope, that over parameters, the
# prior is known for a rate (operations a token are 6·N), which follows size closely; what else is guessed does so less.
SLOPE_PRIOR_RUNS, SLOPE_PRIOR_RUNS_ELSE = 0.05, 1.0
SLOPE_OVER_PARAMETERS = {"tokens_per_second": -1.0}
SLOPES_OVER = ("parameters", "width", "depth", "sequence_length", "vocabulary_size", "batch_tokens", "cores")
CLOSE = 0.1  # added to distances before they are weights: runs nearer than this count alike


@dataclass(frozen=True)
class Neighbour:
    """A past run like the one asked about. `doubts` says what is missing or cannot be true; a doubted run backs no guess."""

    run_id: str
    distance: float
    features: dict[str, float | str]
    reasons: tuple[str, ...]
    doubts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Guess:
    """A number guessed from past runs: the median, the range seen, which runs said so, and what each let expect."""

    value: float
    low: float
    high: float
    runs: tuple[str, ...] = field(default=())
    values: tuple[float, ...] = field(default=())


def nearest(features: Features, k: int, records: Iterable[RunRecord]) -> list[Neighbour]:
    """`nearest_in` over run records."""
    return nearest_in(RecordFrame(records), features, k)


def guess_throughput(features: Features, records: Iterable[RunRecord], *, k: int = 5) -> Guess | None:
    """`guess_in` over run records."""
    return guess_in(RecordFrame(records), features, k=k)


def nearest_in(frame: Frame, features: Features, k: int, *, likeness: NDArray[np.float64] | None = None) -> list[Neighbour]:
    """The k past runs most like `features`, nearest first; equal distances by run id, newest first.

    Distance is the root mean square over the asked features of: standardised difference (numbers; logs for sizes and rates),
    0 or 1 (categories), 1 where the record lacks the value or has an impossible one; with `likeness` (of the goals' texts, 0 to
    1 for each run) also of 1 − likeness, with the weight of two features.
    """
    distances, _ = _distances(frame, features, likeness)
    order = np.lexsort((-np.arange(len(distances)), distances))[: max(k, 0)]
    spreads = {name: _spread(name, value, frame) for name, value in features.items() if not isinstance(value, str)}
    return [
        _neighbour(
            frame, row, features, distance=float(distances[row]), spreads=spreads,
            likeness=None if likeness is None else float(likeness[row]),
        )
        for row in order.tolist()
    ]  # fmt: skip


def guess_in(
    frame: Frame, features: Features, *, of: str = "tokens_per_second", k: int = 5, far: float = math.inf
) -> Guess | None:
    """What a training will reach (a positive feature: its rate, its memory as a share of the estimate), from up to k past runs on
    the same processor and accelerator, none of them further away than `far`.

    What the nearest runs reached is carried over to the features that are asked for: a rate falls like the number of parameters,
    unless the runs of this machine say otherwise (a fit over the logs, weighted by nearness and drawn to that law). None when no
    past run can tell.
    """
    rates, parameters = frame.numbers(of), frame.numbers("parameters")
    usable = (rates > 0) & (parameters > 0) & ~frame.doubted
    for name in ("cpu", "gpu"):
        same, known = frame.same(name, str(features.get(name, "")))
        usable &= same | (~known if not features.get(name) else False)
    distances, missing = _distances(frame, features, None)
    rows = np.flatnonzero(usable & ~missing & (distances <= far))
    if not len(rows):
        return None
    asked, seen = _design(frame, features, rows)
    weights = 1 / (distances[rows] + CLOSE) ** 2
    first = SLOPE_OVER_PARAMETERS.get(of)
    slopes = _slopes(
        seen - asked, np.log(rates[rows]), weights, first=first or 0.0,
        prior_runs=SLOPE_PRIOR_RUNS if first else SLOPE_PRIOR_RUNS_ELSE,
    )  # fmt: skip
    carried = rates[rows] * np.exp((asked - seen) @ slopes)
    best = np.lexsort((-rows, distances[rows]))[:k]
    values = [float(carried[row]) for row in best]
    runs = tuple(frame.run_ids[int(rows[row])] for row in best)
    return Guess(statistics.median(values), min(values), max(values), runs, tuple(values))


def _design(frame: Frame, features: Features, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logs of what rates follow: as asked (f), and of the past runs (rows × f); `parameters` is always the first."""
    names = ["parameters", *(name for name in SLOPES_OVER[1:] if isinstance(features.get(name), int | float))]
    columns = np.stack([scaled(name, frame.numbers(name))[rows] for name in names], axis=1)
    wanted = [features.get(name) for name in names]
    asked = np.array([math.log(v) if isinstance(v, int | float) and v > 0 else np.nan for v in wanted])
    unknown = np.isnan(asked)
    return np.where(unknown, 0.0, asked), np.where(unknown | np.isnan(columns), np.where(unknown, 0.0, asked), columns)


def _slopes(
    x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64], *, first: float, prior_runs: float
) -> NDArray[np.float64]:
    """Weighted ridge regression with the prior `first` for the first column and 0 for the others; the intercept is free."""
    prior = np.zeros(x.shape[1])
    prior[0] = first
    weights = weights / weights.max()
    middle_x, middle_y = np.average(x, axis=0, weights=weights), np.average(y, weights=weights)
    left, right = x - middle_x, y - middle_y - (x - middle_x) @ prior
    gram = (left * weights[:, None]).T @ left + prior_runs * np.eye(len(prior))
    return prior + np.asarray(np.linalg.solve(gram, (left * weights[:, None]).T @ right), np.float64)


def _distances(
    frame: Frame, features: Features, likeness: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Distance of every past run, and which of them lack something that is asked for."""
    n = len(frame.run_ids)
    total, weight, missing = np.zeros(n), 0.0, np.zeros(n, bool)
    for name, value in features.items():
        weight += 1.0
        if isinstance(value, str):
            same, known = frame.same(name, value)
            total += np.where(same, 0.0, UNEQUAL**2)
        else:
            others = scaled(name, frame.numbers(name))
            known = ~np.isnan(others)
            wanted = float(scaled(name, np.array([value], np.float64))[0])
            parts = (others - wanted) / _spread(name, value, frame)
            total += np.where(np.isnan(parts), UNEQUAL**2, parts**2)
        missing |= ~known
    if likeness is not None:
        weight += TEXT_WEIGHT
        total += TEXT_WEIGHT * (1.0 - likeness) ** 2
    return (np.sqrt(total / weight) if weight else total), missing


def _spread(name: str, asked: float | str, frame: Frame) -> float:
    """Standard deviation of a feature over the past runs, with a floor that keeps equal ones from dividing by zero."""
    values = scaled(name, frame.numbers(name))
    values = values[~np.isnan(values)]
    floor = SMALLEST_LOG_SPREAD if logarithmic(name) else max(abs(float(asked)) * 0.1, 1e-9)
    return max(float(values.std()) if len(values) > 1 else 0.0, floor)


def _neighbour(
    frame: Frame, row: int, asked: Features, *, distance: float, spreads: dict[str, float], likeness: float | None
) -> Neighbour:
    """One past run with the reasons for and against it, best first."""
    told = frame.features(row)
    parts: list[tuple[float, str]] = []
    missing: list[str] = []
    bad = {text.split(" ")[0] for text in doubts(told)}
    for name, value in asked.items():
        other = told.get(name) if name not in bad else None
        if other is None:
            parts.append((UNEQUAL, f"{name} unknown there"))
            missing.append(f"{name} is missing")
        elif isinstance(value, str) or isinstance(other, str):
            parts.append((0.0, f"same {name}: {value}") if value == other else (UNEQUAL, f"{name} {other}, asked {value}"))
        elif not math.isfinite(value) or (logarithmic(name) and value <= 0):
            parts.append((UNEQUAL, f"{name} = {value} cannot be compared"))
        else:
            pair = scaled(name, np.array([value, other], np.float64))
            parts.append((abs(float(pair[0] - pair[1])) / spreads[name], _difference(name, float(value), float(other))))
    if likeness is not None:
        parts.append((1.0 - likeness, f"goal {likeness:.0%} alike"))
    reasons = tuple(text for _, text in sorted(parts, key=lambda part: part[0]))
    return Neighbour(frame.run_ids[row], distance, told, reasons, _once([*doubts(told), *missing]))


def _difference(name: str, asked: float, other: float) -> str:
    if asked == other:
        return f"same {name}: {asked:g}"
    times = f" (×{other / asked:.2g})" if asked and logarithmic(name) else ""
    return f"{name} {other:g}, asked {asked:g}{times}"


def _once(texts: Sequence[str]) -> tuple[str, ...]:
    """Without a "missing" for what is already called impossible."""
    said: dict[str, str] = {}
    for text in texts:
        said.setdefault(text.split(" ")[0], text)
    return tuple(said.values())
