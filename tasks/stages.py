"""Every stage as a Prefect task: open a stage run, let `pipeline_lib` do it, show what came out.

A task never returns data, only the small `ArtifactRef`. Prefect's own caching and result storage are off: its keys know
neither helpers nor file contents, the artifact store's do. A stage whose artifact is there ends as `Completed(name="Reused")`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, cast
from uuid import UUID

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from pipeline_lib.run import step
from pipeline_lib.stages import BY_NAME
from pipeline_lib.terminal import clean
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.services import Progress, Services
from pipeline_lib.workspace.stage import look, parameters_of, recipe_fingerprint
from tasks.announce import Announcer
from tasks.live import EMBEDDED, LiveRun
from tasks.show import show_summary
from tasks.transient import should_retry

WARNING = "WARNING: "  # how a stage begins a line that somebody should see
TRAINING_LIMIT = "millrace-training"  # a global concurrency limit of the server, made by `millrace up`

Ref = dict[str, Any] | None
StageTask = Callable[..., Ref]


def _will_work(run: LiveRun, name: str) -> bool:
    """Whether a stage will do work, not just find its artifact: a reused training must not wait for another run's training."""
    stage = BY_NAME[name]
    refs = {needed: run.record.ref(needed) for needed in stage.reads}
    if name in run.force or not all(refs.values()):
        return True
    manifests = {needed: run.workspace.store.manifest(ref.key) for needed, ref in refs.items() if ref}
    fingerprint = recipe_fingerprint(stage, parameters_of(stage, run.config, run.workspace)[1], manifests)
    return look(run.workspace, stage, fingerprint).artifact is None


def finished(record: RunRecord, name: str) -> Progress:
    """The last line of a stage: its unit is `stage`, its note says what happened."""
    entry = record.stages[name]
    return Progress(name, 1, 1, "stage", "reused" if entry.state == "reused" else f"{entry.state} in {entry.seconds:.1f} s")


def _leave_if_cancelled() -> None:
    """A cancellation that came before this process could be told of it: the server knows, so look before each stage.

    Raises:
        KeyboardInterrupt: the flow run is being cancelled, or is over already.
    """
    mine = flow_run.get_id()
    if not mine or EMBEDDED in os.environ:
        return
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(mine)).state
    if state is not None and (state.is_cancelling() or state.is_final()):
        raise KeyboardInterrupt


def stage_task(name: str, *, tags: tuple[str, ...], alone: bool = False) -> StageTask:
    """Make the task of a stage.

    Args:
        name: the stage.
        tags: Prefect tags, to filter by.
        alone: uses the whole machine; only one such task runs at a time, in the workspace and on the server.

    Returns:
        `task(run, *upstream)`: the upstream refs only draw the edges of Prefect's graph, the record is what counts. A stage
        that is not wanted of this run is passed by without a task.
    """

    @task(
        name=name,
        task_run_name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=3,
        retry_delay_seconds=exponential_backoff(2),
        retry_jitter_factor=0.5,
        retry_condition_fn=should_retry,
    )
    def run_stage(run: LiveRun, *upstream: Ref) -> Any:
        logger = get_run_logger()
        _leave_if_cancelled()
        announcer = Announcer(logger.info, run.services.announce)
        services: Services = replace(run.services, log=partial(_log, logger), announce=announcer)
        with ExitStack() as held:
            if alone and _will_work(run, name):
                held.enter_context(run.workspace.lease("training", wait=run.wait, log=logger.info))
                if EMBEDDED not in os.environ:
                    held.enter_context(concurrency(TRAINING_LIMIT, occupy=1))
            ref = step(run.workspace, run.record, name, services=services, force=name in run.force, wait=run.wait)
        announcer.finish()
        run.services.announce(finished(run.record, name))
        show_summary(run.workspace.store.manifest(ref.key), ref)
        return Completed(name="Reused" if ref.reused else "Completed", message=ref.key, data=ref.to_json())

    def call(run: LiveRun, *upstream: Ref) -> Ref:
        if name not in run.wanted:
            entry = run.record.stages.get(name)
            return entry.ref if entry else None
        # Prefect asks its server for a slot for every tag: half a second a stage, where nobody will filter by them.
        shown_as = () if EMBEDDED in os.environ else ("millrace", *tags)
        return cast(Ref, run_stage.with_options(timeout_seconds=run.timeout_seconds(), tags=shown_as)(run, *upstream))

    return call


def _log(logger: logging.Logger | logging.LoggerAdapter[Any], line: str) -> None:
    """A line of a stage; what it warns of is seen in a terminal, too, so names from data must not steer one."""
    logger.log(logging.WARNING if line.startswith(WARNING) else logging.INFO, clean(line.removeprefix(WARNING)))


suites = stage_task("suites", tags=("data",))
ingest = stage_task("ingest", tags=("data",))
score = stage_task("score", tags=("data",))
dedup = stage_task("dedup", tags=("data",))
split = stage_task("split", tags=("data",))
select = stage_task("select", tags=("data",))
pack = stage_task("pack", tags=("data",))
fill_gaps = stage_task("fill_gaps", tags=("data",))
calibrate = stage_task("calibrate", tags=("training",), alone=True)  # another training beside it would spoil what it measures
tune = stage_task("tune", tags=("training",), alone=True)
plan = stage_task("plan", tags=("training",))
train = stage_task("train", tags=("training",), alone=True)
validate = stage_task("validate", tags=("training",))
