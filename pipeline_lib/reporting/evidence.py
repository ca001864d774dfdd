"""What the analysis of a run looks at: the numbers of its training, and what its stages said, as plain values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.tables.schemas import EVENTS, LAYERS, STEPS
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.runs import RunRecord

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Event:
    """A row of the table `events`."""

    step: int
    kind: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class Schedule:
    """The course of the learning rate that was in effect: warm-up, then until `decay_start` the top, in optimizer steps."""

    kind: str = ""
    warmup: int = 0
    decay_start: int = 0
    steps: int = 0


@dataclass(frozen=True)
class Evidence:
    """Everything optional: a run that failed early leaves little. Arrays have one entry a step that counts, in order of steps."""

    config: PipelineConfig
    record: RunRecord
    steps: Floats = field(default_factory=lambda: np.empty(0))  # optimizer step
    loss: Floats = field(default_factory=lambda: np.empty(0))  # nats per token
    rate: Floats = field(default_factory=lambda: np.empty(0))  # learning rate
    norm: Floats = field(default_factory=lambda: np.empty(0))  # of the gradient, before clipping
    seconds: Floats = field(default_factory=lambda: np.empty(0))
    waited: Floats = field(default_factory=lambda: np.empty(0))  # share of the step spent waiting for data
    speed: Floats = field(default_factory=lambda: np.empty(0))  # tokens/s
    again_seconds: float = 0.0  # spent on steps that were made again later
    again_steps: int = 0
    dev: Sequence[tuple[int, float]] = ()  # (step, dev loss)
    events: Sequence[Event] = ()
    layers: Sequence[Mapping[str, Any]] = ()  # rows of `layers`
    parts: Sequence[Mapping[str, Any]] = ()  # dev losses by source and domain
    schedule: Schedule = Schedule()
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by stage
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by stage
    took: Mapping[str, float] = field(default_factory=dict)  # seconds of work by stage, of those made in this run
    overlap: tuple[int, int] | None = None  # test documents that the training text contains, of those searched
    repeated: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # source → (dropped as duplicates, documents)

    def metric(self, stage: str, name: str, missing: float = 0.0) -> float:
        """A stage's metric, or `missing`."""
        value = self.metrics.get(stage, {}).get(name, missing)
        return float(value) if isinstance(value, int | float) else missing

    @property
    def constant(self) -> NDArray[np.bool_]:
        """The steps at the schedule's top; with a schedule without one, those after the warm-up."""
        after = self.steps > self.schedule.warmup
        has_top = self.schedule.kind == "wsd" and self.schedule.decay_start > self.schedule.warmup
        return after & (self.steps <= self.schedule.decay_start) if has_top else after

    def said(self, *kinds: str) -> list[Event]:
        """The events of some kinds."""
        return [event for event in self.events if event.kind in kinds]


def read_training(tables: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Fields of `Evidence` from the tables of a training's log, those that were made again left out."""
    steps = tables.get("steps", STEPS.empty_table())
    gone = np.nan_to_num(_column(steps, "superseded")) > 0
    order = np.argsort(_column(steps, "step")[~gone], kind="stable")

    def column(name: str) -> Floats:
        return _column(steps, name)[~gone][order]

    events = tables.get("events", EVENTS.empty_table()).to_pylist()
    layers = [row for row in tables.get("layers", LAYERS.empty_table()).to_pylist() if not row.get("superseded")]
    return {
        "steps": column("step"), "loss": column("loss"), "rate": column("lr"), "norm": column("grad_norm"),
        "seconds": column("seconds"), "waited": np.nan_to_num(column("data_wait")), "speed": column("tokens_per_second"),
        "again_seconds": float(np.nansum(_column(steps, "seconds")[gone])), "again_steps": int(gone.sum()),
        "events": [Event(int(row["step"]), row["kind"], json.loads(row["detail"])) for row in events],
        "layers": layers,
    }  # fmt: skip


def _column(table: pa.Table, name: str) -> Floats:
    if name not in table.column_names:  # a log of an earlier version
        return np.full(len(table), np.nan)
    return np.asarray(table[name].cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def training_tables(train: Artifact) -> dict[str, pa.Table]:
    """The log of a `train` artifact that the analysis reads."""
    places = {entry.path: train.place(entry) for entry in train.manifest.files if entry.table == "observed"}
    return {
        name: read_tables([Path(place)])
        for name in ("steps", "events", "layers")
        if (place := places.get(f"observed/{name}.parquet"))
    }


def schedule_of(train: Mapping[str, Any], plan: Mapping[str, Any]) -> Schedule:
    """The schedule in effect, or where the training did not end the planned one."""
    if told := train.get("schedule"):
        return Schedule(str(told.get("kind", "")), int(told["warmup_steps"]), int(told["decay_start"]), int(told["total_steps"]))
    if not plan:
        return Schedule()
    total = int(plan["steps"])
    return Schedule(str(plan.get("schedule", "")), int(plan["warmup_steps"]), total - int(plan.get("decay_steps", 0)), total)


def finite(values: Floats) -> Floats:
    """Without what is not a number."""
    return values[np.isfinite(values)]


def usual(values: Floats) -> float:
    """The median; 0 of nothing."""
    kept = finite(values)
    return float(np.median(kept)) if len(kept) else 0.0


def percent(share: float) -> str:
    """`12 %`, `1.3 %`, `0.04 %`."""
    value = 100 * share
    if not math.isfinite(value):
        return "unknown"
    return f"{value:.0f} %" if abs(value) >= 10 else f"{value:.2g} %"
