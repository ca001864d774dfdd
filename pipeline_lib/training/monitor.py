"""Watches every step: loss, gradient norm, speed, memory, waiting for data; the detectors of `signals` see what it sees."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from pipeline_lib.hardware.gauges import Gauges
from pipeline_lib.hardware.machine import PeakFlops
from pipeline_lib.training.loop import Session
from pipeline_lib.training.signals import Losses, NonFinite, Pace, Signal

SMOOTH_STEPS = 20  # of the loss that people see
OF_THE_LOSS = ("non_finite", "loss_spike", "divergence")  # signals that name the step's documents
GPU_STEPS = 10  # steps between looks at a GPU: each look waits for the device


@dataclass(frozen=True)
class _Noted:
    """A step as it was when it ended; the tensors are still on the device."""

    step: int
    learning_rate: float
    loss: Tensor
    grad_norm: Tensor
    finite: Tensor
    withheld: Tensor
    clock: float  # of this process, when the step had been given to the device
    paused: float  # seconds of evaluations and saves so far
    waited: float  # seconds of waiting for batches so far
    mark: Any  # a CUDA event; None on the CPU


class Monitor(TrainerCallback):
    """Collects numbers on the device and looks at them in blocks. What its detectors know of losses is part of a checkpoint."""

    def __init__(
        self,
        session: Session,
        *,
        sequence_length: int,
        flops_per_token: float,
        peak: PeakFlops,
        event: Callable[..., None],
        rows: Callable[[Sequence[Mapping[str, Any]]], None],
        documents: Callable[[int], list[dict[str, Any]]] = lambda step: [],
    ) -> None:
        """`documents`: those of a step that were learned worst; they are named where its loss is the news."""
        self.session, self.event, self.rows, self.documents = session, event, rows, documents
        self.tokens_per_step = session.plan.batch_sequences * sequence_length
        self.flops_per_token, self.peak = flops_per_token, peak
        self.look_every = GPU_STEPS if session.device.type == "cuda" else 1
        self.bad_steps, self.losses, self.pace = NonFinite(), Losses(session.plan.steps), Pace()
        self.gauges = Gauges(session.device)
        self.rates: list[float] = []  # tokens/s at every look of this attempt
        self.latest: dict[str, Any] = {}
        self._signals: list[Signal] = []
        self._pending: list[_Noted] = []
        self._last = self._note()

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"bad_steps": self.bad_steps.state(), "losses": self.losses.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.bad_steps.restore(state["bad_steps"])
        self.losses.restore(state["losses"])

    @property
    def skipped(self) -> int:
        """Steps that were not applied."""
        return self.bad_steps.total

    @property
    def smooth_loss(self) -> float:
        """Mean of the latest 20 losses."""
        recent = list(self.losses.recent)[-SMOOTH_STEPS:]
        return statistics.fmean(recent) if recent else float("nan")

    @property
    def tokens_per_second(self) -> float:
        """Median of this attempt; the first look, which carries the warm-up, is left out when there are others."""
        return statistics.median(self.rates[1:] or self.rates) if self.rates else 0.0

    def take(self) -> list[Signal]:
        """What the detectors said since this was last asked, in order of steps."""
        signals, self._signals = self._signals, []
        return signals

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The clock starts."""
        self._last = self._note()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the step; look when it is time (by the step's number, so that a resumed training looks at the same ones)."""
        self._pending.append(self._note())
        if self.session.step % self.look_every == 0 or self.session.finished:
            self.look()

    def _note(self) -> _Noted:
        session, mark = self.session, None
        if session.device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            mark.record()
        return _Noted(
            session.step, session.learning_rate, session.loss, session.grad_norm, session.finite, session.withheld,
            time.perf_counter(), session.paused_seconds, session.waited_seconds, mark,
        )  # fmt: skip

    def look(self) -> None:
        """Bring the noted steps from the device and judge them; who acts on it asks `take`."""
        if not self._pending:
            return
        session, pending, self._pending = self.session, self._pending, []
        flat = [value.double() for noted in pending for value in (noted.loss, noted.grad_norm, noted.finite, noted.withheld)]
        values = torch.stack(flat).reshape(-1, 4).tolist()
        waits = [noted.waited - last.waited for last, noted in zip((self._last, *pending), pending, strict=False)]
        seconds = self._seconds(pending)
        rate = self.tokens_per_step * len(pending) / max(sum(seconds), 1e-9)
        self.rates.append(rate)
        shared = {"tokens_per_second": rate, "mfu": rate * self.flops_per_token / self.peak.flops, **self.gauges.read()}
        rows = []
        for noted, took, wait, (loss, norm, finite, withheld) in zip(pending, seconds, waits, values, strict=True):
            first = session.adjustments.data_step(noted.step - 1) * session.plan.batch_sequences
            rows.append(
                {"step": noted.step, "loss": loss, "lr": noted.learning_rate, "grad_norm": norm, "seconds": took,
                 "data_wait": min(wait / took, 1.0) if took else None, **shared, "first_sequence": first,
                 "last_sequence": first + session.plan.batch_sequences - 1}
            )  # fmt: skip
            self._judge(noted.step, loss, norm, took, finite=bool(finite), withheld=bool(withheld))
        self.latest = rows[-1]
        self.rows(rows)

    def _seconds(self, pending: Sequence[_Noted]) -> list[float]:
        """How long each step took, evaluations and saves left out: by the device's clock on a GPU, by ours elsewhere."""
        found = []
        for noted in pending:
            last, self._last = self._last, noted
            took = noted.clock - last.clock if noted.mark is None else last.mark.elapsed_time(noted.mark) / 1000
            found.append(max(took - (noted.paused - last.paused), 0.0))
        return found

    def _judge(self, step: int, loss: float, norm: float, seconds: float, *, finite: bool, withheld: bool) -> None:
        if bad := self.bad_steps.see(step, loss, norm, applied=finite):
            signals = [bad]
        else:
            signals = [self.losses.withheld(step, loss)] if withheld else self.losses.see(step, loss)
        for signal in (*signals, *self.pace.see(step, seconds)):
            self._signals.append(signal)
            named = {"documents": self.documents(step)} if signal.signal in OF_THE_LOSS else {}
            self.event(signal.signal, step=step, **signal.evidence, **named)
