"""Where a training stands in its window while it runs, in numbers for people and programs, and what to do about it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from pipeline_lib.planning.forecast import SPEED_DRIFT

FEWER_STEPS = 0.9  # of the planned steps: below it the window, not the plan, decides, and a person is told what would help
EARLY_SHARE = 0.10  # of the training time: more left over than this is worth a word


@dataclass(frozen=True)
class Outlook:
    """Seconds are from now; None where there is no deadline."""

    remaining_seconds: float | None  # to the deadline of the whole run
    end_seconds: float  # expected end of the whole run …
    end_low: float  # … with its 90 % interval
    end_high: float
    margin_seconds: float | None  # of the safety margin, what will be left at the expected end; negative: the deadline is missed
    steps_per_hour: float
    on_track: bool
    advice: str  # what to do, naming the setting; empty when nothing

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, numbers to four digits."""
        return {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in asdict(self).items()}


def look(
    *, now: float, deadline: float, margin: float, after: float, closing: float, done: int, total: int, planned: int, most: int,
    pace: float, spread: tuple[float, ...], adaptive: bool,
) -> Outlook:  # fmt: skip
    """The outlook after `done` of `total` steps.

    Args:
        now, deadline: POSIX seconds; infinity for no deadline.
        margin, after, closing: safety margin, what comes after training, last evaluation and checkpoint; seconds.
        done, total, planned, most: steps done, in the course in effect, in the plan, allowed by data and configuration.
        pace: seconds a step with its overhead.
        spread: low and high speed relative to 1 (the calibration's).
        adaptive: the controller may move the end, so that it cannot come after the deadline's margin.
    """
    left = max(total - done, 0) * pace
    fixed = closing + after
    slow, fast = min(spread) * (1 - SPEED_DRIFT), max(spread) * (1 + SPEED_DRIFT)
    low, high = left / fast + closing + 0.5 * after, left / slow + closing + 1.2 * after
    per_hour = 3600 / pace
    if deadline == math.inf:
        return Outlook(None, left + fixed, low, high, None, per_hour, True, "")
    remaining = deadline - now
    if adaptive:
        high = min(high, max(remaining, left + fixed))
    free = min(remaining - left - fixed, margin)
    on_track = free >= margin / 2
    unused = remaining - margin - left - fixed
    advice = _advice(unused, free, margin=margin, total=total, planned=planned, most=most, left=left, pace=pace)
    return Outlook(remaining, left + fixed, low, high, free, per_hour, on_track, advice)


def _advice(unused: float, free: float, *, margin: float, total: int, planned: int, most: int, left: float, pace: float) -> str:
    if free < 0:
        return (
            f"the deadline will be missed by {-free:.0f} s: stop other work on this machine; next time raise resources.max_hours"
        )
    if free < margin / 2:
        return (
            f"{margin - free:.0f} of {margin:.0f} s of resources.margin_minutes are being used: stop other work on this machine"
        )
    if total < FEWER_STEPS * planned:
        hours = (planned - total) * pace / 3600
        return f"{total:,} of {planned:,} planned steps fit at this speed; all of them need resources.max_hours + {hours:.2g}"
    if total >= most and unused > EARLY_SHARE * (left + unused) and unused > margin:
        return f"done {unused / 60:.1f} minutes early: raise train.max_epochs or train.max_steps, or lower resources.max_hours"
    return ""
