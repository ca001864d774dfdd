"""What reacts to how the losses fall, where the configuration asks for it: the learning rate, and an early decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline_lib.training.hooks import Controller
from pipeline_lib.training.loop import Session
from pipeline_lib.training.reaction import RateReaction
from pipeline_lib.training.stopping import EarlyStopping


class Learning:
    """The parts that the configuration asks for."""

    def __init__(
        self,
        session: Session,
        dev_curve: Callable[[], Sequence[Sequence[float]]],
        controller: Controller,
        event: Callable[..., None],
    ) -> None:
        config = session.config
        self.parts: dict[str, RateReaction | EarlyStopping] = {}
        if config.rate_reaction:
            self.parts["rate"] = RateReaction(session, event)
        if config.early_stopping.patience:
            self.parts["stopping"] = EarlyStopping(session, config.early_stopping, dev_curve, controller, event)

    @property
    def callbacks(self) -> list[RateReaction | EarlyStopping]:
        """After the evaluation, before the controller is asked."""
        return list(self.parts.values())

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {name: part.state() for name, part in self.parts.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint; a fork may react to more, or to less, than the run that it goes on from."""
        for name in self.parts.keys() & state.keys():
            self.parts[name].restore(state[name])
