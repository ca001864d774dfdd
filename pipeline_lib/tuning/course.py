"""The callback of a trial's training: a checkpoint before the decay, the dev loss on the way, and an early end when it breaks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

from pipeline_lib.training.data import Batch
from pipeline_lib.training.evaluate import mean_loss
from pipeline_lib.training.loop import Session


class Course(TrainerCallback):
    """Watches a session.

    Args:
        session: the trial's.
        dev: batches that the dev loss is read on.
        every: steps between readings on the way; 0: none.
        hold: the step at which a checkpoint is saved; 0: none.
        save: writes a checkpoint of a session.
        should_stop: whether a clean stop is asked for.
    """

    def __init__(
        self,
        session: Session,
        dev: Sequence[Batch],
        *,
        every: int,
        hold: int,
        save: Callable[..., None],
        should_stop: Callable[[], bool],
    ) -> None:
        self.session, self.dev, self.every, self.hold, self.save, self.should_stop = session, dev, every, hold, save, should_stop
        self.curve: list[tuple[int, float]] = []
        self.broken = self.stopped = False  # the loss is no number; a stop was asked for

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and look where it is due."""
        session = self.session
        if session.step == self.hold and not session.finished:
            with session.pause():
                self.save(session, notes={})
        if self.every and session.step % self.every == 0 and not session.finished:
            with session.pause():
                loss = mean_loss(session.model, session.objective, self.dev)
            if math.isfinite(loss):
                self.curve.append((session.step, loss))
            else:
                self.broken = True
        self.stopped = self.stopped or (self.should_stop() and not session.finished)
        if self.broken or self.stopped:
            session.follow(session.schedule.stopped(session.step))
