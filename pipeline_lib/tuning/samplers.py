"""Who proposes points. Every proposal is a pure function of the seed, the trial's number and what is recorded of the others.

`quick_gp` is our own Gaussian process (`gaussian.py`).
Optuna's TPE, GP, NSGA-II and NSGA-III see a copy of the study in memory in which a trial that waits at a rung counts with the
loss it is expected to reach: samplers learn from every reading, not only from what was read to the end. CMA-ES is played again
from the recorded trials instead of being kept as a pickle; grid and Sobol points follow from the trial's number.
"""

from __future__ import annotations

import itertools
import math
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from pipeline_lib.tuning.gaussian import proposed
from pipeline_lib.tuning.space import Space, Value

# Trials before a model of the space is worth anything: pairs with small and large factors, an option a pair. With four random
# ones, or eight that vary all at once, a search in two never came back to an option whose first trials were unlucky (measured).
START_UP = 8
MODELS = ("tpe", "gp", "quick_gp")  # samplers that have one


@dataclass(frozen=True)
class Seen:
    """A trial as samplers see it."""

    number: int
    point: Mapping[str, Value]
    values: tuple[float, ...] | None  # one an objective, less is better; None: not read yet, or failed
    attrs: Mapping[str, Any] = field(default_factory=dict)  # what the sampler had noted about it
    failed: bool = False


def distributions(space: Space) -> dict[str, Any]:
    """The space as Optuna has it: factors on a log scale."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        name: CategoricalDistribution(one.options) if one.options else FloatDistribution(one.low, one.high, log=True)
        for name, one in space.items()
    }


def propose(
    name: str, space: Space, number: int, seen: Sequence[Seen], *, seed: int, grid_points: int = 3, objectives: int = 1
) -> tuple[dict[str, Value], dict[str, Any]]:
    """The point of trial `number`, and what the sampler wants to remember about it.

    Args:
        name: `tune.sampler`.
        space: what is searched.
        number: of the trial.
        seen: the others.
        seed: of the search.
        grid_points: of each factor, for the grid.
        objectives: how many.
    """
    simple: dict[str, Callable[[], dict[str, Value]]] = {
        "grid": lambda: _grid(space, number, grid_points),
        "qmc": lambda: _sobol(space, number, seed),
        "cmaes": lambda: _cmaes(space, number, seen, seed),
        "random": lambda: _from_unit(space, np.random.default_rng([seed, number]).random(len(space)).tolist()),
    }
    if name in simple:
        return simple[name](), {}
    if name in MODELS and number <= START_UP:  # trial 0 is the default as a rule: the eight that belong together follow it
        return _pairs(space, (number - 1) % (START_UP + 1), seed), {}
    if name == "quick_gp" and objectives == 1:
        return _gaussian(space, number, seen, seed), {}
    return _optuna("tpe" if name == "quick_gp" else name, space, number, seen, seed=seed, objectives=objectives)


def _gaussian(space: Space, number: int, seen: Sequence[Seen], seed: int) -> dict[str, Value]:
    draw = np.random.default_rng([seed, number])
    inside = [one for one in seen if one.point.keys() == space.keys() and all(space[k].holds(v) for k, v in one.point.items())]
    done = [(one.point, one.values[0] if one.values else math.inf) for one in inside if one.values or one.failed]
    at_work = [one.point for one in inside if not one.values and not one.failed]
    if not any(one.values for one in inside):
        return _from_unit(space, draw.random(len(space)).tolist())
    return proposed(space, done, at_work, draw, partial(_from_unit, space))


def _optuna(
    name: str, space: Space, number: int, seen: Sequence[Seen], *, seed: int, objectives: int
) -> tuple[dict[str, Value], dict[str, Any]]:
    import optuna
    from optuna.trial import TrialState, create_trial

    draw = (seed * 1_000_003 + number) % (1 << 31)
    makers: dict[str, Any] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=draw, n_startup_trials=1, multivariate=len(space) > 1, constant_liar=True),
        "gp": lambda: optuna.samplers.GPSampler(seed=draw, n_startup_trials=1),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=draw, population_size=_population(space)),
        "nsga3": lambda: optuna.samplers.NSGAIIISampler(seed=draw, population_size=_population(space)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        view = optuna.create_study(directions=["minimize"] * objectives, sampler=makers[name]())
    wanted = distributions(space)
    worst = [max((v[i] for one in seen if (v := one.values)), default=0.0) for i in range(objectives)]
    trials = []
    for one in seen:
        values = list(one.values) if one.values else worst if one.failed and any(other.values for other in seen) else None
        at_work = values is None and not one.failed and name == "tpe"  # that sampler keeps away from what others try just now
        if (values is None and not at_work) or any(not space[key].holds(value) for key, value in one.point.items()):
            continue
        told: dict[str, Any] = {"params": dict(one.point), "distributions": wanted, "system_attrs": dict(one.attrs)}
        trials.append(create_trial(state=TrialState.RUNNING if at_work else TrialState.COMPLETE, values=values, **told))
    view.add_trials(trials)
    trial = view.ask(wanted)
    return dict(trial.params), dict(view.trials[-1].system_attrs)


def _population(space: Space) -> int:
    return 4 + 2 * len(space)


def _from_unit(space: Space, unit: Sequence[float]) -> dict[str, Value]:
    """A point from numbers in [0, 1), log-uniform for factors."""
    point: dict[str, Value] = {}
    for (name, one), share in zip(space.items(), unit, strict=True):
        if one.options:
            point[name] = one.options[min(int(share * len(one.options)), len(one.options) - 1)]
        else:
            inside = one.low * (one.high / one.low) ** min(max(float(share), 0.0), 1.0)
            point[name] = min(max(inside, one.low), one.high)
    return point


def _grid(space: Space, number: int, points: int) -> dict[str, Value]:
    """The number-th point of the grid, in an order that visits it all; from its beginning again after the last."""
    axes = [
        list(one.options) or [one.low * (one.high / one.low) ** (i / (points - 1)) for i in range(points)]
        for one in space.values()
    ]
    size = math.prod(map(len, axes))
    chosen = next(itertools.islice(itertools.product(*axes), number % size, None))
    return {
        name: value if one.options else min(max(float(value), one.low), one.high)
        for (name, one), value in zip(space.items(), chosen, strict=True)
    }


def _sobol(space: Space, number: int, seed: int) -> dict[str, Value]:
    from scipy.stats import qmc

    points = qmc.Sobol(len(space), rng=seed)
    if number:
        points.fast_forward(number)
    return _from_unit(space, points.random(1)[0].tolist())


def _pairs(space: Space, number: int, seed: int) -> dict[str, Value]:
    """A Latin hypercube of `START_UP` points of which two following ones are each other's mirror image, so that they lie in
    different halves of every factor; they share their options, and the next pair has the next ones. The point after the last is
    the middle. (Not Sobol's: scipy.stats takes half a second to import, in every search.)
    """
    draw, pair = np.random.default_rng([seed, START_UP]), number // 2
    factors = {name: one for name, one in space.items() if not one.options}
    place = np.full(len(factors), 0.5)
    if number < START_UP:
        cells = draw.permuted(np.tile(np.arange(START_UP // 2), (len(factors), 1)), axis=1)
        inside, flipped = draw.random(cells.shape), draw.random(cells.shape) < 0.5
        low = ((cells + inside) / START_UP)[:, pair]
        place = np.where(flipped[:, pair] == (number % 2 == 0), 1 - low, low)
    values = _from_unit(factors, place.tolist())
    turn = seed + (pair if factors else number)
    for name, one in space.items():
        if one.options:
            values[name] = one.options[turn % len(one.options)]
            turn //= len(one.options)
    return {name: values[name] for name in space}


def _cmaes(space: Space, number: int, seen: Sequence[Seen], seed: int) -> dict[str, Value]:
    """CMA-ES (Hansen 2016) over the factors' logarithms, told the finished trials in their order; choices at random."""
    random = np.random.default_rng([seed, number])
    point = _from_unit(space, random.random(len(space)).tolist())
    factors = [name for name, one in space.items() if not one.options]
    done = [one for one in seen if one.values and set(factors) <= one.point.keys()]
    if not factors:
        return point
    low = np.log([space[name].low for name in factors])
    span = np.log([space[name].high for name in factors]) - low
    if len(factors) == 1 or len(done) < START_UP:  # CMA-ES needs two dimensions
        if len(factors) == 1 and len(done) >= START_UP:
            best = min(done, key=lambda one: one.values or ())
            share = (math.log(float(best.point[factors[0]])) - low[0]) / span[0] + random.normal(0, 0.5 / math.sqrt(len(done)))
            point |= _from_unit({factors[0]: space[factors[0]]}, [min(max(share, 0.0), 1.0)])
        return point
    import cmaes

    engine = cmaes.CMA(
        mean=np.full(len(factors), 0.5), sigma=0.25, bounds=np.array([[0.0, 1.0]] * len(factors)), seed=seed,
        population_size=max(4, _population(space) // 2),
    )  # fmt: skip
    size = engine.population_size
    for start in range(0, len(done) - size + 1, size):
        told = []
        for one in done[start : start + size]:
            place = (np.log([float(one.point[name]) for name in factors]) - low) / span
            told.append((place, float((one.values or (math.inf,))[0])))
        engine.tell(told)
    engine.reseed_rng(zlib.crc32(f"{seed} {number}".encode()))
    return point | _from_unit({name: space[name] for name in factors}, engine.ask().tolist())
