"""What a training that is over leaves: the model, checkpoints to go on from, its log, and what the run is told of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipeline_lib.hardware.machine import peak_memory_bytes
from pipeline_lib.training.callbacks import DevLoss
from pipeline_lib.training.checkpoints import Retention, committed, kept, publish_checkpoint, record_of
from pipeline_lib.training.export import publish_model
from pipeline_lib.training.journal import publish
from pipeline_lib.training.loop import Session
from pipeline_lib.training.material import Material
from pipeline_lib.training.model import count_parameters
from pipeline_lib.training.monitor import Monitor
from pipeline_lib.training.watch import evaluations_in
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.stage import Outcome, StageRun

POINTS = 10  # of the dev curve in the summary


def publish_training(
    run: StageRun, session: Session, merged: Callable[..., Any], material: Material, *, checkpoints: Path, retention: Retention
) -> None:
    """Model (read back and compared), adapter, last checkpoint, log.

    Args:
        run: where it goes.
        session: the training, finished.
        merged: `model.adapt`'s second result.
        material: what it was trained on.
        checkpoints: folder of the committed ones.
        retention: which of them are kept for more than their newness.

    Raises:
        StageFailedError: the exported model is not the trained one.
    """
    inputs = {name: material.dev[0][name][:1].to(session.device) for name in ("input_ids", "position_ids")}
    folder, adapter = run.path("model", "config.json").parent, run.out / "adapter"
    publish_model(session.model, merged, material.tokenizer_files, inputs, folder=folder, adapter=adapter)
    _publish_checkpoints(run, checkpoints, retention)
    publish(run.keep("journal"), run.observed)


def _publish_checkpoints(run: StageRun, checkpoints: Path, retention: Retention) -> None:
    """The last one, promised; and beside it, to go on from, the others that are not kept for their newness alone."""
    *earlier, last = committed(checkpoints)
    publish_checkpoint(last, lambda name: run.path("checkpoints", name))
    reasons = kept([record for folder in (*earlier, last) if (record := record_of(folder))], retention)
    for folder in earlier:
        if reasons.get(int(folder.name.partition("-")[2]), "newest") != "newest":
            publish_checkpoint(folder, partial(_observed_checkpoint, run, folder.name))


def _observed_checkpoint(run: StageRun, folder: str, name: str) -> Path:
    return run.observed(f"checkpoints/{folder}/{name}")


def outcome_of(session: Session, monitor: Monitor, dev_loss: DevLoss, material: Material, *, start: str, log: Path) -> Outcome:
    """Metrics, details and summary of a finished training.

    Args:
        session, monitor, dev_loss: as they are at the end.
        material: what was trained on.
        start: where the model started from.
        log: the journal's folder.
    """
    plan, rate, last, vocabulary = session.plan, monitor.tokens_per_second, dev_loss.now(), material.vocabulary
    tokens = session.step * plan.batch_sequences * material.length
    details: dict[str, Any] = {
        "steps": session.step,
        "dev_loss": last,
        "parameters": count_parameters(session.model),
        "vocabulary_size": vocabulary,
        "sequence_length": material.length,
        "tokens_seen": tokens,
        "start": start,
        "dev_curve": dev_loss.curve,
        "schedule": session.schedule.to_json(),
        "isolation": session.isolation.to_json(),
    }
    metrics = {
        "dev_loss": last,
        "first_dev_loss": dev_loss.curve[0][1],
        "perplexity": math.exp(min(last, 700.0)),
        "dev_loss_of_uniform": last / math.log(vocabulary),
        "tokens_per_second": rate,
        "mfu": rate * monitor.flops_per_token / monitor.peak.flops,
        "mfu_peak_flops": monitor.peak.flops,
        "mfu_peak_source": monitor.peak.source,
        "steps": session.step,
        "epochs": session.step * plan.batch_sequences / len(session.data),
        "tokens": tokens,
        "skipped_steps": monitor.skipped,
        "peak_memory_bytes": peak_memory_bytes(session.device),
        "packing_leak": session.isolation.leak,
        "chunked_loss": int(session.objective.chunked),
    }
    return Outcome(metrics=metrics, summary=_summary(session.step, dev_loss.curve, vocabulary, log), details=details)


def _summary(steps: int, curve: list[list[float]], vocabulary: int, log: Path) -> SummaryTable:
    evaluations: Mapping[int, Mapping[str, Any]] = evaluations_in(log)
    rows = []
    for step, loss in _some(curve):
        told = evaluations.get(int(step), {})
        extra = [told.get(name, "") for name in ("perplexity", "accuracy", "worst_domain")]
        rows.append([int(step), round(loss, 4), round(loss / math.log(vocabulary), 3), *extra])
    columns = ("step", "dev loss", "share of ln(vocabulary)", "perplexity", "accuracy", "worst domain")
    return SummaryTable(columns, rows, f"Training: {steps:,} steps")


def _some(curve: list[list[float]]) -> list[list[float]]:
    """At most `POINTS` of them, first and last among them."""
    places = sorted({round(i * (len(curve) - 1) / (POINTS - 1)) for i in range(POINTS)})
    return [curve[place] for place in places]
