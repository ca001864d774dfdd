"""The whole pipeline, as one line."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.life import ending, living, nothing_new, settle
from flows.options import RunOptions
from pipeline_lib.config.pipeline import PipelineConfig
from tasks.live import LiveRun
from tasks.stages import (
    Ref,
    calibrate,
    dedup,
    fill_gaps,
    ingest,
    pack,
    plan,
    score,
    select,
    split,
    suites,
    train,
    tune,
    validate,
)

DEFAULTS = PipelineConfig()
NO_OPTIONS = RunOptions()


@flow(name="pipeline", flow_run_name="pipeline {config.name}", validate_parameters=True, persist_result=False)
def pipeline(config: PipelineConfig = DEFAULTS, options: RunOptions = NO_OPTIONS) -> State[Any]:
    """From text to a validated, registered model, or a clear report why not.

    Args:
        config: What is read, how it is filtered, what is trained, within which window.
        options: Which stages, what again, on whose data.
    """
    with living(config, options) as run:
        whole_line(run, may_stop=not (options.parent or options.force))
    return ending(run)


def whole_line(run: LiveRun, *, may_stop: bool = True) -> None:
    """Data, training, decision. A run that continues the last selection ends where nothing is new."""
    items, documents, chosen = choosing_line(run)
    if may_stop and nothing_new(run):
        run.outcome = "nothing_new"
        return
    packed, chunks = packing_line(run, documents, chosen)
    training_line(run, items=items, documents=documents, chosen=chosen, packed=packed, chunks=chunks)
    settle(run)


def choosing_line(run: LiveRun) -> tuple[Ref, Ref, Ref]:
    """suites · ingest → score → dedup → split → select."""
    items = suites(run)
    documents = ingest(run)
    signals = score(run, documents)
    clusters = dedup(run, documents, signals, items)
    sides = split(run, documents, clusters)
    return items, documents, select(run, documents, signals, clusters, sides)


def packing_line(run: LiveRun, documents: Ref, chosen: Ref) -> tuple[Ref, Ref]:
    """→ pack → fill_gaps."""
    packed = pack(run, documents, chosen)
    return packed, fill_gaps(run, documents, chosen, packed)


def training_line(
    run: LiveRun, *, items: Ref = None, documents: Ref = None, chosen: Ref = None, packed: Ref = None, chunks: Ref = None
) -> None:
    """→ calibrate → tune → plan → train → validate (→ report, written at the end of every run)."""
    speeds = calibrate(run)
    best = tune(run, chunks, packed, speeds)
    schedule = plan(run, chunks, speeds, best)
    model = train(run, chunks, packed, schedule)
    validate(run, items, documents, chosen, model)
