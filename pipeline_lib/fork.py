"""Going on from a checkpoint in a run of its own: what is kept, what changes, and what would make no sense."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.load import with_overrides
from pipeline_lib.config.paths import allow, local_folders
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import ConfigError, DamagedError, RefusedError
from pipeline_lib.training.forks import hold, reference_of
from pipeline_lib.training.schedule import Schedule
from pipeline_lib.trainings import Entry, find, stable_before

if TYPE_CHECKING:
    from pipeline_lib.workspace.runs import RunRecord
    from pipeline_lib.workspace.workspace import Workspace

# What the parent's inputs and state were made with. The rest of a configuration may change.
FIXED_SECTIONS = (
    "seed",
    "suites",
    "ingest",
    "score",
    "dedup",
    "split",
    "select",
    "tokenizer",
    "pack",
    "model",
    "calibrate",
    "tune",
)
FIXED_TRAINING = ("batch_tokens", "optimizer", "precision", "lora", "clipping", "beta2")
LEAST_RATE = 0.05  # of the peak: below it a checkpoint is annealed, and going on at its rate would learn next to nothing
SLACK, START_UP_HOURS = 2.0, 0.5  # of the window that `--steps` gets, beside its parent's pace
MARGIN_SHARE = 0.1  # of the window, where the parent's margin would be more
_UNITS = {"s": 1 / 3600, "m": 1 / 60, "min": 1 / 60, "h": 1.0, "d": 24.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")


@dataclass(frozen=True)
class Fork:
    """What `millrace train --from` would do."""

    source: Entry
    run: RunRecord  # the parent
    config: PipelineConfig
    kept: list[tuple[str, str]]  # what, in words
    changed: list[tuple[str, str, str]]  # setting, before, after
    notes: list[str]


def hours_of(text: str) -> float:
    """Hours of a duration: `2h`, `90m`, `45s`, `1.5d`.

    Raises:
        ConfigError: it is none.
    """
    match = _DURATION.fullmatch(text.strip().lower())
    if not match or match[2] not in _UNITS or not float(match[1]):
        raise ConfigError(f"{text!r} is no duration", where="--extend", fix="write 90m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2]]


def plan_fork(
    workspace: Workspace, text: str, *, extend: str = "", steps: int = 0, name: str = "", overrides: Sequence[str] = ()
) -> Fork:
    """Look up a checkpoint and make the configuration that goes on from it; writes nothing.

    Args:
        workspace: where both runs lie.
        text: RUN or RUN@STEP; see `trainings.find`.
        extend: how long it goes on, as a duration; the window of the new run.
        steps: how many optimizer steps it goes on. Without both: the parent's own limits once more.
        name: of the new run; the parent's by default.
        overrides: `section.name=value`.

    Raises:
        NotFoundError: there is no such checkpoint; the nearest are named.
        ConfigError: a setting cannot change in a fork, or both lengths are given.
        RefusedError: the rate has gone to nothing there, or nobody knows the run.
        DamagedError: its record is not what was committed.
    """
    if extend and steps:
        raise ConfigError("--extend is a time, --steps a number of steps", where="--extend, --steps", fix="use one or the other")
    entry = find(workspace, text)
    if not entry.record:
        raise DamagedError("its record is not what was committed", where=str(entry.folder), fix="`millrace checkpoints list`")
    notes: list[str] = []
    if _annealing(entry) and (stable := stable_before(workspace, entry)):
        notes.append(f"{entry.name} lies in the decay; going on from {stable.name}, the last one before it")
        entry = stable
    if entry.run is None:
        raise RefusedError(f"no run is known that {entry.name} belongs to", fix="set model.start to begin from a model's weights")
    parent = PipelineConfig.model_validate(entry.run.config)
    allow(local_folders(parent))  # its paths were checked when its run was opened
    own = _own_settings(entry, parent, extend=extend, steps=steps, overrides=overrides, notes=notes)
    given = [f"name={name}"] if name else []
    config = with_overrides(parent, [*own, *given, *overrides])
    changed = list(_differences(parent.model_dump(mode="json"), config.model_dump(mode="json")))
    for setting, before, _ in changed:
        _refuse_fixed(setting, before)
    shown = [change for change in changed if change[0] != "train.parent"]
    return Fork(entry, entry.run, config, _kept(entry), [*_schedule(entry, parent), *shown], notes)


def begin(workspace: Workspace, fork: Fork) -> None:
    """Hold the source, so that nothing of its run's fate matters to the fork.

    Raises:
        DamagedError: a file of it is not what was committed.
    """
    hold(workspace, fork.source.folder)


def _annealing(entry: Entry) -> bool:
    return entry.record["schedule"]["kind"] == "wsd" and not entry.record["stable"]


def _own_settings(
    entry: Entry, parent: PipelineConfig, *, extend: str, steps: int, overrides: Sequence[str], notes: list[str]
) -> list[str]:
    """Settings that make a fork one: its source, its length, its rate."""
    plan, names = entry.record["plan"], {text.partition("=")[0] for text in overrides}
    own = [f"train.parent={reference_of(entry.record)}"]
    rate = float(plan["learning_rate"])
    if not entry.record["stable"]:
        rate *= Schedule(**entry.record["schedule"]).factor(entry.step - 1)
        if rate < LEAST_RATE * float(plan["learning_rate"]) and "train.learning_rate" not in names:
            raise RefusedError(
                f"at {entry.name} the learning rate has gone down to {rate:.2g}: going on would learn next to nothing",
                fix=f"--set train.learning_rate={plan['learning_rate']:g} begins again at the peak, with the jump that this is",
            )
        notes.append(f"the rate goes on from the {rate:.2g} it had there, not from the peak")
    own.append(f"train.learning_rate={rate!r}")
    hours = hours_of(extend) if extend else parent.resources.max_hours
    if steps:
        own.append(f"train.max_steps={steps}")
        hours = max(hours, SLACK * steps * float(plan["seconds_per_step"]) / 3600 + START_UP_HOURS)
        passes = _passes(entry) * (entry.step + steps) / max(entry.step, 1)
        if passes > parent.train.max_epochs:
            own.append(f"train.max_epochs={passes + 0.01:.2f}")
    elif extend:
        own.append("train.max_steps=0")
    if extend or steps:
        margin = min(parent.resources.margin_minutes, MARGIN_SHARE * hours * 60)
        own += [f"resources.max_hours={hours:.6g}", f"resources.margin_minutes={margin:.6g}", 'resources.finish_by=""']
    return own


def _refuse_fixed(setting: str, before: str) -> None:
    section, _, name = setting.partition(".")
    if section in FIXED_SECTIONS or (section == "train" and name.partition(".")[0] in FIXED_TRAINING):
        raise ConfigError(
            f"{setting} cannot change in a fork: data, model, optimizer and the place in the data are its parent's "
            f"({setting} = {before})",
            where=setting, fix="`millrace rerun` trains anew with it; model.start begins from a model's weights",
        )  # fmt: skip


def _passes(entry: Entry) -> float:
    """Passes over the data at a checkpoint."""
    plan = entry.record["plan"]
    return float(plan["epochs"]) * entry.step / int(plan["steps"]) if plan.get("epochs") else 0.0


def _kept(entry: Entry) -> list[tuple[str, str]]:
    record = entry.record
    kept = [
        ("weights", f"of step {entry.step:,}" + (f", dev loss {entry.dev_loss}" if entry.dev_loss else "")),
        ("optimizer", "its moments, and the loss scale and clipping window where there are any"),
        ("position", f"sequence {record['position']:,} of the same order of the same data"),
        ("random numbers", "their state"),
        ("batch", f"{record['plan']['batch_sequences']} sequences a step"),
    ]
    return [*kept, ("curves", "the dev losses so far")]


def _schedule(entry: Entry, parent: PipelineConfig) -> Iterator[tuple[str, str, str]]:
    schedule = entry.record["schedule"]
    yield (
        "schedule",
        f"{schedule['kind']}, ends at step {schedule['total_steps']:,}",
        f"{parent.train.schedule}, planned anew from step {entry.step:,} on, without a warm-up",
    )


def _differences(before: Any, after: Any, place: str = "") -> Iterator[tuple[str, str, str]]:
    """Settings that differ, dotted, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            yield from _differences(before.get(name), after.get(name), f"{place}.{name}" if place else name)
    elif before != after:
        yield place, str(before), str(after)
