"""Which trial goes on, which one waits and which one ends: a pure function of what is recorded, so that a search can be replayed.

- median: below the median of the others' readings at the same tokens, or it ends.
- asha: Li et al. 2020, "A system for massively parallel hyperparameter tuning", algorithm 2: whoever is among the best
  1/reduction of a rung's readings goes on, at any time; the others wait, with their checkpoint, and end with the search.
- hyperband: the same in brackets (Li et al. 2018): the n-th trial is first read at rung n mod rungs.
- wilcoxon: it ends when its losses are worse than the best trial's, sequence by sequence, by a signed-rank test.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

MEDIAN_OTHERS = 2  # readings of others that a median needs
WILCOXON_P = 0.1  # Optuna's default
WAITING = ("asha", "hyperband")  # pruners whose trials wait for their turn; with the others one that does not end goes on


@dataclass(frozen=True)
class Standing:
    """What is recorded of a trial."""

    number: int
    readings: dict[int, float]  # rung -> dev loss; infinity where it is none
    parts: dict[int, list[float]] = field(default_factory=dict)  # rung -> dev loss of each batch
    running: bool = False  # at work, or ended
    protected: bool = False  # the default, a repeat: read to the end
    bracket: int = 0  # the rung at which it was first to be read: only trials of one bracket are compared

    @property
    def at(self) -> int:
        """Its latest rung; -1: none yet."""
        return max(self.readings, default=-1)


@dataclass(frozen=True)
class Rule:
    """The pruner's settings."""

    pruner: Literal["median", "asha", "hyperband", "wilcoxon", "none"]
    rungs: int
    reduction: float

    def first(self, number: int) -> int:
        """The rung at which a trial is first read."""
        if self.pruner == "none":
            return self.rungs - 1
        return number % self.rungs if self.pruner == "hyperband" else 0


def promotable(trials: Sequence[Standing], rule: Rule, *, closing: bool = False) -> Standing | None:
    """The trial that goes on to its next rung now, the default first, then the furthest; None: none may.

    Args:
        trials: everything recorded, in order.
        rule: the pruner.
        closing: no trial will be added: at each rung at least the best one goes on, so that something is read to the end.
    """
    waiting = [one for one in trials if not one.running and 0 <= one.at < rule.rungs - 1]
    ahead = _ahead(trials, rule, closing) if waiting and rule.pruner in WAITING else None
    for one in sorted(waiting, key=lambda one: (not one.protected, -one.at, one.readings[one.at], one.number)):
        if one.protected or ((one.number, one.at) in ahead if ahead is not None else _may_go_on(one, trials, rule)):
            return one
    return None


def gives_up(one: Standing, trials: Sequence[Standing], rule: Rule) -> bool:
    """Whether a trial that was just read ends for good (of asha and hyperband none does before the search ends)."""
    if one.protected or one.at == rule.rungs - 1 or rule.pruner in (*WAITING, "none"):
        return False
    return not _may_go_on(one, trials, rule)


def _may_go_on(one: Standing, trials: Sequence[Standing], rule: Rule) -> bool:
    loss = one.readings[one.at]
    if not math.isfinite(loss):
        return False
    others = [other for other in trials if other.number != one.number and one.at in other.readings]
    if rule.pruner == "median":
        return len(others) < MEDIAN_OTHERS or loss <= statistics.median(other.readings[one.at] for other in others)
    best = min(others, key=lambda other: other.readings[one.at], default=None)
    return best is None or not _surely_worse(one.parts.get(one.at, []), best.parts.get(one.at, []))


def _ahead(trials: Sequence[Standing], rule: Rule, closing: bool) -> set[tuple[int, int]]:
    """(number, rung) of the best 1/reduction of each rung's readings, in each bracket apart."""
    groups: dict[tuple[int, int], list[tuple[float, int]]] = defaultdict(list)
    for one in trials:
        for rung, loss in one.readings.items():
            groups[rung, one.bracket].append((loss, one.number))
    found: set[tuple[int, int]] = set()
    for (rung, _), group in groups.items():
        best_of = max(math.floor(len(group) / rule.reduction), int(closing))
        found |= {(number, rung) for loss, number in sorted(group)[:best_of] if math.isfinite(loss)}
    return found


def _surely_worse(mine: Sequence[float], best: Sequence[float]) -> bool:
    if len(mine) != len(best) or len(mine) < 4 or sum(mine) <= sum(best):
        return False
    from scipy.stats import wilcoxon

    return bool(wilcoxon(mine, best, alternative="greater", zero_method="zsplit").pvalue < WILCOXON_P)
