"""What mattered: the share of each searched thing in the differences between trials, and the loss along it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline_lib.tuning.samplers import Seen, distributions
from pipeline_lib.tuning.space import Space

FEWEST = 6  # trials: fewer tell nothing


def importance(space: Space, seen: Sequence[Seen]) -> dict[str, float]:
    """PED-ANOVA (Watanabe et al. 2023) over the trials that have a loss; shares that add up to 1, {} when there are too few."""
    done = [one for one in seen if one.values and len(one.values) == 1 and not one.failed]
    if len(done) < FEWEST or len({one.values for one in done}) < 3:
        return {}
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    view = optuna.create_study(direction="minimize")
    wanted = distributions(space)
    view.add_trials([create_trial(values=list(one.values or ()), params=dict(one.point), distributions=wanted) for one in done])
    try:
        found = get_param_importances(view, evaluator=PedAnovaImportanceEvaluator())
    except (ValueError, RuntimeError):  # all the same
        return {}
    return {name: round(float(share), 4) for name, share in found.items()}


def slices(space: Space, seen: Sequence[Seen]) -> dict[str, list[list[Any]]]:
    """For each dimension, [value, loss] of every trial that has one, by value."""
    done = [one for one in seen if one.values and not one.failed]
    return {
        name: sorted(
            ([one.point[name], (one.values or (0.0,))[0]] for one in done), key=lambda pair: (str(type(pair[0])), pair[0])
        )
        for name in space
    }
