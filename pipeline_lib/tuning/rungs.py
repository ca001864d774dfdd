"""Rungs: when a trial is read. It trains at a constant rate and decays briefly for each reading; the next rung goes on from the
checkpoint before the decay, to the bit as if it had not stopped."""

from __future__ import annotations

import math
from dataclasses import dataclass

DECAY_SHARE = 0.2  # of the tokens of a reading; WSD's usual 10–20 % (Hägele et al. 2024)
FEWEST_STEPS = 8
OVERTAKEN = 1.4  # asha lets go on who is among the best just now, and overtakes some later: 47 readings of 27 trials, measured


@dataclass(frozen=True)
class Rung:
    """A reading of a trial."""

    hold: int  # steps with warm-up and constant rate, where the next rung goes on
    steps: int  # with the decay: what the reading has seen

    @property
    def decay(self) -> int:
        """Steps of the decay."""
        return self.steps - self.hold


def rungs_of(steps: int, *, rungs: int, reduction: float) -> tuple[Rung, ...]:
    """The rungs of a trial, the last at `steps`; each reads at 1/`reduction` of the tokens of the next, from `FEWEST_STEPS` on.

    Args:
        steps: of the whole trial.
        rungs: at most.
        reduction: factor between two.
    """
    found: list[Rung] = []
    for back in range(rungs):
        count = round(steps / reduction**back)
        hold = count - max(1, round(DECAY_SHARE * count))
        if back and (count < FEWEST_STEPS or hold >= found[-1].hold):
            break
        found.append(Rung(max(hold, 0), count))
    return tuple(reversed(found))


def cost_of(rungs: tuple[Rung, ...], first: int, last: int) -> int:
    """Steps that a trial makes from its checkpoint before rung `first` to the reading of rung `last`."""
    begin = rungs[first - 1].hold if first else 0
    return rungs[last].hold - begin + sum(rung.decay for rung in rungs[first : last + 1])


def mean_share(steps: int, *, rungs: int, reduction: float, pruner: str) -> float:
    """Share of `steps` that a trial makes on average when somewhat more than one of `reduction` goes on at each rung (median:
    every other)."""
    planned = rungs_of(steps, rungs=1 if pruner == "none" else rungs, reduction=reduction)
    keep = 1 / 2 if pruner in ("median", "wilcoxon") else min(OVERTAKEN / reduction, 1.0)
    if pruner != "hyperband":
        return math.fsum(keep**k * cost_of(planned, k, k) for k in range(len(planned))) / steps
    brackets = [
        cost_of(planned, 0, s) - sum(r.decay for r in planned[:s])
        + math.fsum(keep ** (k - s) * cost_of(planned, k, k) for k in range(s + 1, len(planned)))
        for s in range(len(planned))
    ]  # fmt: skip
    return math.fsum(brackets) / len(brackets) / steps
