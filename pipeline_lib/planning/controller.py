"""Keeps a training inside its window: pure arithmetic over an injected clock.

The course is two numbers: the last step and the first step of the final decay. At bounded moments the controller measures the
pace and moves the end; it starts the decay in time; only when not even a short decay can fit does it stop at once.
Invariants, whatever the clock does: the end never passes the plan's `max_steps`; once the decay has begun its end only comes
nearer and it keeps at least `LEAST_DECAY` of all steps; a course needs no time that is not there, except for that shortest decay,
which may use the margin but never the time reserved for what comes after training.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pipeline_lib.training.hooks import CONTINUE, Decision

LEAST_DECAY = 0.08  # share of all steps; WSD wants a decay of 10–20 % (Hägele et al. 2024), a little less costs little
REPLAN_SHARE = 0.05  # of the planned steps
REPLAN_SECONDS = 20.0  # and, in long windows, REPLAN_WINDOW_SHARE of the time: at most a few hundred moments a run
REPLAN_WINDOW_SHARE = 0.005
NEWS_SHARE = 0.01  # of the steps; a smaller move of the end is not worth an event
REMEMBERED_STEPS = 25  # the pace is their median: a lasting change shows after thirteen steps, an evaluation among them does not
STALL_STEPS = 10.0  # a pause of this many steps beyond the known costs is a stall: time lost once, no new pace
PRIOR_SHARE = 0.1  # the planned overhead weighs as much as measuring over this share of the steps


class WindowController:
    """Implements `training.hooks.Controller` over the details of the stage `plan`."""

    def __init__(
        self,
        plan: Mapping[str, Any],
        clock: Callable[[], datetime],
        deadline: datetime | None,
        adaptive: bool = True,
    ) -> None:
        reserve = plan.get("reserve", {})
        self.clock = clock
        self.adaptive = adaptive and deadline is not None and bool(plan.get("replan", True))
        self.last_moment = deadline.timestamp() - float(reserve.get("after_training", 0.0)) if deadline else math.inf
        self.margin = float(reserve.get("margin", 0.0))
        self.closing = float(reserve.get("closing", 0.0))  # last evaluation and last checkpoint, seconds
        self.total = int(plan["steps"])
        self.start = self.total - int(plan["decay_steps"])
        self.share = int(plan["decay_steps"]) / max(self.total, 1)
        self.most = max(int(plan.get("max_steps", 0)), self.total)
        self.planned_step, self.planned_extra = float(plan["seconds_per_step"]), float(plan.get("overhead_per_step", 0.0))
        self.recent: deque[float] = deque(maxlen=REMEMBERED_STEPS)
        self.done, self.measured, self.extra = 0, 0, 0.0
        self.last_time = self.replanned_at = clock().timestamp()
        self.replanned_step = 0
        self.first_call = True  # what comes before an attempt's first step is start-up, not pace
        self.moment_seconds = max(REPLAN_SECONDS, REPLAN_WINDOW_SHARE * (self.end - self.last_time))

    @property
    def end(self) -> float:
        """When training should be over (POSIX seconds): the margin stays free."""
        return self.last_moment - self.margin

    @property
    def latest(self) -> float:
        """A running decay may use half of the margin rather than be cut short; the other half is for stalls."""
        return self.end + self.margin / 2

    @property
    def step_seconds(self) -> float:
        """The median of the latest steps; until there are some, the plan's."""
        return statistics.median(self.recent) if len(self.recent) >= 3 else self.planned_step

    @property
    def pace(self) -> float:
        """Seconds a step takes with its part of evaluations and checkpoints, measured and planned overhead weighed together."""
        prior = max(PRIOR_SHARE * self.most, 1.0)
        return max(self.step_seconds + (prior * self.planned_extra + self.extra) / (prior + self.measured), 1e-9)

    def on_step(self, step: int, elapsed_seconds: float) -> Decision:
        """See `training.hooks.Controller`; the clock alone is used, so that an attempt's start-up counts too."""
        now = self.clock().timestamp()
        self._measure(step, now)
        if not self.adaptive or step >= self.total:
            return CONTINUE
        pace = self.pace
        if now + self.closing + pace > self.last_moment:
            self.total = step
            return Decision(kind="stop", reason="not even one more step fits into the window")
        if step >= self.start:
            late = now + (self.total - step) * pace + self.closing > self.latest
            return self._hurry(now) if late else CONTINUE
        moment = step - self.replanned_step >= REPLAN_SHARE * self.total or now - self.replanned_at >= self.moment_seconds
        return self._replan(now) if moment or (step == self.start - 1) else CONTINUE

    def state(self) -> dict[str, Any]:
        """Small JSON for a checkpoint."""
        return {"total": self.total, "start": self.start, "done": self.done, "measured": self.measured, "extra": self.extra,
                "recent": list(self.recent)}  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`: the time since then is gone, the pace is believed until measured again."""
        self.total, self.start, self.done = int(state["total"]), int(state["start"]), int(state["done"])
        self.measured, self.extra = int(state["measured"]), float(state["extra"])
        self.recent = deque(map(float, state["recent"]), maxlen=REMEMBERED_STEPS)
        self.last_time = self.replanned_at = self.clock().timestamp()
        self.replanned_step, self.first_call = self.done, True

    def _measure(self, step: int, now: float) -> None:
        taken, steps = now - self.last_time, step - self.done
        first, self.first_call = self.first_call, False
        self.done, self.last_time = step, now
        if first or steps < 1:
            return
        self.recent.append(taken / steps)
        pause = taken - steps * self.step_seconds
        if pause <= STALL_STEPS * self.step_seconds + 3 * self.closing:
            self.extra += pause
        self.measured += steps

    def _replan(self, now: float) -> Decision:
        """Before the decay: the end moves to where the time ends; the decay begins now when that leaves no more than it needs."""
        self.replanned_at, self.replanned_step = now, self.done
        total = min(self.most, self._affordable(now, self.end))
        total = max(total, min(self.done + _least_decay(self.done), self.most))
        decay = max(math.ceil(self.share * total), 1)
        start = max(total - decay, self.done)
        if abs(total - self.total) <= NEWS_SHARE * self.total:
            return CONTINUE
        if start == self.done:
            return self._start_decay(total, now)
        before, self.total, self.start = self.total, total, start
        return Decision(
            kind="replan", total_steps=total, decay_start=start,
            reason=f"{before} → {total} steps: {self.pace:.3g} s a step, {self.end - now:.0f} s left",
        )  # fmt: skip

    def _start_decay(self, total: int, now: float) -> Decision:
        before, self.total, self.start = self.total, total, self.done
        return Decision(
            kind="start_decay", decay_steps=total - self.done,
            reason=f"{before} → {total} steps: {self.pace:.3g} s a step, {self.end - now:.0f} s left, the decay begins",
        )  # fmt: skip

    def _hurry(self, now: float) -> Decision:
        """In the decay, and late: a nearer end, but never a decay shorter than the least one."""
        shortest = self.start + _least_decay(self.start)
        total = min(max(self._affordable(now, self.latest), shortest, self.done + 1), self.total)
        if self.total - total <= NEWS_SHARE * self.total:
            return CONTINUE
        before, self.total = self.total, total
        return Decision(
            kind="replan", total_steps=total, decay_start=self.start,
            reason=f"late: the decay ends at step {total} instead of {before}",
        )  # fmt: skip

    def _affordable(self, now: float, end: float) -> int:
        return self.done + math.floor(max(end - now - self.closing, 0.0) / self.pace)


def _least_decay(before: int) -> int:
    """Fewest decay steps d after `before` steps with d ≥ LEAST_DECAY · (before + d)."""
    return max(math.ceil(LEAST_DECAY * before / (1 - LEAST_DECAY)), 1)
