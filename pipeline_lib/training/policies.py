"""The policy table at work: which row acts on a signal now. What was used is state, kept with the checkpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline_lib.config.recovery import Policy


class Ledger:
    """Counts what each row has done. A row of a signal acts until it is used up; then the next one does.

    Args of `__init__`:
        table: the policies.
        begins: signal → name of the row that acts first; those before it are passed over. A row that is not there counts as none.
    """

    def __init__(self, table: Iterable[Policy], begins: Mapping[str, str] | None = None) -> None:
        self.table = tuple(table)
        self.passed_over: set[str] = set()  # names of rows
        for signal, first in (begins or {}).items():
            rows = [policy.name for policy in self.table if policy.signal == signal]
            self.passed_over |= set(rows[: rows.index(first)] if first in rows else [])
        self.used: dict[str, list[int]] = {}  # row → steps at which it acted
        self.quiet_until: dict[str, int] = {}  # signal → step up to which it asks for nothing

    def take(self, signal: str, step: int) -> Policy | None:
        """The row that acts on a signal of a step, and note it; None while an earlier action cools down.

        A signal that the table does not know asks for nothing.
        """
        policy = self.next(signal, step)
        if policy:
            self.used.setdefault(policy.name, []).append(step)
            if policy.cool_down:
                self.quiet_until[signal] = step + policy.cool_down
        return policy

    def next(self, signal: str, step: int) -> Policy | None:
        """The row that would act."""
        if step < self.quiet_until.get(signal, 0):
            return None
        return next((policy for policy in self.table if policy.signal == signal and self._left(policy, step)), None)

    def _left(self, policy: Policy, step: int) -> bool:
        if policy.name in self.passed_over:
            return False
        if policy.at_most is None:
            return True
        used = self.used.get(policy.name, [])
        if policy.per_steps:
            used = [when for when in used if when > step - policy.per_steps]
        return len(used) < policy.at_most

    def rolled_back(self, step: int, by: Policy) -> None:
        """Training goes on from a step: skips after it never happened, and the pause counts from there."""
        for policy in self.table:
            if policy.action == "skip_step" and policy.name in self.used:
                self.used[policy.name] = [when for when in self.used[policy.name] if when <= step]
        self.quiet_until = {by.signal: step + by.cool_down}

    def tried(self, signal: str) -> list[str]:
        """What was done about a signal so far, in words for people."""
        times: Counter[str] = Counter()
        for policy in self.table:
            if policy.signal == signal and policy.action != "give_up":
                times[policy.action] += len(self.used.get(policy.name, []))
        return [f"{action} ({count} times)" for action, count in times.items() if count]

    def state(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"used": {name: list(steps) for name, steps in self.used.items()}, "quiet_until": dict(self.quiet_until)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """From `state`."""
        self.used = {name: list(steps) for name, steps in state["used"].items()}
        self.quiet_until = dict(state["quiet_until"])


def rows_of(table: Sequence[Policy]) -> list[dict[str, Any]]:
    """The table for people: a row {policy, signal, when, action, how often, cool-down}."""
    return [
        {"policy": p.name, "signal": p.signal, "when": p.when, "action": _action(p), "how often": _often(p),
         "cool-down": f"{p.cool_down} steps" if p.cool_down else ""}
        for p in table
    ]  # fmt: skip


def _action(policy: Policy) -> str:
    words = {
        "skip_step": "skip the step: weights and optimizer stay as they were",
        "roll_back": "roll back to a checkpoint before it, pass over the data read since",
        "halve_micro_batch": "halve the micro-batch inside the step; the global batch stays",
        "prune": "remove damaged and older checkpoints, keep the newest",
        "stop": "stop cleanly at the newest checkpoint",
        "use_previous": "set it aside, use the one before",
        "heal": "make the chunk again from its documents",
        "save_and_leave": "save a checkpoint and leave",
        "relaunch": "launch all processes again from the newest checkpoint",
        "go_on": "go on",
        "give_up": "end with a report: evidence, what was tried, what to do",
    }[policy.action]
    rate = f"rate × {policy.rate:g}" + " until that is done again, then growing back" * policy.regains
    changes = [rate] * (policy.rate != 1) + [f"weight decay × {policy.decay:g}"] * (policy.decay != 1)
    return ", ".join([words, *changes])


def _often(policy: Policy) -> str:
    if policy.at_most is None:
        return "always"
    often = f"{policy.at_most} ×" + (f" in {policy.per_steps} steps" if policy.per_steps else "")
    return often + (f", after {policy.pause_seconds:g} s, doubled" if policy.pause_seconds else "")
