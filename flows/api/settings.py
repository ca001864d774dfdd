"""What a person asks of the API, as settings of the pipeline by their dotted names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.api.words import BYTES, COUNTS, HOURS, known, number, size_in
from pipeline_lib.config.guided import PRIORITIES
from pipeline_lib.config.presets import built_in, nested
from pipeline_lib.errors import ConfigError

# What people call a kind of model → the family that stands for it.
MODEL_TYPES = {"transformer": "llama", "moe": "mixtral", "recurrent": "mamba", "convolutional": "lfm2"}
STRATEGIES = PRIORITIES  # strategy → goal of a preset
SIZES = ("small", "medium", "large")
SELECTION = ("quality_threshold", "diversity_score", "recency_weight", "domain_balance")
RESOURCES = ("gpu_memory", "max_time", "max_cost", "price_per_hour", "currency")
MODEL = ("model_size", "architecture", "base_learning_rate", "batch_size_range", "start")
HALF_LIFE_DAYS = 365.0  # of a recency weight of a half
Settings = dict[str, Any]


def resources(limits: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """(settings, what was asked and limits nothing) of `max_training_resources`.

    Raises:
        ConfigError: a name is unknown or a value cannot be read.
    """
    where = "max_training_resources"
    told = {known(name, RESOURCES, where): value for name, value in limits.items()}
    found: Settings = {}
    notes: list[str] = []
    if "gpu_memory" in told:
        found["resources.memory_gib"] = size_in(told["gpu_memory"], BYTES, f"{where}.gpu_memory", "16GB") / 2**30
    if "max_time" in told:
        hours = size_in(told["max_time"], HOURS, f"{where}.max_time", "48h")
        found |= {"resources.max_hours": hours, "resources.margin_minutes": min(30.0, 3 * hours)}
    if "price_per_hour" in told:
        found["resources.price_per_hour"] = number(told["price_per_hour"], f"{where}.price_per_hour")
    if "currency" in told:
        found["resources.currency"] = str(told["currency"])
    if "max_cost" in told:
        money = number(told["max_cost"], f"{where}.max_cost")
        if "price_per_hour" in told:
            found["resources.money"] = money
        else:
            notes.append(f"max_cost = {money:g} limits nothing: no price_per_hour was named")
    return found, notes


def source(told: str | Path | Mapping[str, Any], at: int) -> tuple[Settings, Path | None]:
    """(a row of `ingest.sources`, the folder or file that it reads) of a folder, file, glob, `machine` or a mapping.

    Args:
        told: what a person named.
        at: its place in the list, so that two of one name can be told apart.
    """
    if isinstance(told, Mapping):
        row = dict(told)
    elif str(told) == "machine":
        row = {"kind": "machine"}
    else:
        row = {"kind": "files", "path": str(told)}
    read: Path | None = None
    if row.get("path") and "://" not in str(row["path"]):
        path = Path(str(row["path"])).expanduser().absolute()
        row["path"] = str(path)
        read = path if path.exists() else Path(re.split(r"[*?\[]", str(path))[0]).parent
    path = Path(str(row.get("path", "")))
    names = (re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") for name in (path.stem, path.parent.name))
    stem = next(filter(None, names), str(row.get("kind", "source")))
    return {"name": f"{stem[:50]}-{at}" if at else stem[:50], **row}, read


def selection(criteria: Mapping[str, Any]) -> Settings:
    """Settings of `selection_criteria`.

    Raises:
        ConfigError: a name is unknown, a value is no share, or `domain_balance` neither true nor false.
    """
    where = "selection_criteria"
    told = {known(name, SELECTION, where): value for name, value in criteria.items()}
    shares = {name: number(told[name], f"{where}.{name}", most=1.0) for name in SELECTION[:3] if name in told}
    found: Settings = {}
    if "quality_threshold" in shares:
        found["select.min_quality"] = shares["quality_threshold"]
    if "diversity_score" in shares:
        found["select.diversity_weight"] = shares["diversity_score"]
    if "recency_weight" in shares:
        weight = min(shares["recency_weight"], 0.999)
        found["select.recency_half_life_days"] = HALF_LIFE_DAYS * (1 - weight) / weight if weight else 0.0
    if "domain_balance" in told:
        if not isinstance(told["domain_balance"], bool):
            raise ConfigError(f"{told['domain_balance']!r} cannot be used", where=f"{where}.domain_balance", fix="True or False")
        found["select.domain_balance"] = "temperature" if told["domain_balance"] else "none"
    return found


def target(size: int | str | None) -> Settings:
    """Settings of `target_size`: documents (10_000, "10k documents") or tokens ("5M tokens").

    Raises:
        ConfigError: it cannot be read.
    """
    if size is None:
        return {}
    text = str(size).strip().lower()
    for word, setting in (("tokens", "select.target_tokens"), ("token", "select.target_tokens"),
                          ("documents", "select.target_documents"), ("examples", "select.target_documents")):  # fmt: skip
        if text.endswith(word):
            return {setting: int(size_in(text.removesuffix(word), COUNTS, "target_size", "5M"))}
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return {"select.target_documents": size}
    return {"select.target_documents": int(size_in(text, COUNTS, "target_size", "10k"))}


def preset(family: str, strategy: str, size: str) -> str:
    """The built-in preset of a family, a strategy and a size."""
    return f"{family}-{STRATEGIES[strategy]}-{size}"


def batches(sequences: Sequence[float], preset_name: str, own: Mapping[str, Any]) -> Settings:
    """A batch in the middle of a range of sequences, and the search's way from there to both ends.

    Args:
        sequences: [least, most] in an optimizer step.
        preset_name: says the sequence length where `own` does not.
        own: settings that go before everything else.

    Raises:
        ConfigError: it is no range.
    """
    try:
        least, most = sorted(int(value) for value in sequences)
    except (TypeError, ValueError):
        least = most = 0
    if least < 1:
        raise ConfigError(
            f"{sequences!r} is no range", where="model_config.batch_size_range", fix="[16, 128]: sequences in a step"
        )
    length = int(own.get("pack.sequence_length", built_in()[preset_name].values().get("pack.sequence_length", 256)))
    middle = round(math.sqrt(least * most))
    return {
        "train.batch_tokens": middle * length,
        "tune.space": {"learning_rate": [0.5, 2.0], "batch_tokens": [least / middle, most / middle]},
    }


def profile(wanted: Sequence[str]) -> str:
    """How the machine is used, by what is to be optimised first."""
    return {"memory_efficiency": "memory_efficient", "training_speed": "fast"}.get(next(iter(wanted), ""), "auto")


def as_yaml(settings: Mapping[str, Any]) -> str:
    """Settings by their dotted names as a pipeline file."""
    import yaml

    return yaml.safe_dump(json.loads(json.dumps(nested(settings))), sort_keys=False, allow_unicode=True)
