"""A look at a training: where it stands, what it measures, what it uses, when it will be over."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil

from flows.api.jobs import Job
from flows.api.results import Monitored, finite
from pipeline_lib.memory.hot import Hot
from pipeline_lib.metrics import training_log
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace

MONITORED = ("loss", "accuracy", "learning_rate", "training_speed", "resource_usage", "estimated_completion")
MEASURED = {"loss": "loss", "learning_rate": "lr", "training_speed": "tokens_per_second"}  # metric → column of `steps`
LATEST_EVENTS = 20


def look(workspace: Workspace, job: Job, wanted: Sequence[str], *, rows: int) -> Monitored:
    """How a training stands now.

    Args:
        workspace: where it works.
        job: the training.
        wanted: of `MONITORED`.
        rows: latest steps and events that are read.
    """
    record = job.record(workspace)
    if record is None:
        if job.alive():
            return Monitored("", id=job.id, state="starting")
        return Monitored("", id=job.id, state="failed", notes=(str(job.failure()),))
    hot = Hot(record, lambda run, table: training_log(workspace, run, table), rows)
    steps, planned, over = hot.steps(), _planned_steps(workspace, record), record.outcome != "running"
    last = steps[-1] if steps else {}
    done = min(last.get("step", 0) / planned, 1.0) if planned else 0.0
    current = {name: finite(last.get(MEASURED[name])) for name in wanted if name in MEASURED}
    notes: tuple[str, ...] = ()
    if "accuracy" in wanted:
        current["accuracy"] = finite(hot.last("evaluated").get("accuracy"))
        if current["accuracy"] is None:
            notes = ("accuracy is measured at evaluations: there was none yet",)
    return Monitored(
        record.run_id, record.report, notes,
        id=job.id,
        state="killed" if not over and not job.alive() else record.outcome,
        stage=next((name for name, stage in record.stages.items() if stage.state == "running"), ""),
        progress=1.0 if record.outcome in {"completed", "nothing_new"} else done,
        current_metrics={name: current[name] for name in wanted if name in current},
        estimated_completion="" if over or "estimated_completion" not in wanted else _completion(record, steps, planned),
        resource_utilization=_usage(job, last) if "resource_usage" in wanted else {},
        events=hot.events()[-LATEST_EVENTS:],
    )  # fmt: skip


def _planned_steps(workspace: Workspace, record: RunRecord) -> int:
    plan = record.ref("plan")
    return int(workspace.artifact(plan.key).details["steps"]) if plan else 0


def _completion(record: RunRecord, steps: Sequence[Mapping[str, Any]], planned: int) -> str:
    """When the training will be over: by its speed once it goes, before that by the window of the run."""
    if steps and planned:
        each = statistics.median(step["seconds"] for step in steps)
        return (datetime.now(UTC) + timedelta(seconds=each * max(planned - steps[-1]["step"], 0))).isoformat()
    return record.deadline


def _usage(job: Job, last: Mapping[str, Any]) -> dict[str, float | None]:
    """Memory of the job's processes now, and what the training last read off the device."""
    memory = 0.0
    if job.alive():
        try:
            process = psutil.Process(job.pid)
            memory = float(sum(one.memory_info().rss for one in [process, *process.children(recursive=True)]))
        except psutil.Error:
            memory = 0.0
    return {
        "process_memory_bytes": memory, "training_memory_bytes": finite(last.get("memory_bytes")),
        "utilisation": finite(last.get("utilisation")), "temperature": finite(last.get("temperature")),
    }  # fmt: skip
