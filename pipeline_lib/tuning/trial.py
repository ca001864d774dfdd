"""One trial: a short training with given values. Its failure is a result, never an exception."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from pipeline_lib.config.model import ModelConfig, Precision, TrainConfig
from pipeline_lib.tuning.budget import DEV_SEQUENCES, REPORTS, TrialPlan
from pipeline_lib.workspace.stage import StageRun

if TYPE_CHECKING:
    from pipeline_lib.training.data import Sequences

Report = Callable[[int, float], bool]  # (step, dev loss) -> go on?


@dataclass(frozen=True)
class Ended:
    """What came out of a trial."""

    state: Literal["complete", "pruned", "failed"]
    seconds: float
    steps: int = 0
    tokens: int = 0
    dev_loss: float | None = None
    curve: list[tuple[int, float]] = field(default_factory=list)  # (step, dev loss)
    error: str = ""


@dataclass
class TrialTrainer:
    """Trains trials on the cached sequences, all with the same steps, batch and seed."""

    run: StageRun
    model: ModelConfig
    train: TrainConfig
    setup: TrialPlan
    precision: Precision
    threads: int

    @cached_property
    def sides(self) -> dict[str, Sequences]:
        """The packed sequences of train and dev."""
        from pipeline_lib.training.train import open_side

        return {side: open_side(self.run, side) for side in ("train", "dev")}

    def __call__(self, number: int, values: Mapping[str, float], params: Mapping[str, float], report: Report) -> Ended:
        """Train with `values`; the tracker gets a nested run with `params`, the curve and the true status.

        Args:
            number: of the trial.
            values: learning_rate and weight_decay.
            params: everything worth showing beside the result.
            report: asked at every dev evaluation whether to go on.
        """
        import torch

        tracker = self.run.services.tracker.child(f"trial-{number}", tags={"millrace.kind": "trial"})
        tracker.params({**values, **params, "steps": self.setup.steps, "batch_sequences": self.setup.batch_sequences})
        curve: list[tuple[int, float]] = []

        def on_report(step: int, dev_loss: float) -> bool:
            if not math.isfinite(dev_loss):
                return False
            curve.append((step, dev_loss))
            tracker.metrics({"dev_loss": dev_loss}, step=step)
            return report(step, dev_loss)

        torch.set_num_threads(self.threads)
        begin = time.monotonic()
        ended = self._ended(values, on_report, curve, begin)
        tracker.metrics({"seconds": ended.seconds}, step=ended.steps)
        tracker.tags({"millrace.state": ended.state, **({"millrace.error": ended.error} if ended.error else {})})
        tracker.end("FAILED" if ended.state == "failed" else "FINISHED")
        return ended

    def _ended(self, values: Mapping[str, float], on_report: Report, curve: list[tuple[int, float]], begin: float) -> Ended:
        from pipeline_lib.training.measure import quick_train

        data: Mapping[str, Any] = self.run.input("fill_gaps").details
        try:
            result = quick_train(
                self.model,
                dataset_train=self.sides["train"],
                dataset_dev=self.sides["dev"],
                steps=self.setup.steps,
                learning_rate=values["learning_rate"],
                weight_decay=values["weight_decay"],
                batch_sequences=self.setup.batch_sequences,
                micro_batch=self.setup.micro_batch,
                precision=self.precision,
                seed=self.run.seed,
                vocabulary_size=int(data["vocabulary_size"]),
                sequence_length=int(data["sequence_length"]),
                on_report=on_report,
                reports=REPORTS,
                dev_sequences=DEV_SEQUENCES,
                train=self.train,
                store_lookup=self.run.workspace.store.artifact,
                should_stop=self.run.services.should_stop,
            )
        except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:  # torch's out-of-memory is a RuntimeError
            words = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            return Ended("failed", _since(begin), curve=curve, error=words)
        if not math.isfinite(result.dev_loss):
            return Ended("failed", _since(begin), result.steps, result.tokens, curve=curve, error="the loss is not finite")
        state: Literal["complete", "pruned"] = "pruned" if result.pruned else "complete"
        return Ended(state, _since(begin), result.steps, result.tokens, result.dev_loss, curve)


def _since(begin: float) -> float:
    return round(time.monotonic() - begin, 3)
