"""The learning rate gives way while the training loss rises, and comes back when it falls.

Two running means of the loss are compared every few steps: where the quick one stands above the slow one the rate is lowered by a
fifth, never below a quarter of the schedule's; where it stands below, the rate is raised again, never above the schedule's. Every
change is an event. The means stay on the device between looks; they and the factor are part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import TrainerCallback

from pipeline_lib.training.loop import Session

QUICK, SLOW = 20, 100  # steps that the two means look back (weight 2 / (steps + 1) of the latest)
LOOK_EVERY = 10  # steps
RISE = 0.02  # share by which the quick mean must stand above the slow one
LOWER, RAISE, LEAST = 0.8, 1.05, 0.25


class RateReaction(TrainerCallback):
    """Watches the loss from the end of the warm-up on."""

    def __init__(self, session: Session, event: Callable[..., None]) -> None:
        self.session, self.event = session, event
        self.means = torch.zeros(2, device=session.device)  # quick, slow
        self.weights = torch.tensor([2 / (QUICK + 1), 2 / (SLOW + 1)], device=session.device)
        self.seen = 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"means": self.means.tolist(), "seen": self.seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.means, self.seen = torch.tensor(state["means"], device=self.session.device), int(state["seen"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the loss; every few steps compare."""
        session = self.session
        if session.step <= session.schedule.warmup_steps:
            return
        loss = torch.where(session.finite & ~session.withheld, session.loss, self.means[0])  # of steps that were applied
        self.means = loss.expand(2).clone() if self.seen == 0 else self.means + self.weights * (loss - self.means)
        self.seen += 1
        if self.seen >= SLOW and session.step % LOOK_EVERY == 0:
            self._look()

    def _look(self) -> None:
        quick, slow = self.means.tolist()
        before = self.session.rates.get("reaction", 1.0)
        after = before
        if quick > slow * (1 + RISE):
            after = max(LEAST, before * LOWER)
        elif quick < slow:
            after = min(1.0, before * RAISE)
        if after != before:
            self.session.set_rate("reaction", after)
            self.event("rate_reaction", factor=round(after, 6), recent_loss=quick, earlier_loss=slow)
