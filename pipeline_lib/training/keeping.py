"""When a training is saved: what watches is brought up to date first, and room is made where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline_lib.training.callbacks import DevLoss
from pipeline_lib.training.checkpoints import DiskLowError
from pipeline_lib.training.hooks import Controller
from pipeline_lib.training.loop import Session
from pipeline_lib.training.monitor import Monitor
from pipeline_lib.training.recovery import Recovery
from pipeline_lib.training.saving import CheckpointWriter


class Keeper:
    """Saves a session with what its callbacks keep.

    Args:
        first: called before a save, in this order.
        notes: what callbacks keep, by name; of monitor, recovery and dev loss it is known.
        resumed_at: step of the checkpoint that was loaded; one there need not be saved again.
    """

    def __init__(
        self,
        session: Session,
        writer: CheckpointWriter,
        *,
        monitor: Monitor,
        recovery: Recovery,
        dev_loss: DevLoss,
        controller: Controller,
        first: Sequence[Callable[[], object]],
        notes: Mapping[str, Callable[[], Any]],
        resumed_at: int | None,
    ) -> None:
        self.session, self.writer, self.monitor, self.recovery, self.dev_loss = session, writer, monitor, recovery, dev_loss
        self.controller, self.first, self.resumed_at = controller, first, resumed_at
        self.notes = {"monitor": monitor.state, "dev": dev_loss.state, "recovery": recovery.state, **notes}

    def save(self, scheduled: bool) -> None:
        """Begin to commit a checkpoint of the step just done.

        Raises: as `Recovery.make_room`, where nothing is left to remove.
        """
        for bring_up_to_date in self.first:
            bring_up_to_date()
        session = self.session
        if session.finished:
            self.dev_loss.now()
        if not scheduled and session.step in {self.writer.step, self.resumed_at}:
            return
        observed = {"controller": dict(self.controller.state()), "tokens_per_second": self.monitor.tokens_per_second}
        while True:
            try:
                self.writer.save(
                    session, notes={name: state() for name, state in self.notes.items()}, metrics=self._losses(),
                    observed=observed, scheduled=scheduled,
                )  # fmt: skip
            except DiskLowError as error:
                self.recovery.make_room(error)
            else:
                return

    def leave(self) -> None:
        """Commit a checkpoint of the step just done, and wait until it is there: nobody comes back to see.

        Raises: as `save`, and what `CheckpointWriter.wait` raises.
        """
        self.save(False)
        self.finish()

    def check(self) -> None:
        """See that nothing has gone wrong behind training's back; what did not fit is saved again, as of now, when it does."""
        self._look(self.writer.check)

    def finish(self) -> None:
        """`check` when the save under way has ended."""
        self._look(self.writer.wait)

    def _look(self, look: Callable[[], None]) -> None:
        while True:
            try:
                look()
            except DiskLowError as error:
                self.recovery.make_room(error)
                self.save(True)
            else:
                return

    def _losses(self) -> dict[str, float | None]:
        """What a checkpoint is known by: the latest training loss, smoothed, and the latest dev loss, with the step it is of."""
        step, loss = self.dev_loss.curve[-1] if self.dev_loss.curve else (0.0, math.nan)
        known = {"train_loss": self.monitor.smooth_loss, "dev_loss": loss if step else math.nan, "dev_step": step}
        return {name: value if math.isfinite(value) else None for name, value in known.items()}
