"""Early stopping: a dev loss that falls no more asks the controller to start the final decay. It never cuts a training off."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import TrainerCallback

from pipeline_lib.config.model import EarlyStoppingConfig
from pipeline_lib.training.hooks import Controller
from pipeline_lib.training.loop import Session


class EarlyStopping(TrainerCallback):
    """Looks at every new point of the dev curve, before the controller is asked. Its counters are part of a checkpoint."""

    def __init__(
        self,
        session: Session,
        config: EarlyStoppingConfig,
        curve: Callable[[], Sequence[Sequence[float]]],
        controller: Controller,
        event: Callable[..., None],
    ) -> None:
        self.session, self.config, self.curve, self.controller, self.event = session, config, curve, controller, event
        self.smoothed = self.best = float("inf")
        self.without_gain, self.points, self.asked = 0, 0, False

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        known = self.points > 0
        return {"smoothed": self.smoothed if known else None, "best": self.best if known else None,
                "without_gain": self.without_gain, "points": self.points, "asked": self.asked}  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        if state["points"]:
            self.smoothed, self.best = float(state["smoothed"]), float(state["best"])
        self.without_gain, self.points, self.asked = int(state["without_gain"]), int(state["points"]), bool(state["asked"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Judge a new evaluation."""
        curve, config = self.curve(), self.config
        if self.asked or len(curve) == self.points:
            return
        loss = float(curve[-1][1])
        self.smoothed = loss if self.points == 0 else config.smoothing * loss + (1 - config.smoothing) * self.smoothed
        self.points = len(curve)
        if self.smoothed < self.best * (1 - config.min_gain):
            self.best, self.without_gain = self.smoothed, 0
            return
        self.best = min(self.best, self.smoothed)
        self.without_gain += 1
        if self.without_gain >= config.patience and self.session.step >= config.min_steps:
            self.asked = True
            reason = f"the dev loss has not fallen by {config.min_gain:.1%} in {self.without_gain} evaluations"
            self.event("early_stopping", smoothed_dev_loss=self.smoothed, evaluations=self.without_gain)
            self.controller.ask_for_decay(reason)
