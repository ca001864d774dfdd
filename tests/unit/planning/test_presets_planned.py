"""Every preset is planned: in a night on a modest machine it has steps, a rate and a memory that its calibration would check."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline_lib.config.load import load_config
from pipeline_lib.config.presets import Preset, built_in
from pipeline_lib.planning.laws import training_flops
from pipeline_lib.planning.memory import count_parameters, estimate_memory
from pipeline_lib.planning.plan import compose
from pipeline_lib.planning.window import After, Window

FLOPS = 5e13  # a tenth of a fast accelerator
NIGHT = Window(total=12 * 3600.0, spent=600.0, margin=1800.0, after=After(300.0, 300.0, 0.0), start_up=20.0)
MEMORY = 24 << 30


def planned(preset: Preset) -> dict[str, Any]:
    config = load_config(None, [f"preset={preset.name}"])
    length, entries = config.pack.sequence_length, config.tokenizer.vocabulary_size
    count = count_parameters(config.model, entries)
    rate = FLOPS / training_flops(count.total, 1)
    estimate = estimate_memory(
        config.model, vocabulary_size=entries, sequence_length=length, micro_batch=4, precision="bf16",
        optimizer=config.train.optimizer, lora=config.train.lora, checkpointing=config.train.activation_checkpointing,
    ).total  # fmt: skip
    point = {
        "micro_batch": 4, "precision": "bf16", "tokens_per_second": rate, "peak_memory_bytes": estimate,
        "estimated_bytes": estimate, "error": "", "profile": "balanced",
    }  # fmt: skip
    calibrated = {
        "profiles": [point], "interval": [0.9, 1.1], "evaluate_tokens_per_second": 3 * rate, "save_seconds": 1.0,
        "build_seconds": 2.0, "import_seconds": 5.0, "threads": 8, "sequence_length": length,
    }  # fmt: skip
    sequences = preset.tokens // length
    data = {
        "sequence_length": length, "vocabulary_size": entries,
        "sequences": {"train": sequences, "dev": sequences // 50, "test": sequences // 50},
        "tokens": {"train": preset.tokens, "dev": preset.tokens // 50, "test": preset.tokens // 50},
    }  # fmt: skip
    return compose(
        data, calibrated, {"best": {}, "curve": []}, NIGHT, profile=point, plan=config.plan, train=config.train,
        resources=config.resources, model=config.model, real=config.model, rows=entries,
    )  # fmt: skip


@pytest.mark.parametrize("preset", built_in().values(), ids=lambda preset: preset.name)
def test_every_preset_is_planned(preset: Preset) -> None:
    details = planned(preset)
    assert details["steps"] >= 100
    assert details["epochs"] <= preset.settings["train.max_epochs"].value * 1.01
    assert 1e-4 <= details["learning_rate"] <= 5e-3
    assert "Step Law" in details["learning_rate_why"]
    assert details["decay_steps"] >= 0.08 * details["steps"] - 1
    assert sum(details["memory_terms"].values()) < MEMORY
    assert details["batch_sequences"] % details["micro_batch"] == 0


def test_sizes_grow_with_the_data_and_depth_with_the_goal() -> None:
    def parameters(name: str) -> int:
        config = load_config(None, [f"preset={name}"])
        return count_parameters(config.model, config.tokenizer.vocabulary_size).total

    for family in ("llama", "mistral", "qwen", "phi", "mixtral", "mamba", "lfm2"):
        small, medium, large = (parameters(f"{family}-quality-{amount}") for amount in ("small", "medium", "large"))
        assert 2e6 < small < medium / 2 < large / 4 < 1e8
        assert parameters(f"{family}-highspeed-medium") < medium < parameters(f"{family}-bestaccuracy-medium")
