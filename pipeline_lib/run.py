"""A run from start to end, without any server: open the record, step through the table of stages, close the record.

Flows call the same three functions (`open_run`, `step`, `close_run`) from Prefect tasks; `run_plain` is the loop without Prefect.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.config.window import deadline
from pipeline_lib.stages import BY_NAME, STAGES
from pipeline_lib.workspace.artifact import ArtifactRef
from pipeline_lib.workspace.identity import fingerprint_of
from pipeline_lib.workspace.machine import machine_identity
from pipeline_lib.workspace.resolve import resolve
from pipeline_lib.workspace.runs import RunBook, RunRecord, new_run_id, this_attempt
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace


def open_run(workspace: Workspace, config: PipelineConfig, *, parent: str = "", started: datetime | None = None) -> RunRecord:
    """Start a run: mutable names are resolved, the deadline is fixed, the record is written."""
    started = started or datetime.now(UTC)
    resolved_config, resolved = resolve(config, workspace)
    record = RunRecord(
        run_id=new_run_id(),
        pipeline=config.name,
        goal=config.goal,
        config=resolved_config.model_dump(mode="json"),
        config_digest=fingerprint_of(resolved_config.model_dump(mode="json")),
        resolved=resolved,
        parent=parent,
        started=started.isoformat(),
        deadline=deadline(config.resources, started).isoformat(),
        attempts=[this_attempt()],
        machine=machine_identity(),
    )
    RunBook(workspace.runs_folder).save(record)
    return record


def step(
    workspace: Workspace,
    record: RunRecord,
    name: str,
    *,
    services: Services,
    force: bool = False,
    wait: bool = True,
) -> ArtifactRef:
    """Reuse or run one stage of a run and write what happened into the record."""
    book, stage, entry = RunBook(workspace.runs_folder), BY_NAME[name], record.stage(name)
    config = PipelineConfig.model_validate(record.config)
    inputs = {}
    for needed in stage.reads:
        ref = record.ref(needed)
        if ref is None:
            raise RuntimeError(f"{name} needs {needed}, which has not run")
        inputs[needed] = ref
    entry.state, entry.attempt, entry.error = "running", len(record.attempts), ""
    book.save(record)
    begin = time.monotonic()
    timed = replace(
        services,
        started=datetime.fromisoformat(record.started),
        deadline=datetime.fromisoformat(record.deadline) if record.deadline else None,
    )
    try:
        ref = execute(workspace, stage, config, inputs, services=timed, force=force, wait=wait)
    except BaseException as error:
        entry.state, entry.error = "failed", str(error) or type(error).__name__
        entry.seconds = round(time.monotonic() - begin, 3)
        book.save(record)
        raise
    entry.state, entry.ref = "reused" if ref.reused else "made", ref.to_json()
    entry.seconds = round(time.monotonic() - begin, 3)
    book.save(record)
    return ref


def close_run(workspace: Workspace, record: RunRecord, outcome: str, *, error: str = "") -> RunRecord:
    """End a run with its true outcome."""
    record.outcome, record.error, record.ended = outcome, error, datetime.now(UTC).isoformat()
    if record.attempts:
        record.attempts[-1].ended, record.attempts[-1].state = record.ended, outcome
    RunBook(workspace.runs_folder).save(record)
    return record


def run_plain(
    workspace: Workspace,
    config: PipelineConfig,
    *,
    services: Services | None = None,
    until: str = "",
    force: Collection[str] = (),
) -> RunRecord:
    """The whole pipeline as a plain loop, for tests, benchmarks and people's own scripts."""
    services = services or Services()
    record = open_run(workspace, config)
    try:
        for stage in STAGES:
            step(workspace, record, stage.name, services=services, force=stage.name in force)
            if stage.name == until:
                break
    except BaseException as error:
        close_run(workspace, record, "failed", error=str(error))
        raise
    return close_run(workspace, record, "completed")
