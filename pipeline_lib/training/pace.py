"""Callbacks of short trainings: step times under a time limit, and dev losses that may end a trial."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from pipeline_lib.hardware.machine import synchronize
from pipeline_lib.training.data import Batch
from pipeline_lib.training.evaluate import mean_loss
from pipeline_lib.training.loop import Session


class Pace(TrainerCallback):
    """Times every step; stops when the time is up and at least one step after the first has been timed."""

    def __init__(self, session: Session, seconds: float | None) -> None:
        self.session, self.seconds = session, seconds
        self.step_seconds: list[float] = []
        self.begin = self.last = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The clock starts when the first batch is there."""
        if not self.step_seconds:
            self.last = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the device, then look at the clock."""
        synchronize(self.session.device)
        now = time.perf_counter()
        self.step_seconds.append(now - self.last)
        self.last = now
        if self.seconds is not None and now - self.begin > self.seconds and len(self.step_seconds) > 1:
            self.session.follow(self.session.schedule.stopped(self.session.step))


class Reports(TrainerCallback):
    """Evaluates at `evaluate_every` and at the end; the answer of `on_report` may prune."""

    def __init__(
        self,
        session: Session,
        batches: Sequence[Batch],
        on_report: Callable[[int, float], bool],
        should_stop: Callable[[], bool],
    ) -> None:
        self.session, self.batches, self.on_report, self.should_stop = session, batches, on_report, should_stop
        self.curve: list[tuple[int, float]] = []
        self.pruned = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report where it is due."""
        session = self.session
        if session.step % session.plan.evaluate_every == 0 or session.finished:
            loss = mean_loss(session.model, session.objective, self.batches)
            loss = loss if math.isfinite(loss) else math.inf
            self.curve.append((session.step, loss))
            if not session.finished and not self.on_report(session.step, loss):
                self.pruned = True
            elif session.finished:
                self.on_report(session.step, loss)
        if self.should_stop():
            self.pruned = True
        if self.pruned:
            session.follow(session.schedule.stopped(session.step))
