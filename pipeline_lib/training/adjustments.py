"""What recoveries have changed in a training: data passed over, a lower rate, more weight decay; each from a step on.

Where a step reads and how fast it learns are pure functions of the step and of this list, so a resume from any checkpoint, also
from one older than a change, goes the same way.
"""

from __future__ import annotations

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


class Adjustments:
    """All of them, in the order in which they were made. A later one made further back undoes those after its place."""

    def __init__(self, made: Iterable[Adjustment] = ()) -> None:
        self.made: list[Adjustment] = list(made)

    def add(self, change: Adjustment) -> None:
        """Make another. What earlier ones did at later steps goes into it: its steps are done anew, on data after all of it."""
        after = [earlier for earlier in self.made if earlier.step > change.step]
        self.made = [earlier for earlier in self.made if earlier.step <= change.step]
        rate, decay = change.rate, change.decay
        for earlier in after:
            rate, decay = rate * earlier.rate, decay * earlier.decay
        passed_over = change.passed_over + sum(earlier.passed_over for earlier in after)
        self.made.append(Adjustment(change.step, passed_over, rate, decay))

    def data_step(self, step: int) -> int:
        """The step of an undisturbed training that reads what the step after `step` done ones reads."""
        return step + sum(change.passed_over for change in self.made if change.step <= step)

    def rate(self, step: int) -> float:
        """Factor of the learning rate after `step` done ones."""
        factor = 1.0
        for change in self.made:
            factor *= change.rate if change.step <= step else 1.0
        return factor

    def decay(self, step: int) -> float:
        """Factor of the weight decay after `step` done ones."""
        factor = 1.0
        for change in self.made:
            factor *= change.decay if change.step <= step else 1.0
        return factor

    def to_json(self) -> list[dict[str, Any]]:
        """As plain JSON values."""
        return [asdict(change) for change in self.made]
