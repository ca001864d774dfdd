"""What recoveries have changed in a training: data passed over, a lower rate, more weight decay; each from a step on.

Where a step reads and how fast it learns are pure functions of the step and of this list, so a resume from any checkpoint, also
from one older than a change, goes the same way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Adjustment:
    """A roll-back to `step`: what follows it reads other data, and learns more carefully."""

    step: int  # optimizer steps done where it takes effect
    passed_over: int  # steps whose data is never read again, from that place on
    rate: float  # factor of the learning rate
    decay: float  # factor of the weight decay
    regained: int = 0  # steps until the rate is the schedule's again, the first half of them at the lower one; 0: it stays lower

    def rate_at(self, step: int) -> float:
        """Its factor of the learning rate after `step` done ones: lower, then growing by the same factor at every step."""
        done = step - self.step
        if done < 0 or 0 < self.regained <= done:
            return 1.0
        held = self.regained // 2
        if done <= held or not self.regained:
            return self.rate
        return float(self.rate ** ((self.regained - done) / (self.regained - held)))


class Adjustments:
    """All of them, in the order in which they were made. A later one made further back undoes those after its place."""

    def __init__(self, made: Iterable[Adjustment] = ()) -> None:
        self.made: list[Adjustment] = list(made)

    def add(self, change: Adjustment) -> None:
        """Make another. What earlier ones did at later steps goes into it: its steps are done anew, on data after all of it."""
        gone = [change, *(earlier for earlier in self.made if earlier.step > change.step)]
        self.made = [earlier for earlier in self.made if earlier.step <= change.step]
        self.made.append(
            Adjustment(
                change.step, sum(one.passed_over for one in gone), math.prod(one.rate for one in gone),
                math.prod(one.decay for one in gone), change.regained,
            )
        )  # fmt: skip

    def data_step(self, step: int) -> int:
        """The step of an undisturbed training that reads what the step after `step` done ones reads."""
        return step + sum(change.passed_over for change in self.made if change.step <= step)

    def rate(self, step: int) -> float:
        """Factor of the learning rate after `step` done ones."""
        return math.prod((change.rate_at(step) for change in self.made), start=1.0)

    def decay(self, step: int) -> float:
        """Factor of the weight decay after `step` done ones."""
        return math.prod((change.decay for change in self.made if change.step <= step), start=1.0)

    def to_json(self) -> list[dict[str, Any]]:
        """As plain JSON values."""
        return [asdict(change) for change in self.made]
