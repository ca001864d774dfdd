"""Several runs side by side: what differs in configuration and data, curves at equal cost, scores; seeds as one group."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from pipeline_lib.errors import RefusedError
from pipeline_lib.reporting import plots
from pipeline_lib.reporting.gather import Facts, TrainingLog, gather
from pipeline_lib.reporting.page import cell, report_folder, templates
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.files import write_atomic
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace

Floats = NDArray[np.float64]
Rows = list[list[str | float | int]]
# 97.5 % quantiles of Student's t by degrees of freedom (any table, e.g. Abramowitz & Stegun 26.10); beyond, the normal's
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
NORMAL = 1.96
AXES = {"steps": "optimizer steps", "tokens": "training tokens", "seconds": "seconds of training", "joules": "joules of training"}
DATA = ("suites", "ingest", "score", "dedup", "split", "select", "pack", "fill_gaps")
COUNTED = {  # what is shown of the data: name → (stage, metric)
    "documents": ("ingest", "documents"), "refused by rules": ("score", "dropped"), "duplicates": ("dedup", "dropped"),
    "documents for training": ("select", "train_documents"), "packed tokens": ("pack", "tokens"),
    "passes over the data": ("train", "epochs"), "tokens trained": ("train", "tokens"),
}  # fmt: skip
NAMES = {"name", "goal", "seed"}  # settings that make no other experiment
POINTS = 5  # rows of the table of a curve


@dataclass(frozen=True)
class Side:
    """One run of a comparison."""

    facts: Facts
    metrics: Mapping[str, Mapping[str, Any]]  # by stage
    digests: Mapping[str, str]  # output digest by stage

    @property
    def run_id(self) -> str:
        """Of the run."""
        return self.facts.record.run_id

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Full name → value of every setting that makes an experiment what it is, where results are concerned."""
        return {name: value for name, value in flat(self.facts.record.config).items() if name not in NAMES}

    @cached_property
    def axes(self) -> dict[str, Floats]:
        """Where every evaluation on the dev side stands, by axis; empty without a training."""
        curve, steps = self.facts.curve, np.array([step for step, _ in self.facts.dev_curve], np.float64)
        if not len(steps):
            return {}
        found = {"steps": steps}
        last = max(float(steps[-1]), 1.0)
        if tokens := self.facts.train.get("tokens_seen"):
            found["tokens"] = steps * (float(tokens) / float(self.facts.train.get("steps") or last))
        if curve is not None and "seconds" in curve.column_names and len(curve):
            at = np.nan_to_num(curve["seconds"].to_numpy(zero_copy_only=False))
            found["seconds"] = np.interp(steps, curve["step"].to_numpy(), np.cumsum(at), left=0.0)
            if watts := self.facts.config.resources.watts:
                found["joules"] = found["seconds"] * watts
        return found

    @property
    def losses(self) -> Floats:
        """Dev loss of every evaluation, nats per token."""
        return np.array([loss for _, loss in self.facts.dev_curve], np.float64)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    name: str  # A, B …
    sides: tuple[Side, ...]

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.name}: {self.sides[0].run_id}" if len(self.sides) == 1 else self.column

    @property
    def column(self) -> str:
        """The same where there is little room: above the column of a table, at a curve."""
        seeds = ", ".join(str(side.facts.record.config.get("seed", 0)) for side in self.sides)
        return self.name if len(self.sides) == 1 else f"{self.name} (seeds {seeds})"


@dataclass(frozen=True)
class Comparison:
    """Everything `millrace compare` shows."""

    groups: tuple[Group, ...]
    runs: SummaryTable
    configuration: SummaryTable
    data: SummaryTable
    scores: SummaryTable
    curves: tuple[SummaryTable, ...]
    remarks: tuple[str, ...]
    html: Path

    @property
    def tables(self) -> tuple[SummaryTable, ...]:
        """In order, without the empty ones."""
        every = (self.runs, self.configuration, self.data, self.scores, *self.curves)
        return tuple(table for table in every if table.rows)


def compare(
    workspace: Workspace, records: Sequence[RunRecord], order: Sequence[str], log: TrainingLog | None = None
) -> Comparison:
    """Put runs side by side and write a page beside the last one's report, `compare-<digest of the run ids>.html`.

    Args:
        workspace: where the artifacts of all of them lie.
        records: two or more runs.
        order: stage names in order of work.
        log: see `write_report`.

    Raises:
        RefusedError: fewer than two different runs.
    """
    records = list({record.run_id: record for record in records}.values())
    if len(records) < 2:
        raise RefusedError("a comparison needs two different runs", fix="`millrace runs` lists them")
    sides = [_side(workspace, record, order, log) for record in records]
    groups = grouped(sides)
    configuration = _configuration(groups)
    named = blake3(" ".join(record.run_id for record in records).encode()).hexdigest(4)
    page = report_folder(workspace, records[-1].run_id) / f"compare-{named}.html"
    made = Comparison(
        groups, _runs(groups), configuration, _data(groups), _scores(groups),
        tuple(_curve(groups, axis) for axis in AXES), tuple(_remarks(groups, order)), page,
    )  # fmt: skip
    pictures = [plots.courses(_courses(groups, axis), label) for axis, label in AXES.items()]
    text = templates().get_template("compare.html.j2").render(comparison=made, pictures=[one for one in pictures if one])
    write_atomic(page, text)
    return made


def _side(workspace: Workspace, record: RunRecord, order: Sequence[str], log: TrainingLog | None) -> Side:
    refs = {name: ref for name in order if (ref := record.ref(name))}
    return Side(
        gather(workspace, record, order, log),
        {name: ref.metrics for name, ref in refs.items()},
        {name: ref.digest for name, ref in refs.items()},
    )


def flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A configuration as full name → value; lists are values."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{before}{name}.")
        else:
            found[before + name] = value
    return found


def grouped(sides: Sequence[Side]) -> tuple[Group, ...]:
    """Runs with the same settings but for the seed are one group; in the order in which they were named."""
    found: list[list[Side]] = []
    for side in sides:
        same = next((group for group in found if group[0].settings == side.settings), None)
        if same is None:
            found.append([side])
        else:
            same.append(side)
    return tuple(Group(_letter(number), tuple(group)) for number, group in enumerate(found))


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"{_letter(number // 26 - 1)}{_letter(number % 26)}"


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): a 95 % interval of the mean by Student's t; of one value, or of equal ones, that value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, mean, mean
    factor = STUDENT[len(values) - 2] if len(values) - 2 < len(STUDENT) else NORMAL
    half = factor * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _shown(values: Sequence[float]) -> str:
    mean, low, high = interval(values)
    return cell(mean) if low == high else f"{cell(mean)} ({cell(low)} to {cell(high)})"


def _range(values: Sequence[float]) -> str:
    """Counts of several seeds: from the least to the most."""
    low, high = min(values), max(values)
    return cell(low) if low == high else f"{cell(low)} to {cell(high)}"


def _columns(groups: Sequence[Group]) -> tuple[str, ...]:
    return tuple(group.column for group in groups)


def _runs(groups: Sequence[Group]) -> SummaryTable:
    every = [(group, side, side.facts.record) for group in groups for side in group.sides]
    rows: Rows = [
        [group.name, side.run_id, record.pipeline, int(record.config.get("seed", 0)), record.outcome,
         round(side.facts.seconds / 60, 2), str(record.verdict.get("outcome", "")), record.goal]
        for group, side, record in every
    ]  # fmt: skip
    return SummaryTable(("group", "run", "pipeline", "seed", "outcome", "minutes", "gate", "goal"), rows, "Runs")


def _configuration(groups: Sequence[Group]) -> SummaryTable:
    settings = [group.sides[0].settings for group in groups]
    names = list(dict.fromkeys(name for one in settings for name in one))
    rows: Rows = [
        [name, *("unset" if (value := one.get(name, _MISSING)) is _MISSING else _text(value) for one in settings)]
        for name in names
        if any(one.get(name, _MISSING) != settings[0].get(name, _MISSING) for one in settings)
    ]
    return SummaryTable(("setting", *_columns(groups)), rows, "Differences of configuration")


_MISSING = object()


def _text(value: Any) -> str:
    return cell(value) if isinstance(value, bool | int | float) else str(value)


def _data(groups: Sequence[Group]) -> SummaryTable:
    rows: Rows = []
    for name, (stage, metric) in COUNTED.items():
        told = [[side.metrics.get(stage, {}).get(metric) for side in group.sides] for group in groups]
        values = [[float(value) for value in one if value is not None] for one in told]
        if any(values):
            rows.append([name, *(_range(one) if one else "none" for one in values)])
    for stage in DATA:
        digests = [sorted({side.digests.get(stage, "none")[:12] for side in group.sides}) for group in groups]
        if any(one != ["none"] for one in digests) and len({tuple(one) for one in digests}) > 1:
            rows.append([f"{stage}, output digest", *(", ".join(one) for one in digests)])
    return SummaryTable(("", *_columns(groups)), rows, "Data")


def _scores(groups: Sequence[Group]) -> SummaryTable:
    rows: Rows = []
    losses = [[float(side.losses[-1]) for side in group.sides if len(side.losses)] for group in groups]
    if any(losses):
        rows.append(["dev loss at the end", *(_shown(one) if one else "none" for one in losses)])
    names = dict.fromkeys(name for group in groups for side in group.sides for name in side.facts.scores if "/" not in name)
    for name in names:
        found = [[side.facts.scores[name] for side in group.sides if name in side.facts.scores] for group in groups]
        rows.append([name, *(_score(one) for one in found)])
    return SummaryTable(("score", *_columns(groups)), rows, "Scores (mean and 95 % interval)")


def _score(found: Sequence[Mapping[str, Any]]) -> str:
    """Over seeds the spread of seeds; of a single run the interval over items, which is another thing and says so."""
    if len(found) == 1:
        return f"{cell(float(found[0]['value']))} ({cell(float(found[0]['low']))} to {cell(float(found[0]['high']))} over items)"
    return _shown([float(one["value"]) for one in found]) if found else "none"


def _reach(groups: Sequence[Group], axis: str) -> tuple[float, float] | None:
    """What all trainings of a comparison have in common on an axis; None: less than two have it, or they share nothing."""
    ends = [side.axes[axis] for group in groups for side in group.sides if axis in side.axes and len(side.axes[axis]) > 1]
    if len(ends) < 2:
        return None
    low, high = max(one[0] for one in ends), min(one[-1] for one in ends)
    return (float(low), float(high)) if high > low else None


def _curve(groups: Sequence[Group], axis: str) -> SummaryTable:
    """Dev loss at equal places of an axis, up to the end of the shortest training; between evaluations by straight lines."""
    reach = _reach(groups, axis)
    if reach is None:
        return SummaryTable((), (), "")
    places = np.linspace(*reach, POINTS + 1)[1:]
    rows: Rows = []
    for place in places:
        values = [
            [float(np.interp(place, side.axes[axis], side.losses)) for side in group.sides if axis in side.axes]
            for group in groups
        ]
        rows.append([float(place), *(_shown(one) if one else "none" for one in values)])
    return SummaryTable((AXES[axis], *_columns(groups)), rows, f"Dev loss at equal {axis} (nats per token)")


def _courses(groups: Sequence[Group], axis: str) -> list[tuple[str, Floats, Floats, Floats, Floats]]:
    """(label, places, mean dev loss, low, high) of every group that has the axis, over what its own runs share."""
    found = []
    for group in groups:
        sides = [side for side in group.sides if axis in side.axes]
        if not sides:
            continue
        end = min(float(side.axes[axis][-1]) for side in sides)
        places = sides[0].axes[axis][sides[0].axes[axis] <= end]
        values = np.array([np.interp(places, side.axes[axis], side.losses) for side in sides])
        mean, low, high = np.array([interval(column.tolist()) for column in values.T]).T
        found.append((group.column, places, mean, low, high))
    return found


def _remarks(groups: Sequence[Group], order: Sequence[str]) -> list[str]:
    """What a reader must know before comparing."""
    sides = [side for group in groups for side in group.sides]
    made = [name for name in order if name != "suites"]  # every run of a version asks the same
    shared = [name for name in made if len({side.digests.get(name, side.run_id) for side in sides}) == 1]
    machines = {str([side.facts.record.machine.get(part, "") for part in ("cpu", "cores", "gpus")]) for side in sides}
    found = []
    if not shared:
        found.append("These runs share nothing: no stage of one has the output of the same stage of another.")
    elif "validate" not in shared:
        found.append(f"The same in all: {', '.join(shared)}.")
    if len({side.digests.get("split", "") for side in sides}) > 1:
        found.append("They were not held out against the same text: dev losses and test scores are of different documents.")
    if (
        len({side.metrics.get("pack", {}).get("bits_per_token") for side in sides}) > 1
        or len({side.facts.train.get("vocabulary_size") for side in sides}) > 1
    ):
        found.append("Their tokenizers may differ: nats per token are not comparable between tokenizers, bits per byte are.")
    if len(machines) > 1:
        found.append("They ran on different machines: seconds and joules are of those.")
    if not any(side.facts.config.resources.watts for side in sides):
        found.append("No curve over joules: resources.watts is not set.")
    found += [f"{side.run_id}: {', '.join(side.facts.missing)}." for side in sides if side.facts.missing]
    return found
