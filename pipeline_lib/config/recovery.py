"""What a training does when something goes wrong: the table of policies, and how a configuration changes its rows.

Rows of one signal are a ladder: the first that is not used up and not cooling down acts. The last rung says what happens when
nothing helped.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import model_validator

from pipeline_lib.config.fields import Section, setting

Action = Literal[
    "skip_step", "roll_back", "halve_micro_batch", "prune", "stop", "use_previous", "heal", "save_and_leave", "relaunch",
    "go_on", "give_up",
]  # fmt: skip


@dataclass(frozen=True)
class Policy:
    """A row: on a signal, when its predicate holds, do something, so often, with so long a pause after it."""

    name: str
    signal: str
    when: str  # the predicate, in words
    action: Action
    at_most: int | None = None  # times; None: without a limit
    per_steps: int = 0  # in so many steps; 0: in the whole training
    cool_down: int = 0  # steps after it in which the signal asks for nothing
    rate: float = 1.0  # roll_back: the learning rate is multiplied by this from there on …
    regains: bool = False  # … until what was undone is done again; then it grows back. Otherwise it stays lower
    decay: float = 1.0  # roll_back: and the weight decay by this
    pause_seconds: float = 0.0  # relaunch: before the first; doubled each time

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


NOT_FINITE = "the loss or the gradient norm of a step is not a number"
SPIKE = "a loss is more than 6 standard deviations above the mean of the last 128 steps"
DIVERGENCE = (
    "the median of 32 losses is 5 % and 12 standard errors above the lowest such median, and the dev loss 2.5 % above that of "
    "the checkpoint before"
)
MEMORY = "a forward or backward pass could not allocate memory"
DISK = "a checkpoint does not fit on the disk"

POLICIES: tuple[Policy, ...] = (
    Policy("non_finite", "non_finite", NOT_FINITE, "skip_step", at_most=5, per_steps=100),
    Policy("non_finite_again", "non_finite", NOT_FINITE, "roll_back", at_most=1, rate=0.5, regains=True),
    Policy("non_finite_often", "non_finite", NOT_FINITE, "roll_back", at_most=1, rate=0.5),
    Policy("non_finite_still", "non_finite", NOT_FINITE, "give_up"),
    Policy("spike", "loss_spike", SPIKE, "skip_step", at_most=3, per_steps=128),
    Policy("spike_again", "loss_spike", SPIKE, "roll_back", at_most=3, rate=0.7, regains=True),
    Policy("spike_still", "loss_spike", SPIKE, "go_on"),
    Policy("divergence", "divergence", DIVERGENCE, "roll_back", at_most=1, cool_down=32, rate=0.5, regains=True),
    Policy("divergence_again", "divergence", DIVERGENCE, "roll_back", at_most=2, cool_down=32, rate=0.5, decay=2.0),
    Policy("divergence_still", "divergence", DIVERGENCE, "give_up"),
    Policy("memory", "out_of_memory", MEMORY, "halve_micro_batch", at_most=10),
    Policy("memory_still", "out_of_memory", f"{MEMORY} for a single sequence", "give_up"),
    Policy("disk", "disk_low", DISK, "prune", at_most=20),
    Policy("disk_still", "disk_low", f"{DISK}, and nothing is left to remove", "stop"),
    Policy("checkpoint", "checkpoint_damaged", "a file of a checkpoint is not what was committed", "use_previous"),
    Policy("chunk", "chunk_damaged", "a chunk of the cache is not what was committed", "heal"),
    Policy("stop", "stop_asked", "SIGTERM, Ctrl-C or a cancellation", "save_and_leave"),
    Policy("worker", "worker_died", "a process of the training ended, or none made progress for train.stall_seconds",
           "relaunch", at_most=5, pause_seconds=1.0),
    Policy("worker_still", "worker_died", "the same, without a new checkpoint since the first time", "give_up"),
)  # fmt: skip
BY_NAME = {policy.name: policy for policy in POLICIES}
LADDER_ENDS = {"give_up", "go_on", "stop"}
CHANGEABLE = {
    "skip_step": {"at_most", "per_steps", "cool_down"},
    "roll_back": {"at_most", "per_steps", "cool_down", "rate", "regains", "decay"},
    "halve_micro_batch": {"at_most"},
    "prune": {"at_most"},
    "relaunch": {"at_most", "pause_seconds"},
}


class PolicyChange(Section):
    """What a configuration changes in a row of the table; what is not named stays."""

    at_most: int | None = setting(None, "How often; 0: never, the next row of the signal acts at once", ge=0)
    per_steps: int | None = setting(None, "… in so many steps; 0: in the whole training", unit="steps", ge=0)
    cool_down: int | None = setting(None, "Steps after it in which the signal asks for nothing", unit="steps", ge=0)
    rate: float | None = setting(None, "The learning rate is multiplied by this after rolling back", gt=0, le=1)
    regains: bool | None = setting(None, "The rate grows back when what was undone is done again; false: it stays lower")
    decay: float | None = setting(None, "The weight decay is multiplied by this after rolling back", ge=1, le=100)
    pause_seconds: float | None = setting(None, "Before the first relaunch; doubled each time", unit="seconds", ge=0, le=600)


class RecoveryConfig(Section):
    """Changes of the policy table (`millrace policies` shows it)."""

    policies: dict[str, PolicyChange] = setting(dict, "Row of the table → what is different: `{spike: {at_most: 5}}`")

    @model_validator(mode="after")
    def _rows_exist(self) -> RecoveryConfig:
        for name, change in self.policies.items():
            if name not in BY_NAME:
                near = difflib.get_close_matches(name, BY_NAME, 1)
                raise ValueError(f"there is no policy {name!r}; " + (f"did you mean {near[0]}?" if near else ", ".join(BY_NAME)))
            action = BY_NAME[name].action
            wrong = change.model_dump(exclude_none=True).keys() - CHANGEABLE.get(action, set())
            if wrong:
                may = ", ".join(sorted(CHANGEABLE.get(action, set()))) or "nothing"
                raise ValueError(f"{name} ({action}) has no {sorted(wrong)[0]} to change; it has {may}")
        return self

    def table(self) -> tuple[Policy, ...]:
        """The table in effect."""
        changes: Mapping[str, dict[str, Any]] = {k: v.model_dump(exclude_none=True) for k, v in self.policies.items()}
        return tuple(replace(policy, **changes.get(policy.name, {})) for policy in POLICIES)
