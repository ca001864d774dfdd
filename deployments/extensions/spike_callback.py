"""Example of a callback: counts loss spikes and says so at the end. It watches and changes nothing."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from pipeline_lib.extensions import extend

if TYPE_CHECKING:
    from transformers import TrainerCallback

WINDOW = 20  # logged losses that the median is taken over
FACTOR = 1.5  # a loss above this many medians is a spike


@extend.callback("loss_spikes")
def loss_spikes() -> TrainerCallback:
    """A fresh counter for one training."""
    from transformers import TrainerCallback

    class LossSpikes(TrainerCallback):
        def __init__(self) -> None:
            self.recent: list[float] = []
            self.spikes: list[int] = []

        def on_log(self, args, state, control, logs=None, **_):  # type: ignore[no-untyped-def]
            loss = (logs or {}).get("loss")
            if loss is None:
                return
            if len(self.recent) == WINDOW and loss > FACTOR * median(self.recent):
                self.spikes.append(state.global_step)
            self.recent = [*self.recent, loss][-WINDOW:]

        def on_train_end(self, args, state, control, **_):  # type: ignore[no-untyped-def]
            print(f"loss spikes: {len(self.spikes)}" + (f", at steps {self.spikes}" if self.spikes else ""))

    return LossSpikes()
