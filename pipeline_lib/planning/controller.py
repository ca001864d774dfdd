"""Keeps a training inside its window: pure arithmetic over an injected clock.

The course is two numbers: the last step and the first step of the final decay. At bounded moments the controller measures the
pace and moves the end; it starts the decay in time; only when not even a short decay can fit does it stop at once.
Invariants, whatever the clock does: the end never passes the plan's `max_steps`; once the decay has begun its beginning
stays, and it keeps at least `LEAST_DECAY` of all steps; a course needs no time that is not there, except for that shortest decay,
which may use the margin but never the time reserved for what comes after training.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pipeline_lib.planning.outlook import look
from pipeline_lib.planning.replay import decision_at
from pipeline_lib.training.hooks import CONTINUE, Decision

LEAST_DECAY = 0.08  # share of all steps; WSD wants a decay of 10–20 % (Hägele et al. 2024), a little less costs little
REPLAN_SHARE = 0.05  # of the planned steps
REPLAN_SECONDS = 20.0  # and, in long windows, REPLAN_WINDOW_SHARE of the time: at most a few hundred moments a run
REPLAN_WINDOW_SHARE = 0.005
NEWS_SHARE = 0.01  # of the steps; a smaller move of the end is not worth an event …
NEWS_MARGIN = 0.25  # … unless it is more of the margin than this
REMEMBERED_STEPS = 25  # the pace is their median: a lasting change shows after thirteen steps, an evaluation among them does not
REMEMBERED_SHARE = 0.05  # of the steps, when there are few; never fewer than five
REMEMBERED_EVALUATIONS = 3  # their median is what the last one will take
ASKED_SHARE = 0.2  # of all steps, at most, are a decay that somebody asked for
STALL_STEPS = 10.0  # a pause of this many steps beyond the known costs is a stall: time lost once, no new pace
CLEARLY_SLOWER = 0.7  # of the planned speed: beyond the usual drift of 8–12 %
SLOWEST_AFTER = 2.0  # times the time reserved for what comes after training, at most: a slowness may end with the training
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
        self.clock, self.deadline = clock, deadline.timestamp() if deadline else math.inf
        self.adaptive = adaptive and deadline is not None and bool(plan.get("replan", True))
        self.after = float(reserve.get("after_training", 0.0))
        self.margin = float(reserve.get("margin", 0.0))
        closing = float(reserve.get("closing", 0.0))  # last evaluation and last checkpoint, seconds
        self.evaluate = float(reserve.get("evaluate", closing))
        self.save = closing - self.evaluate
        self.evaluated: deque[float] = deque(maxlen=REMEMBERED_EVALUATIONS)  # seconds that the latest took
        self.evaluate_every = int(plan.get("evaluate_every", 0))
        self.planned = self.total = int(plan["steps"])
        self.start = self.total - int(plan["decay_steps"])
        self.share = int(plan["decay_steps"]) / max(self.total, 1)
        self.linear = plan.get("schedule") == "linear"  # decays from the warm-up on
        self.most = max(int(plan.get("max_steps", 0)), self.total)
        self.planned_step, self.planned_extra = float(plan["seconds_per_step"]), float(plan.get("overhead_per_step", 0.0))
        self.spread = tuple(plan.get("interval", (0.9, 1.1)))  # of the speed, relative to 1
        remembered = max(5, min(REMEMBERED_STEPS, round(REMEMBERED_SHARE * self.total)))
        self.recent: deque[float] = deque(maxlen=remembered)
        self.step_seconds = self.planned_step  # the median of the latest steps; until there are some, the plan's
        self.done, self.measured, self.extra = 0, 0, 0.0
        self.last_time = self.replanned_at = clock().timestamp()
        self.replanned_step = 0
        self.first_call = True  # what comes before an attempt's first step is start-up, not pace
        follow = plan.get("follow")  # what another run did at these steps, in place of looking at the clock
        self.follow = None if follow is None or self.adaptive else {int(change["step"]): change for change in follow}
        self.resumed = False  # time has gone by, or there is a new window: the first step is a moment
        self.asked = ""  # why somebody wants the decay to begin now
        self.moment_seconds = max(REPLAN_SECONDS, REPLAN_WINDOW_SHARE * (self.end - self.last_time))

    @property
    def closing(self) -> float:
        """The last evaluation and the last checkpoint, seconds: an evaluation writes samples, too, and is seen to take longer."""
        seen = statistics.median_high(self.evaluated) if self.evaluated else 0.0
        return self.save + max(self.evaluate, seen)

    @property
    def last_moment(self) -> float:
        """When training must be over (POSIX seconds): what comes after it needs the rest."""
        return self.deadline - self.after

    @property
    def end(self) -> float:
        """When training should be over: the margin stays free, and a machine that has become slow validates as slowly."""
        slowness = self.step_seconds / max(self.planned_step, 1e-9)
        more = min(slowness, SLOWEST_AFTER) - 1 if slowness > 1 / CLEARLY_SLOWER else 0.0
        return self.last_moment - self.margin - more * self.after

    @property
    def latest(self) -> float:
        """A running decay may use half of the margin rather than be cut short; the other half is for stalls."""
        return self.end + self.margin / 2

    @property
    def pace(self) -> float:
        """Seconds a step takes with its part of evaluations and checkpoints, measured and planned overhead weighed together."""
        prior = max(PRIOR_SHARE * self.most, 1.0)
        return max(self.step_seconds + (prior * self.planned_extra + self.extra) / (prior + self.measured), 1e-9)

    def on_step(self, step: int, elapsed_seconds: float) -> Decision:
        """See `training.hooks.Controller`; the clock alone is used, so that an attempt's start-up counts too."""
        now = self.clock().timestamp()
        self._measure(step, now)
        if step >= self.total:
            return CONTINUE
        if self.follow is not None:
            return self._as_recorded(step)
        if self.asked and (step < self.start or self.linear):
            return self._as_asked(now)
        return self._in_window(step, now) if self.adaptive else CONTINUE

    def _in_window(self, step: int, now: float) -> Decision:
        pace = self.pace
        if now + self.closing + pace > self.last_moment:
            self.total = step
            return Decision(kind="stop", reason="not even one more step fits into the window")
        moment = step - self.replanned_step >= REPLAN_SHARE * self.total or now - self.replanned_at >= self.moment_seconds
        if step > self.start:
            late = now + (self.total - step) * pace + self.closing > self.latest
            last = step + 1 < self.total and self._one_more_is_enough(now)
            return self._in_decay(now, late=late, last=last) if late or last or moment else CONTINUE
        moment, self.resumed = moment or self.resumed, False
        if not self.linear and now + 2 * _least_decay(step) * self.step_seconds + self.closing > self.last_moment:
            return self._begin(now)
        return self._replan(now) if moment or step >= self.start - 1 else CONTINUE

    def ask_for_decay(self, reason: str) -> None:
        """Whoever sees that more steps at the full rate are of no use (early stopping) wants the decay to begin.

        The next `on_step` begins it, as long as the planned share of all steps; nothing where it has begun.
        """
        self.asked = reason

    def outlook(self) -> dict[str, Any]:
        """See `training.hooks.Controller`."""
        return look(
            now=self.clock().timestamp(), deadline=self.deadline, margin=self.margin, after=self.after, closing=self.closing,
            done=self.done, total=self.total, planned=self.planned, most=self.most, pace=self.pace, spread=self.spread,
            adaptive=self.adaptive,
        ).to_json()  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Small JSON for a checkpoint."""
        return {
            "total": self.total, "start": self.start, "most": self.most, "done": self.done, "measured": self.measured,
            "extra": self.extra, "step_seconds": self.step_seconds, "asked": self.asked,
            "evaluated": list(self.evaluated),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`: the time since then is gone, the pace is believed until measured again."""
        self.total, self.start, self.done = int(state["total"]), int(state["start"]), int(state["done"])
        self.most = int(state["most"])
        self.measured, self.extra, self.asked = int(state["measured"]), float(state["extra"]), str(state["asked"])
        self.step_seconds, self.resumed = float(state["step_seconds"]), True
        self.evaluated.extend(state.get("evaluated", []))
        self.last_time = self.replanned_at = self.clock().timestamp()
        self.replanned_step, self.first_call = self.done, True

    def _measure(self, step: int, now: float) -> None:
        taken, steps = now - self.last_time, step - self.done
        first, self.first_call = self.first_call, False
        self.done, self.last_time = step, now
        if first or steps < 1:
            return
        self.recent.append(taken / steps)
        self._take_median()
        pause = taken - steps * self.step_seconds
        if steps == 1 and self.evaluate_every and step % self.evaluate_every == 0:
            self.evaluated.append(max(pause, 0.0))
        if pause <= STALL_STEPS * self.step_seconds + 3 * self.closing:
            self.extra += pause
        self.measured += steps

    def _take_median(self) -> None:
        if len(self.recent) >= 3:
            self.step_seconds = sorted(self.recent)[len(self.recent) // 2]

    def _replan(self, now: float) -> Decision:
        """Before the decay: the end moves to where the time ends; the decay begins now when that leaves no more than it needs."""
        self.replanned_at, self.replanned_step = now, self.done
        total = min(self.most, self._affordable(now, self.end))
        total = max(total, min(self.done + _least_decay(self.done), self.most))
        decay = max(math.ceil(self.share * total), 1)
        start = self.start if self.linear else max(total - decay, self.done)
        if abs(total - self.total) <= self._news:
            return CONTINUE
        if start == self.done and not self.linear:
            return self._start_decay(total, f"{self.pace:.3g} s a step, {self.end - now:.0f} s left, the decay begins")
        before, self.total, self.start = self.total, total, start
        return Decision(
            kind="replan", total_steps=total, decay_start=start,
            reason=f"{before} → {total} steps: {self.pace:.3g} s a step, {self.end - now:.0f} s left",
        )  # fmt: skip

    def _as_recorded(self, step: int) -> Decision:
        change = self.follow.get(step) if self.follow else None
        if change:
            self.total, self.start = int(change["total_steps"]), int(change["decay_start"])
        return decision_at(change)

    def _begin(self, now: float) -> Decision:
        """Should this machine become twice as slow, only the least decay would still fit: it begins now, and may end later."""
        total = min(max(self._affordable(now, self.end), self.done + _least_decay(self.done)), self.most)
        return self._start_decay(total, f"{self.last_moment - now:.0f} s are left in all, the decay begins")

    def _as_asked(self, now: float) -> Decision:
        share, why = min(self.share, ASKED_SHARE), self.asked
        least = _least_decay(self.done)
        room = (min(self.most, self._affordable(now, self.end)) if self.adaptive else self.most) - self.done
        decay = max(min(math.ceil(share * self.done / (1 - share)), room), least)
        self.asked, self.most = "", min(self.done + decay, self.most)  # no later re-plan takes back what was asked for
        return self._start_decay(self.most, why)

    def _start_decay(self, total: int, why: str) -> Decision:
        before, self.total = self.total, total
        self.start = min(self.start, self.done) if self.linear else self.done
        return Decision(kind="start_decay", decay_steps=total - self.done, reason=f"{before} → {total} steps: {why}")

    def _in_decay(self, now: float, *, late: bool, last: bool) -> Decision:
        """In the decay: a nearer end when late, but never a decay shorter than the least one; a later end when there is time."""
        self.replanned_at, self.replanned_step = now, self.done
        shortest = max(self.start + _least_decay(self.start), self.done + 1)
        total = min(max(0 if last else self._affordable(now, self.latest if late else self.end), shortest), self.most)
        if (total < self.total and not (late or last)) or (abs(total - self.total) <= self._news and not last):
            return CONTINUE
        if total == self.total:
            return CONTINUE
        before, self.total = self.total, total
        return Decision(
            kind="replan", total_steps=total, decay_start=self.start,
            reason=f"{'late' if late or last else 'time is left'}: the decay ends at step {total} instead of {before}",
        )  # fmt: skip

    def _one_more_is_enough(self, now: float) -> bool:
        """Whether the step after the next might not fit, had the machine become twice as slow: then the next is the last."""
        slowed = min(self.recent[-1], 2 * self.step_seconds) if self.recent else 0.0
        due = self.evaluate_every and (self.done + 1) % self.evaluate_every == 0
        return now + max(4 * self.step_seconds, 3 * slowed) + self.closing * (2 if due else 1) > self.last_moment

    @property
    def _news(self) -> float:
        """Moves of the end up to this many steps are none."""
        return min(max(NEWS_SHARE * self.total, 1.0), NEWS_MARGIN * self.margin / self.pace)

    def _affordable(self, now: float, end: float) -> int:
        """The last step that fits; an evaluation that falls into so few steps that the pace does not tell is counted whole."""
        room = max(end - now - self.closing, 0.0)
        steps = math.floor(room / self.pace)
        if self.evaluate_every and steps:
            due = (self.done + steps - 1) // self.evaluate_every - self.done // self.evaluate_every
            hidden = max(due - steps / self.evaluate_every, 0.0) * self.closing
            steps = math.floor(max(room - hidden, 0.0) / self.pace)
        return self.done + steps


def _least_decay(before: int) -> int:
    """Fewest decay steps d after `before` steps with d ≥ LEAST_DECAY · (before + d)."""
    return max(math.ceil(LEAST_DECAY * before / (1 - LEAST_DECAY)), 1)
