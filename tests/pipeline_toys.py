"""The whole pipeline in small: a configuration that goes through every stage in seconds, and questions about what a run did."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.stages import STAGES
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace

NAMES = [stage.name for stage in STAGES]
PURE = [stage.name for stage in STAGES if stage.kind == "pure"]
TRAINING = NAMES[NAMES.index("calibrate") :]
STEPS = 30

THINGS = ["mill", "wheel", "river", "sack", "flour", "stone", "night", "water", "wind", "field", "oats", "cart", "bridge", "lamp"]
DEEDS = ["turns", "grinds", "carries", "fills", "opens", "warms", "follows", "crosses", "lights", "holds"]
PLACES = ["under the moon", "by the old road", "near the weir", "in the cold barn", "before dawn", "after the rain"]


def small(**sections: Any) -> dict[str, Any]:
    """A configuration of the text on this machine, with sections replaced key by key."""
    config: dict[str, Any] = {
        "name": "small",
        "resources": {"max_hours": 1.0, "margin_minutes": 1.0},
        "ingest": {"sources": [{"name": "machine", "kind": "machine", "max_mb": 1.0}]},
        "tokenizer": {"vocabulary_size": 512},
        "pack": {"sequence_length": 64, "range_tokens": 32768},
        "model": {"width": 32, "depth": 1, "heads": 2, "ffn_width": 64},
        "calibrate": {"seconds": 1.0, "micro_batches": [8]},
        "tune": {"trials": 3, "steps": 4},
        "train": {"max_steps": STEPS, "save_every": 10, "batch_tokens": 1024, "learning_rate": 0.01, "precision": "fp32"},
        "validation": {"language_tokens": 5000, "bootstrap": 100},
        "execution": {"workers": 2},
        "tracking": {"enabled": False},
    }
    for name, values in sections.items():
        config[name] = {**config[name], **values} if isinstance(config.get(name), dict) else values
    return config


def small_config(**sections: Any) -> PipelineConfig:
    """`small`, checked."""
    return PipelineConfig.model_validate(small(**sections))


def write_config(path: Path, **sections: Any) -> Path:
    """`small` as a file for the command line."""
    path.write_text(yaml.safe_dump(small(**sections)), "utf-8")
    return path


def newest(home: Path) -> RunRecord:
    """The record of the latest run."""
    return RunBook(Workspace.open(home).runs_folder).load("latest")


def states(record: RunRecord) -> dict[str, str]:
    """Stage → what happened to it in this run."""
    return {name: entry.state for name, entry in record.stages.items()}


def made(record: RunRecord) -> list[str]:
    """The stages that did work in this run, in order."""
    return [name for name in NAMES if name in record.stages and record.stages[name].state == "made"]


def digests(record: RunRecord) -> dict[str, tuple[str, str]]:
    """Pure stage → (fingerprint, output digest)."""
    refs = {name: record.ref(name) for name in PURE}
    return {name: (ref.fingerprint, ref.digest) for name, ref in refs.items() if ref}


def write_json(path: Path, value: Any) -> Path:
    """A value as a JSON file."""
    path.write_text(json.dumps(value), "utf-8")
    return path


def write_stories(path: Path, count: int, seed: int) -> None:
    """A JSONL file of documents made of simple sentences: so predictable that a tiny model gains from every step."""
    choose = random.Random(seed)

    def sentence() -> str:
        return f"The {choose.choice(THINGS)} {choose.choice(DEEDS)} the {choose.choice(THINGS)} {choose.choice(PLACES)}."

    lines = [json.dumps({"text": " ".join(sentence() for _ in range(40))}) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n", "utf-8")
