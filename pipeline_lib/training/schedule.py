"""The learning rate as a pure function of the step and of the schedule in effect."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

ScheduleKind = Literal["wsd", "linear", "cosine"]
COSINE_FLOOR = 0.1  # a cosine ends at a tenth of its peak (Hoffmann et al. 2022, appendix B)
LAST_RATE = 0.01  # share of the peak in the last step of the other kinds: a step at rate 0 would teach nothing


@dataclass(frozen=True)
class Schedule:
    """Warm-up → hold at `top` → decay from `decay_start` to `total_steps`.

    Linear and cosine are the same with `decay_start` at the end of the warm-up. Whoever moves the end in mid-run gets a new
    schedule that goes on from the rate in effect along the same curve, faster or slower, so the rate never jumps up.
    """

    kind: ScheduleKind
    warmup_steps: int
    decay_start: int
    total_steps: int
    top: float = 1.0  # factor held before the decay
    moved_at: int = 0  # step at which the end was moved inside the decay …
    behind: float = 0.0  # … and the share of the decay that was behind it then

    def factor(self, step: int) -> float:
        """What the peak learning rate is multiplied by at a step (0 is the first one)."""
        if step < self.warmup_steps and step < self.decay_start:
            return self.top * (step + 1) / self.warmup_steps
        if step < self.decay_start:
            return self.top
        if step >= self.total_steps:
            return self.top * COSINE_FLOOR if self.kind == "cosine" else 0.0
        progress = self.progress(step)
        if self.kind == "cosine":
            return self.top * (COSINE_FLOOR + (1.0 - COSINE_FLOOR) * 0.5 * (1.0 + math.cos(math.pi * progress)))
        # 1 − sqrt for WSD: Hägele et al. 2024
        return self.top * (1.0 - (1.0 - LAST_RATE) * (math.sqrt(progress) if self.kind == "wsd" else progress))

    def progress(self, step: int) -> float:
        """Share of the decay that is done with a step: more than 0 in its first, 1 in its last."""
        start = max(self.decay_start, self.moved_at)
        return self.behind + (1.0 - self.behind) * (step - start + 1) / max(1, self.total_steps - start)

    def decay_now(self, step: int, decay_steps: int) -> Schedule:
        """Decay from `step` on in `decay_steps`, from the rate in effect; one that has begun goes on; a cosine ends linearly."""
        total = step + max(1, decay_steps)
        if step > self.decay_start and self.kind != "cosine":
            return self.moved(step, total, self.decay_start)
        kind: ScheduleKind = "linear" if self.kind == "cosine" else self.kind
        held = self.warmup_steps <= step <= self.decay_start
        return Schedule(kind, 0, step, total, self.top if held else self.factor(max(0, step - 1)))

    def moved(self, step: int, total_steps: int, decay_start: int) -> Schedule:
        """Another end. Before the decay only the dates change; after its start what is left of it is spread anew."""
        total_steps = max(total_steps, step + 1)
        if step > self.decay_start:
            return replace(self, total_steps=total_steps, moved_at=step, behind=self.progress(step - 1))
        start = decay_start if self.kind == "wsd" else self.decay_start  # linear and cosine decay from the warm-up's end on
        if start <= step < self.warmup_steps:
            return self.decay_now(step, total_steps - step)
        start = min(max(start, step), total_steps - 1)
        return replace(self, warmup_steps=min(self.warmup_steps, start), decay_start=start, total_steps=total_steps)

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
