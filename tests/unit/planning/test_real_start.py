"""A model that brings its own numbers: calibration, and the plan's memory and operations, are about it, not about `model.*`."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_toy import CALIBRATED, make_plan
from tokenizers import Tokenizer, models

from pipeline_lib.config.fields import Section, setting
from pipeline_lib.config.model import CalibrateConfig, ModelConfig, PackConfig, TokenizerConfig, TrainConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.planning.memory import count_parameters
from pipeline_lib.stages import BY_NAME
from pipeline_lib.training.start import real_numbers
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

ENTRIES = 320


class Config(Section):
    calibrate: CalibrateConfig = setting(lambda: CalibrateConfig(seconds=0.5, micro_batches=[2]), "calibrate")
    model: ModelConfig = setting(ModelConfig, "model")
    train: TrainConfig = setting(lambda: TrainConfig(precision="fp32"), "train")
    pack: PackConfig = setting(lambda: PackConfig(sequence_length=32), "pack")
    tokenizer: TokenizerConfig = setting(TokenizerConfig, "tokenizer")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that nothing in `model.*` describes, with fewer entries than `tokenizer.vocabulary_size`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=ENTRIES, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
        )
    ).save_pretrained(folder)  # fmt: skip
    words = {f"w{number}": number for number in range(ENTRIES - 1)} | {"<|endoftext|>": ENTRIES - 1}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))  # noqa: S106 - no secret
    return folder


def parameters_of(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 - no mapping


def test_numbers_of_a_start_are_those_of_its_weights(base: Path) -> None:
    numbers, rows = real_numbers(ModelConfig(start=str(base)), 4096)
    assert rows == ENTRIES
    assert count_parameters(numbers, rows).total == parameters_of(base)
    assert real_numbers(ModelConfig(), 4096) == (ModelConfig(), 4096)


def test_calibration_measures_the_start_with_its_own_entries(base: Path, tmp_path: Path) -> None:
    config = Config(model=ModelConfig(start=str(base)), tokenizer=TokenizerConfig(source=str(base)))
    workspace = Workspace.open(tmp_path)
    details = workspace.store.artifact(execute(workspace, BY_NAME["calibrate"], config, {}).key).details
    assert details["parameters"] == parameters_of(base)


def test_plan_counts_the_start(base: Path, tmp_path: Path) -> None:
    details = make_plan(tmp_path, model=ModelConfig(start=str(base)), calibrated=CALIBRATED).details
    assert details["memory_terms"]["weights"] == 4 * parameters_of(base)
    assert details["flops"] == 6 * parameters_of(base) * details["tokens"]


def test_start_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="safetensors"):
        real_numbers(ModelConfig(start=str(tmp_path)), 4096)
