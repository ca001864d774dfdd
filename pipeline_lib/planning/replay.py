"""How a training's schedule was changed while it ran, from its events: with these changes at their steps it can be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.errors import ConfigError
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.training.hooks import CONTINUE, Decision
from pipeline_lib.workspace.files import read_json
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace

BEGINNINGS = ("resumed", "forked", "evaluated")  # of an attempt; a new one evaluates before its first step


def course_of(workspace: Workspace, record: RunRecord) -> list[dict[str, Any]] | None:
    """The changes of a run's schedule; what a kill undid is not among them.

    Returns:
        [{"step": after so many, "decision": kind of the `Decision`, "total_steps", "decay_start": of the schedule from then on}],
        by step; None when the run has no finished training.

    Raises:
        DamagedError: the training's log is not what was committed.
    """
    train = record.ref("train")
    if train is None or not workspace.store.has(train.key):
        return None
    artifact = workspace.artifact(train.key)
    if not any(entry.table == "observed" for entry in artifact.manifest.files):
        return None
    log = [path for path in artifact.files("observed") if path.name == "events.parquet"]
    if not log:
        return None
    course: list[dict[str, Any]] = []
    events = read_tables(log)
    for event in events.filter(pc.is_in(events["kind"], pa.array(["schedule_changed", *BEGINNINGS]))).to_pylist():
        if event["kind"] != "schedule_changed":
            if event["kind"] != "evaluated" or not event["step"]:
                course = [change for change in course if change["step"] <= event["step"]]
            continue
        detail = json.loads(event["detail"])
        course.append(_change(event["step"], detail["decision"], detail["total_steps"][1], detail["decay_start"][1]))
    return course


def exported_course(path: Path) -> list[dict[str, Any]] | None:
    """What `course_of` found, from a file that `millrace show RUN --recorded` printed; None where it holds none.

    Raises:
        ConfigError: the file is not an export.
    """
    try:
        course = read_json(path).get("course")
        return course and [_change(c["step"], c["decision"], c["total_steps"], c["decay_start"]) for c in course]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"not an export of recorded stages ({error!r})", where=str(path)) from error


def decision_at(change: Mapping[str, Any] | None) -> Decision:
    """What a controller said then; nothing without a change."""
    if change is None:
        return CONTINUE
    step, total, kind = int(change["step"]), int(change["total_steps"]), change["decision"]
    why = "as in the recorded run"
    if kind == "start_decay":
        return Decision(kind="start_decay", decay_steps=total - step, reason=why)
    if kind == "stop":
        return Decision(kind="stop", reason=why)
    return Decision(kind="replan", total_steps=total, decay_start=int(change["decay_start"]), reason=why)


def _change(step: Any, decision: Any, total_steps: Any, decay_start: Any) -> dict[str, Any]:
    if decision not in ("replan", "start_decay", "stop"):
        raise ValueError(f"{decision!r} is no change of a schedule")
    return {"step": int(step), "decision": decision, "total_steps": int(total_steps), "decay_start": int(decay_start)}
