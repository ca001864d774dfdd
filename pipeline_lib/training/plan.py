"""The plan that a training follows: what the stage `plan` writes into its details and `train` reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from pipeline_lib.config.model import Precision
from pipeline_lib.errors import StageFailedError
from pipeline_lib.training.schedule import Schedule, ScheduleKind, planned


@dataclass(frozen=True)
class TrainingPlan:
    """Numbers only; every one is decided before training begins. Units in the comments."""

    steps: int  # optimizer steps
    warmup_steps: int
    decay_steps: int
    schedule: ScheduleKind
    learning_rate: float  # peak
    weight_decay: float
    batch_sequences: int  # sequences in an optimizer step
    micro_batch: int  # sequences in a forward pass; divides batch_sequences
    precision: Precision
    evaluate_every: int  # steps; 0: only at the start and the end
    save_every: int  # steps; 0: only at the end
    epochs: float = 0.0  # passes over the data that `steps` make, for people
    seconds_per_step: float = 0.0  # predicted; progress shows the remaining time before it has measured
    tokens_per_second: float = 0.0  # predicted
    attention: str = ""  # "": as the family has it
    activation_checkpointing: bool = False  # the profile's; `train.activation_checkpointing` asks for it too
    threads: int = 0  # CPU threads; 0: as torch finds them

    def __post_init__(self) -> None:
        wrong = ""
        if self.steps < 1:
            wrong = f"steps = {self.steps}"
        elif self.micro_batch < 1 or self.batch_sequences % self.micro_batch:
            wrong = f"micro_batch = {self.micro_batch} does not divide batch_sequences = {self.batch_sequences}"
        elif not self.learning_rate > 0:
            wrong = f"learning_rate = {self.learning_rate}"
        elif self.precision not in get_args(Precision):
            wrong = f"precision = {self.precision!r} (a plan has decided on one of {', '.join(get_args(Precision))})"
        if wrong:
            raise StageFailedError(f"the plan cannot be followed: {wrong}", where="stage train", fix="run from `plan` again")

    @classmethod
    def from_details(cls, details: Mapping[str, Any]) -> TrainingPlan:
        """From the details of a plan artifact; other keys (promises, alternatives) are the planner's own.

        Raises:
            StageFailedError: a number is missing or contradicts another.
        """
        known = {f.name for f in fields(cls)}
        try:
            return cls(**{key: value for key, value in details.items() if key in known})
        except TypeError as error:
            raise StageFailedError(f"the plan is incomplete: {error}", where="stage train") from None

    @property
    def accumulation(self) -> int:
        """Forward passes in an optimizer step."""
        return self.batch_sequences // self.micro_batch

    def first_schedule(self) -> Schedule:
        """The schedule before any controller moves it."""
        return planned(self.schedule, steps=self.steps, warmup_steps=self.warmup_steps, decay_steps=self.decay_steps)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)
