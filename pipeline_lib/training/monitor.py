"""Watches every step: loss, gradient norm, speed, memory; and what is not a number, or jumps."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from pipeline_lib.errors import StageFailedError
from pipeline_lib.hardware.machine import PeakFlops, peak_memory_bytes
from pipeline_lib.training.loop import Session

SPIKE_SIGMA, SPIKE_WINDOW = 6.0, 128  # OLMo-core's stability monitor: 6 σ over 128 steps
SPIKE_QUIET_STEPS = 20  # after a spike, no second event for so long
SKIPPED_IN_A_ROW, SKIPPED_SHARE = 5, 0.02  # of the planned steps; more than either is a failure, not an accident
GPU_STEPS = 10  # steps between looks at a GPU: each look waits for the device


class Monitor(TrainerCallback):
    """Collects numbers on the device and looks at them in bunches. Its window is part of a checkpoint's notes."""

    def __init__(
        self,
        session: Session,
        *,
        sequence_length: int,
        flops_per_token: float,
        peak: PeakFlops,
        event: Callable[..., None],
        rows: Callable[[Sequence[Mapping[str, Any]]], None],
    ) -> None:
        self.session, self.event, self.rows = session, event, rows
        self.tokens_per_step = session.plan.batch_sequences * sequence_length
        self.flops_per_token, self.peak = flops_per_token, peak
        self.look_every = GPU_STEPS if session.device.type == "cuda" else 1
        self.losses: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self.rates: list[float] = []  # tokens/s at every look of this attempt
        self.skipped, self.skipped_in_a_row, self.last_spike = 0, 0, -SPIKE_QUIET_STEPS
        self.latest: dict[str, Any] = {}
        self._pending: list[tuple[int, float, Tensor, Tensor, Tensor]] = []
        self._mark, self._paused = time.perf_counter(), 0.0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "losses": list(self.losses), "skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row,
            "last_spike": self.last_spike,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.losses.extend(state["losses"])
        self.skipped, self.skipped_in_a_row = state["skipped"], state["skipped_in_a_row"]
        self.last_spike = state["last_spike"]

    @property
    def smooth_loss(self) -> float:
        """Mean of the latest 20 losses."""
        recent = list(self.losses)[-20:]
        return statistics.fmean(recent) if recent else math.nan

    @property
    def tokens_per_second(self) -> float:
        """Median of this attempt; the first look, which carries the warm-up, is left out when there are others."""
        return statistics.median(self.rates[1:] or self.rates) if self.rates else 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The clock starts."""
        self._mark, self._paused = time.perf_counter(), self.session.paused_seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the step; look when it is time."""
        session = self.session
        self._pending.append((session.step, session.learning_rate, session.loss, session.grad_norm, session.finite))
        if len(self._pending) >= self.look_every or session.finished:
            self.look()

    def look(self) -> None:
        """Bring the noted steps from the device and judge them.

        Raises:
            StageFailedError: too many steps were not finite.
        """
        if not self._pending:
            return
        session, pending, self._pending = self.session, self._pending, []
        values = torch.stack([torch.stack([loss, norm, ok.float()]) for _, _, loss, norm, ok in pending]).double().tolist()
        now = time.perf_counter()
        seconds = max(now - self._mark - (session.paused_seconds - self._paused), 1e-9)
        self._mark, self._paused = now, session.paused_seconds
        rate = self.tokens_per_step * len(pending) / seconds
        self.rates.append(rate)
        shared = {
            "tokens_per_second": rate,
            "mfu": rate * self.flops_per_token / self.peak.flops,
            "memory_bytes": peak_memory_bytes(session.device),
        }
        rows = []
        for (step, learning_rate, *_), (loss, norm, applied) in zip(pending, values, strict=True):
            first = (step - 1) * session.plan.batch_sequences
            rows.append(
                {"step": step, "loss": loss, "lr": learning_rate, "grad_norm": norm, **shared, "first_sequence": first,
                 "last_sequence": first + session.plan.batch_sequences - 1}
            )  # fmt: skip
            self._judge(step, loss, norm, applied=bool(applied))
        self.latest = rows[-1]
        self.rows(rows)
        allowed = max(SKIPPED_IN_A_ROW, SKIPPED_SHARE * session.plan.steps)
        if self.skipped_in_a_row >= SKIPPED_IN_A_ROW or self.skipped > allowed:
            self._fail(rows)

    def _judge(self, step: int, loss: float, norm: float, *, applied: bool) -> None:
        if not applied:
            self.skipped += 1
            self.skipped_in_a_row += 1
            self.event("step_skipped", step=step, loss=str(loss), grad_norm=str(norm))
            return
        self.skipped_in_a_row = 0
        if len(self.losses) >= SPIKE_WINDOW // 2 and step - self.last_spike >= SPIKE_QUIET_STEPS:
            mean, sigma = statistics.fmean(self.losses), statistics.pstdev(self.losses)
            if loss > mean + SPIKE_SIGMA * max(sigma, 1e-6):
                self.last_spike = step
                self.event("loss_spike", step=step, loss=loss, mean=mean, sigma=sigma)
        self.losses.append(loss)

    def _fail(self, rows: Sequence[Mapping[str, Any]]) -> None:
        step, rate = self.session.step, self.session.learning_rate
        recent = ", ".join(f"{loss:.3f}" for loss in list(self.losses)[-5:]) or "none"
        self.event("training_failed", step=step, skipped=self.skipped, last_good_losses=recent)
        raise StageFailedError(
            f"{self.skipped_in_a_row} steps in a row and {self.skipped} in all had a loss or gradient that is not a number; none "
            f"was applied (step {step}, learning rate {rate:.3g}, gradient norm {rows[-1]['grad_norm']}, last good losses "
            f"{recent})",
            where="stage train",
            fix=f"lower train.learning_rate (try {rate / 3:.1g}) or train.max_grad_norm; if it begins at the first step, set "
            "train.precision=fp32",
        )
