"""What a training's numbers say: not finite, a spike, divergence, a plateau, a slow step, a fall of speed.

A detector is given one number a step and answers with a `Signal` or None. Those of the loss see only what a resumed training sees
again, so their state belongs to a checkpoint's notes, and what is done about their signals repeats exactly. Those of the clock
see this attempt only and are for people: nothing that changes weights may follow from them.

Whoever acts on signals asks `Monitor.take()` after each step: a list of signals in the order of their steps, given out once. On
a GPU the monitor looks every `GPU_STEPS` steps, always the same ones, so a signal may be some steps old.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SignalKind = Literal[
    "non_finite", "loss_spike", "divergence", "plateau", "slow_step", "slow_down",
    "out_of_memory", "disk_low", "worker_died",  # met where they happen, not detected here
]  # fmt: skip

SPIKE_SIGMA, SPIKE_WINDOW = 6.0, 128  # OLMo-core's stability monitor: 6 σ over 128 steps
SPIKE_QUIET_STEPS = 20  # after a spike, no second one for so long
DIVERGENCE_WINDOW = 32  # losses in a median, which a spike of some steps does not move
DIVERGENCE_SHARE = 0.05  # above the lowest median so far, by this share of it …
# … and by so many standard errors of a mean. On a plateau of 10,000 windows the lowest median lies 3.9 of its own below the
# middle and the highest as far above; a median's is 1.25 of a mean's: 2 × 3.9 × 1.25 = 9.8 is noise.
DIVERGENCE_SIGMA = 12.0
PLATEAU_STEPS, PLATEAU_SHARE = 500, 0.1  # no progress for so long, or for this share of the planned steps, whichever is more
PLATEAU_GAIN = 0.001  # of the loss: less is no progress
SLOW_STEP, SLOW_STEP_SECONDS = 4.0, 0.1  # times the median of the latest steps, and at least so much longer
SLOW_DOWN, PACE_WINDOW = 1.5, 32  # the median of so many steps, against the best such median of the attempt


@dataclass(frozen=True)
class Signal:
    """Something that a step's numbers said. `evidence` holds plain JSON numbers and words."""

    signal: SignalKind
    step: int
    evidence: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"signal": self.signal, "step": self.step, "evidence": dict(self.evidence)}


class NonFinite:
    """Steps whose loss or gradient was not a number (they were not applied)."""

    def __init__(self) -> None:
        self.total, self.in_a_row = 0, 0

    def see(self, step: int, loss: float, grad_norm: float, *, applied: bool) -> Signal | None:
        """A step's numbers; `applied`: the optimizer took the step."""
        if applied:
            self.in_a_row = 0
            return None
        self.total += 1
        self.in_a_row += 1
        evidence = {"loss": str(loss), "grad_norm": str(grad_norm), "in_a_row": self.in_a_row, "in_all": self.total}
        return Signal("non_finite", step, evidence)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def restore(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.total, self.in_a_row = int(state["total"]), int(state["in_a_row"])


class Losses:
    """Spike, divergence and plateau, from the losses of applied steps."""

    def __init__(self, planned_steps: int) -> None:
        self.recent: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self.patience = max(PLATEAU_STEPS, round(PLATEAU_SHARE * planned_steps))
        self.last_spike, self.last_divergence = -SPIKE_QUIET_STEPS, -SPIKE_WINDOW
        self.lowest, self.lowest_sigma = math.inf, 0.0  # median of a window, and the noise of the losses in it
        self.progress_step, self.progress_loss = 0, math.inf  # where the median last fell by PLATEAU_GAIN

    def see(self, step: int, loss: float) -> list[Signal]:
        """The loss of a step that was applied, in nats a token."""
        found = [signal for signal in (self._spike(step, loss),) if signal]
        self.recent.append(loss)
        if len(self.recent) >= DIVERGENCE_WINDOW:
            latest = list(self.recent)[-DIVERGENCE_WINDOW:]
            median = statistics.median(latest)
            found += [signal for signal in (self._divergence(step, median), self._plateau(step, median)) if signal]
            if median < self.lowest:
                self.lowest, self.lowest_sigma = median, noise_of(latest)
        return found

    @property
    def limit(self) -> float:
        """The next loss is a spike when it is above this; infinite while too few losses are known."""
        mean, sigma = self._usual()
        return mean + SPIKE_SIGMA * max(sigma, 1e-6)

    def withheld(self, step: int, loss: float) -> Signal:
        """A spike that was seen before its step was applied, and was not: the losses go on as if it had not been."""
        mean, sigma = self._usual()
        return Signal("loss_spike", step, {"loss": loss, "mean": mean, "sigma": sigma, "withheld": True})

    def _usual(self) -> tuple[float, float]:
        if len(self.recent) < SPIKE_WINDOW // 2:
            return math.inf, 0.0
        before = np.fromiter(self.recent, np.float64, len(self.recent))
        return float(before.mean()), float(before.std())

    def _spike(self, step: int, loss: float) -> Signal | None:
        if step - self.last_spike < SPIKE_QUIET_STEPS or loss <= self.limit:
            return None
        mean, sigma = self._usual()
        self.last_spike = step
        return Signal("loss_spike", step, {"loss": loss, "mean": mean, "sigma": sigma})

    def _divergence(self, step: int, median: float) -> Signal | None:
        error = self.lowest_sigma / math.sqrt(DIVERGENCE_WINDOW)
        limit = self.lowest + max(DIVERGENCE_SHARE * abs(self.lowest), DIVERGENCE_SIGMA * error)
        if not median > limit or step - self.last_divergence < SPIKE_WINDOW:
            return None
        self.last_divergence = step
        return Signal(
            "divergence", step, {"median": median, "lowest_median": self.lowest, "limit": limit, "window": DIVERGENCE_WINDOW}
        )

    def _plateau(self, step: int, median: float) -> Signal | None:
        if median < self.progress_loss - PLATEAU_GAIN * abs(self.progress_loss) or self.progress_loss == math.inf:
            self.progress_step, self.progress_loss = step, median
        elif step - self.progress_step >= self.patience:
            since, self.progress_step = self.progress_step, step
            return Signal("plateau", step, {"median": median, "best_median": self.progress_loss, "since_step": since})
        return None

    def state(self) -> dict[str, Any]:
        """For a checkpoint; JSON knows no infinity, so what is not known yet is null."""
        return {
            "recent": list(self.recent), "last_spike": self.last_spike, "last_divergence": self.last_divergence,
            "lowest": _known(self.lowest), "lowest_sigma": self.lowest_sigma,
            "progress_step": self.progress_step, "progress_loss": _known(self.progress_loss),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.recent = deque(state["recent"], maxlen=SPIKE_WINDOW)
        self.last_spike, self.last_divergence = state["last_spike"], state["last_divergence"]
        self.lowest, self.lowest_sigma = _or_infinity(state["lowest"]), state["lowest_sigma"]
        self.progress_step, self.progress_loss = state["progress_step"], _or_infinity(state["progress_loss"])


class Pace:
    """Slow steps and a fall of speed, from the seconds of this attempt's steps."""

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=PACE_WINDOW)
        self.best, self.seen = math.inf, 0

    def see(self, step: int, seconds: float) -> list[Signal]:
        """How long a step took, evaluations and saves left out."""
        found = []
        self.seen += 1
        if self.seen == 1:  # compiles, allocates, fills caches
            return []
        if len(self.recent) == PACE_WINDOW:
            usual = statistics.median(self.recent)
            if seconds > max(SLOW_STEP * usual, usual + SLOW_STEP_SECONDS):
                found.append(Signal("slow_step", step, {"seconds": seconds, "usual_seconds": usual}))
        self.recent.append(seconds)
        if self.seen % PACE_WINDOW == 1 and len(self.recent) == PACE_WINDOW:
            now = statistics.median(self.recent)
            if now > SLOW_DOWN * self.best:
                found.append(Signal("slow_down", step, {"step_seconds": now, "best_step_seconds": self.best}))
                self.best = now  # said once; from here on this is what is usual
            self.best = min(self.best, now)
        return found


def noise_of(losses: Sequence[float] | NDArray[np.float64]) -> float:
    """Standard deviation of losses around their course: of the differences of neighbours, over √2 (von Neumann et al. 1941)."""
    return float(np.std(np.diff(losses))) / math.sqrt(2)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value
