"""What training offers to subjects on its right: a controller that may move the end of the schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Decision:
    """What a controller wants after a step. Every kind but `continue` becomes an event and changes the schedule in effect."""

    kind: Literal["continue", "start_decay", "replan", "stop"] = "continue"
    decay_steps: int = 0  # start_decay: the decay begins now and lasts this long
    total_steps: int = 0  # replan: the new last step …
    decay_start: int = 0  # … and the new first step of the decay
    reason: str = ""


CONTINUE = Decision()


class Controller(Protocol):
    """Watches the clock while training runs. Asked after every optimizer step; must be cheap."""

    def on_step(self, step: int, elapsed_seconds: float) -> Decision:
        """Decide what happens next.

        Args:
            step: optimizer steps done since the training's beginning (a resumed attempt starts above 0).
            elapsed_seconds: wall-clock seconds since *this attempt* took its first step, evaluations and saves included.
        """
        ...

    def ask_for_decay(self, reason: str) -> None:
        """Early stopping wants the final decay to begin: the next `on_step` may answer with `start_decay`."""
        ...

    def outlook(self) -> Mapping[str, Any]:
        """Where the training stands in its window, for people: the keys of `planning.outlook.Outlook`, or {}."""
        ...

    def state(self) -> Mapping[str, Any]:
        """Small JSON that goes beside a checkpoint (observed: it promises nothing)."""
        ...

    def restore(self, state: Mapping[str, Any], /) -> None:
        """Go on from a state; not called when a checkpoint has none."""
        ...


class ControllerFactory(Protocol):
    """How `train` makes its controller: `run.use("controller")(plan, clock, deadline, adaptive)`.

    The plan has one entry more than the details of its stage: `follow`, see `Services`.
    """

    def __call__(
        self, plan: Mapping[str, Any], clock: Callable[[], datetime], deadline: datetime | None, adaptive: bool, /
    ) -> Controller:
        """Make a controller for one attempt."""
        ...
