"""How trainings of the same model ended here before: what a plan's promise of the dev loss stands on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.planning.forecast import Earlier
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace


def earlier_ends(
    workspace: Workspace,
    records: Iterable[RunRecord],
    model: ModelConfig,
    train: TrainConfig,
    *,
    data: Mapping[str, Any],
    digest: str,
) -> Earlier:
    """How trainings of the same model with the same vocabulary and length ended here: those on this data, else those on other.

    Args:
        workspace: where the runs' artifacts lie.
        records: of its runs.
        model: configured.
        train: configured: an adapter is another model than a whole one.
        data: details of `fill_gaps`.
        digest: of its output; "" where it is only named.
    """
    same: list[tuple[float, float]] = []
    other: list[tuple[float, float]] = []
    wanted = {"model": model.model_dump(mode="json"), "lora": train.lora.model_dump(mode="json")}
    for record in records:
        trained, packed = record.ref("train"), record.ref("fill_gaps")
        config = record.config
        if trained is None or packed is None or record.outcome != "completed" or "model" not in config:
            continue
        if {"model": config["model"], "lora": config["train"]["lora"]} != wanted or not workspace.store.has(trained.key):
            continue
        if any(record.features.get(name) != data[name] for name in ("vocabulary_size", "sequence_length")):
            continue
        metrics = workspace.store.manifest(trained.key).metrics
        if metrics.get("tokens") and metrics.get("dev_loss"):
            end = (float(metrics["tokens"]), float(metrics["dev_loss"]))
            (same if packed.digest == digest else other).append(end)
    return Earlier(tuple(same or other), bool(same))
