"""How trainings of the same model ended before: what a plan's promise of the dev loss stands on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.memory.frame import believed
from pipeline_lib.memory.store import MemoryStore
from pipeline_lib.planning.forecast import Earlier

LOOKED_AT = 200  # runs of the same shape, the newest, whose configuration is compared in full


def earlier_ends(memory: MemoryStore, model: ModelConfig, train: TrainConfig, *, data: Mapping[str, Any], digest: str) -> Earlier:
    """How trainings of the same model with the same vocabulary and length ended: those on this data, else those on other.

    Args:
        memory: of the workspace: runs that ended here or were taken over, however long ago.
        model: configured.
        train: configured: an adapter is another model than a whole one.
        data: details of `fill_gaps`.
        digest: of its output; "" where it is only named.
    """
    alike = {"vocabulary_size": data["vocabulary_size"], "sequence_length": data["sequence_length"]}
    if model.start == "scratch":  # else the numbers that a run remembers are those of the model that it began with
        alike |= {"width": model.width, "depth": model.depth}
    same: list[tuple[float, float]] = []
    other: list[tuple[float, float]] = []
    for row in _rows(memory.table(), alike)[-LOOKED_AT:]:
        if _of_model(json.loads(row["config"] or "{}"), model, train):
            end = (row["trained_tokens"], row["dev_loss"])
            (same if row["data_fingerprint"] == digest else other).append(end)
    return Earlier(tuple(same or other), bool(same))


def _rows(table: pa.Table, alike: Mapping[str, float]) -> list[dict[str, Any]]:
    """Runs that ended well with these numbers, oldest first; one that does not say how much it learned is told by its steps."""
    if not len(table):
        return []
    told_itself = pc.map_lookup(table["more"], "trained_tokens", "first")
    tokens = pc.coalesce(told_itself, pc.multiply(table["steps"], table["batch_tokens"]))
    told = pc.and_(pc.equal(table["outcome"], "completed"), pc.and_(pc.greater(table["dev_loss"], 0.0), pc.greater(tokens, 0.0)))
    told = pc.and_(told, believed(table))  # what cannot be true promises nothing
    for name, value in alike.items():
        told = pc.and_(told, pc.equal(table[name], float(value)))
    columns = ["started", "config", "data_fingerprint", "dev_loss"]
    found = table.select(columns).append_column("trained_tokens", tokens).filter(pc.fill_null(told, False))
    return found.sort_by("started").to_pylist()  # type: ignore[no-any-return]


def _of_model(config: Mapping[str, Any], model: ModelConfig, train: TrainConfig) -> bool:
    """Whether a run with these settings (those that differ from the defaults) trained the same model, as whole as this one."""
    try:
        was = ModelConfig.model_validate(config.get("model", {}))
        how = TrainConfig.model_validate({"lora": config.get("train", {}).get("lora", {})})
    except (ValidationError, AttributeError):  # of another version
        return False
    return was == model and how.lora == train.lora
