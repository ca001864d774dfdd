"""A plan in advance: what the stage `plan` would write, without training, and without data where its size is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.config.window import deadline
from pipeline_lib.errors import NotFoundError, RefusedError
from pipeline_lib.memory.keep import caught_up
from pipeline_lib.planning.earlier import earlier_ends
from pipeline_lib.planning.foreseen import Foreseen, data_seconds
from pipeline_lib.planning.graded import coverage
from pipeline_lib.planning.plan import after_training, compose
from pipeline_lib.planning.profiles import choose_profile
from pipeline_lib.planning.window import Window
from pipeline_lib.run import lent, selection
from pipeline_lib.stages import BY_NAME, STAGES
from pipeline_lib.status import status
from pipeline_lib.training.start import real_numbers
from pipeline_lib.tuning.tune import search_seconds
from pipeline_lib.workspace.machine import machine_identity
from pipeline_lib.workspace.resolve import resolve
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.services import Services, now
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

UNSEARCHED: Mapping[str, Any] = {"best": {}, "curve": []}


@dataclass(frozen=True)
class Documents:
    """Data that is not there yet, by its size."""

    count: int
    tokens_each: float


def preview(workspace: Workspace, config: PipelineConfig, *, documents: Documents | None = None) -> dict[str, Any]:
    """The plan of a run that would start now: calibrated here (reused where this machine and model are known), nothing trained.

    Args:
        workspace: whose calibrations, memory and data count.
        config: of the run.
        documents: the size of the data; None: the packed data of the newest run.

    Returns:
        The details of the stage `plan` (pipeline_lib/planning/README.md), `data`: where its size comes from, and `reading`: where
        the seconds of reading and packing it come from. The first part of the window is split into these and the search's share.

    Raises:
        NotFoundError: there is no packed data, and no size was named.
        RefusedError: window, memory or money do not allow it; the fix names the nearest plan that would.
        ConfigError: the window does not mean one moment, or is over.
    """
    started = now()
    end = deadline(config.resources, started)
    resolved, _ = resolve(config, workspace)
    data, digest, whence = _data(workspace, resolved, documents)
    ref = execute(workspace, BY_NAME["calibrate"], resolved, {}, services=Services(started=started, deadline=end))
    calibrated = workspace.store.artifact(ref.key).details
    real, rows = real_numbers(resolved.model, data["vocabulary_size"], workspace.store.artifact)
    past = list(RunBook(workspace.runs_folder).all())
    foreseen = _foreseen(workspace, resolved, past, documents=documents, tokens=sum(data["tokens"].values()))
    window, search = _window(workspace, resolved, past, length=end - started, calibrated=calibrated, reading=foreseen.seconds)
    details = compose(
        data,
        calibrated,
        UNSEARCHED,
        window,
        profile=choose_profile(calibrated, resolved.resources, profile=resolved.plan.profile, priority=resolved.plan.priority),
        plan=resolved.plan,
        train=resolved.train,
        resources=resolved.resources,
        model=resolved.model,
        real=real,
        rows=rows,
        kept=coverage(past),
        earlier=earlier_ends(caught_up(workspace), resolved.model, resolved.train, data=data, digest=digest),
    )
    before = [["reading and packing data", foreseen.seconds], ["search", search]]
    parts = [[part, round(seconds, 3)] for part, seconds in (*before, *details["window"]) if part != "spent before the plan"]
    return {**details, "window": parts, "data": whence, "reading": foreseen.basis}


def _foreseen(
    workspace: Workspace, config: PipelineConfig, past: Sequence[RunRecord], *, documents: Documents | None, tokens: float
) -> Foreseen:
    """Seconds until the data is packed: none where it is; all stages' where it is only named."""
    reading = [stage.name for stage in STAGES[: [stage.name for stage in STAGES].index("calibrate")]]
    if not documents:
        runs = {one.stage for one in status(workspace, config) if one.runs}
        reading = [name for name in reading if name in runs]
    cpu, count = machine_identity()["cpu"], float(documents.count) if documents else None
    return data_seconds(reading, past, cpu=cpu, documents=count, tokens=tokens)


def _window(
    workspace: Workspace,
    config: PipelineConfig,
    past: Sequence[RunRecord],
    *,
    length: timedelta,
    calibrated: Mapping[str, Any],
    reading: float,
) -> tuple[Window, float]:
    """The window with what a run spends before it plans, and the search's part of that; the calibration is made already."""
    total = length.total_seconds()
    begun = now()
    at_search = Services(clock=lambda: begun + timedelta(seconds=reading), started=begun, deadline=begun + length)
    search = search_seconds(at_search, config.resources) or 0.0 if config.tune.trials else 0.0
    after = after_training(
        calibrated, workspace, past, language_tokens=config.validation.language_tokens, level=config.suites.level
    )
    window = Window(
        total=total,
        spent=reading + search,
        margin=config.resources.margin_minutes * 60,
        after=after,
        start_up=float(calibrated["build_seconds"]) + float(calibrated["import_seconds"]),
    )
    return window, search


def _data(workspace: Workspace, config: PipelineConfig, documents: Documents | None) -> tuple[Mapping[str, Any], str, str]:
    """What `fill_gaps` says or would say, the digest of its output (none of named data), and where it is from, in words."""
    if documents:
        return _sized(config, documents), "", f"{documents.count:,} documents of {documents.tokens_each:,.0f} tokens"
    try:
        refs = lent(workspace, selection(from_stage="calibrate"))
    except NotFoundError as error:
        raise NotFoundError(
            f"there is no packed data to plan for ({error.what})",
            where="millrace plan",
            fix="name its size: --documents 8000 --tokens-per-document 500, or pack it: `millrace run --until fill_gaps`",
        ) from None
    data = workspace.store.artifact(refs["fill_gaps"].key).details
    tokens = data["tokens"]["train"]
    return data, refs["fill_gaps"].digest, f"{tokens:,} tokens to learn from, {_lender(workspace, config, refs['fill_gaps'].key)}"


def _lender(workspace: Workspace, config: PipelineConfig, key: str) -> str:
    """Whose packed data it is, and whether this pipeline reads the same."""
    runs = reversed(list(RunBook(workspace.runs_folder).all()))
    owner = next(run for run in runs if (ref := run.ref("fill_gaps")) and ref.key == key)
    same = owner.config.get("ingest", {}).get("sources") == config.model_dump(mode="json")["ingest"]["sources"]
    return f"packed by run {owner.run_id} ({owner.pipeline})" + ("" if same else ", from other sources than this pipeline's")


def _sized(config: PipelineConfig, documents: Documents) -> dict[str, Any]:
    """What `fill_gaps` would say of so much text; full sequences are assumed (packing fills 99 % of them)."""
    length = config.pack.sequence_length
    total = documents.count * documents.tokens_each
    shares = {"dev": config.split.dev_share, "test": config.split.test_share}
    shares["train"] = 1 - sum(shares.values())
    sequences = {side: int(share * total // length) for side, share in shares.items()}
    if sequences["train"] < 1:
        raise RefusedError(
            f"{total:,.0f} tokens are less than one sequence of {length}",
            where="--documents",
            fix=f"at least {int(2 * length / max(documents.tokens_each, 1)) + 1} documents of that size",
        )
    return {
        "sequence_length": length,
        "vocabulary_size": config.tokenizer.vocabulary_size,
        "sequences": sequences | {"dev": max(sequences["dev"], 1)},
        "tokens": {side: int(share * total) for side, share in shares.items()},
    }
