"""The callback of a measurement: step times under a time limit."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from pipeline_lib.hardware.machine import synchronize
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
