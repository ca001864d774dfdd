"""The learning rate as a pure function of the step and of the schedule in effect."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

ScheduleKind = Literal["wsd", "linear", "cosine"]
COSINE_FLOOR = 0.1  # a cosine ends at a tenth of its peak (Hoffmann et al. 2022, appendix B)


@dataclass(frozen=True)
class Schedule:
    """Warm-up → hold at `top` → decay from `decay_start` to `total_steps`.

    Linear and cosine are the same with `decay_start` at the end of the warm-up. Whoever moves the end in mid-run gets a new
    schedule that goes on from the rate in effect, so the rate never jumps up.
    """

    kind: ScheduleKind
    warmup_steps: int
    decay_start: int
    total_steps: int
    top: float = 1.0  # factor held before the decay

    def factor(self, step: int) -> float:
        """What the peak learning rate is multiplied by at a step (0 is the first one)."""
        if step < self.warmup_steps and step < self.decay_start:
            return self.top * (step + 1) / self.warmup_steps
        if step < self.decay_start:
            return self.top
        progress = min(1.0, (step - self.decay_start) / max(1, self.total_steps - self.decay_start))
        if self.kind == "wsd":  # 1 − sqrt (Hägele et al. 2024)
            return self.top * (1.0 - math.sqrt(progress))
        if self.kind == "linear":
            return self.top * (1.0 - progress)
        return self.top * (COSINE_FLOOR + (1.0 - COSINE_FLOOR) * 0.5 * (1.0 + math.cos(math.pi * progress)))

    def decay_now(self, step: int, decay_steps: int) -> Schedule:
        """Decay to zero from `step` within `decay_steps`, from the rate in effect; a cosine is ended linearly.

        A decay that has begun goes on: the step just done is the new decay's first, so that even a single last step is lower.
        """
        kind: ScheduleKind = "linear" if self.kind == "cosine" else self.kind
        begun = step > self.decay_start
        top = self.factor(max(0, step - 1)) if step < self.warmup_steps or begun else self.top
        return Schedule(kind, 0, step - begun, step + max(1, decay_steps), top)

    def moved(self, step: int, total_steps: int, decay_start: int) -> Schedule:
        """Another end. Before the decay only the dates change; after its start it goes on from the rate in effect."""
        total_steps = max(total_steps, step + 1)
        if step < self.decay_start:
            start = decay_start if self.kind == "wsd" else self.decay_start  # linear and cosine decay from the warm-up's end on
            return replace(self, decay_start=min(max(start, step), total_steps), total_steps=total_steps)
        return replace(self.decay_now(step, total_steps - step), total_steps=total_steps)

    def stopped(self, step: int) -> Schedule:
        """The end is now."""
        return replace(self, total_steps=step, decay_start=min(self.decay_start, step))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def planned(kind: ScheduleKind, *, steps: int, warmup_steps: int, decay_steps: int) -> Schedule:
    """The schedule of a plan."""
    warmup = min(warmup_steps, steps)
    start = max(warmup, steps - decay_steps) if kind == "wsd" else warmup
    return Schedule(kind, warmup, start, steps)
