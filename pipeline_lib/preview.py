"""A plan in advance: what the stage `plan` would write, without training, and without data where its size is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.config.window import deadline
from pipeline_lib.errors import NotFoundError, RefusedError
from pipeline_lib.planning.graded import coverage
from pipeline_lib.planning.plan import after_training, compose
from pipeline_lib.planning.profiles import choose_profile
from pipeline_lib.planning.window import Window
from pipeline_lib.run import lent, selection
from pipeline_lib.stages import BY_NAME
from pipeline_lib.training.start import real_numbers
from pipeline_lib.workspace.resolve import resolve
from pipeline_lib.workspace.runs import RunBook
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
        The details of the stage `plan` (pipeline_lib/planning/README.md), and `data`: where its size comes from.

    Raises:
        NotFoundError: there is no packed data, and no size was named.
        RefusedError: window, memory or money do not allow it; the fix names the nearest plan that would.
        ConfigError: the window does not mean one moment, or is over.
    """
    started = now()
    end = deadline(config.resources, started)
    resolved, _ = resolve(config, workspace)
    data, tuned, whence = _data(workspace, resolved, documents)
    ref = execute(workspace, BY_NAME["calibrate"], resolved, {}, services=Services(started=started, deadline=end))
    calibrated = workspace.store.artifact(ref.key).details
    real, rows = real_numbers(resolved.model, data["vocabulary_size"], workspace.store.artifact)
    details = compose(
        data,
        calibrated,
        tuned,
        _window(workspace, resolved, end - started, calibrated),
        profile=choose_profile(calibrated, resolved.resources, profile=resolved.plan.profile, priority=resolved.plan.priority),
        plan=resolved.plan,
        train=resolved.train,
        resources=resolved.resources,
        model=resolved.model,
        real=real,
        rows=rows,
        kept=coverage(RunBook(workspace.runs_folder).all()),
    )
    return {**details, "data": whence}


def _window(workspace: Workspace, config: PipelineConfig, length: timedelta, calibrated: Mapping[str, Any]) -> Window:
    """The window with what a run spends before it plans: calibration and the search's share. Reading the data is not foreseen."""
    total, past = length.total_seconds(), RunBook(workspace.runs_folder).all()
    search = config.resources.search_share * total if config.tune.trials else 0.0
    after, estimated = after_training(
        calibrated, workspace, past, language_tokens=config.validation.language_tokens, level=config.suites.level
    )
    return Window(
        total=total,
        spent=search + config.calibrate.seconds,
        margin=config.resources.margin_minutes * 60,
        after_training=after,
        start_up=float(calibrated["build_seconds"]) + float(calibrated["import_seconds"]),
        after_estimated=estimated,
    )


def _data(
    workspace: Workspace, config: PipelineConfig, documents: Documents | None
) -> tuple[Mapping[str, Any], Mapping[str, Any], str]:
    if documents:
        return _sized(config, documents), UNSEARCHED, f"{documents.count:,} documents of {documents.tokens_each:,.0f} tokens"
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
    return data, UNSEARCHED, f"the packed data here: {tokens:,} tokens to learn from"


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
