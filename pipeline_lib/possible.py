"""What a configuration asks of a training that cannot be had here, told before a run begins: its stage would say so hours later.

Only what settings and machine tell at once, without a model, and without importing torch where nothing is wrong.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Collection
from pathlib import Path

from pipeline_lib.config.model import LoraConfig, ModelConfig
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.hub import HUB
from pipeline_lib.planning.families import layers
from pipeline_lib.training.libraries import require_library
from pipeline_lib.training.start import WORDS, check_context, start_folder
from pipeline_lib.workspace.files import read_json
from pipeline_lib.workspace.resolve import key_of

TRAINING = {"calibrate", "tune", "train"}  # stages that build a model
NAMES_KNOWN = ("llama", "mistral", "qwen2", "qwen3", "phi", "phi3")  # families whose linear layers `families` names, all of them
HEAD = "lm_head"


def check_possible(config: PipelineConfig, stages: Collection[str]) -> None:
    """Refuse what none of these stages could do.

    Raises:
        ConfigError: an optimizer's library is not installed, the family or a LoRA target does not exist, a folder to start from
            holds no safetensors model or one for shorter sequences, or an attention or compiling needs what this machine has not.
    """
    if not TRAINING & set(stages):
        return
    train, model = config.train, config.model
    require_library(train.optimizer)
    family = ""  # of a model of this workspace or of the hub: told when it is read
    if model.start == "scratch":
        family = model.family
        if not config.execution.extensions:  # one may register any name
            _check_family(family)
    elif model.start not in WORDS and not model.start.startswith(HUB) and not key_of(model.start):
        family = _check_folder(start_folder(model.start), config.pack.sequence_length)
    if train.lora.rank:
        _check_targets(family, model, train.lora)
    if train.attention == "flex_attention" or train.compile:
        _check_machine(flex=train.attention == "flex_attention", compile=train.compile)


def _check_family(family: str) -> None:
    place = importlib.util.find_spec("transformers")
    if place and place.origin and (Path(place.origin).parent / "models" / family).is_dir():  # a family's own name, nearly always
        return
    from pipeline_lib.training.model import check_family

    check_family(family)


def _check_folder(folder: Path, length: int) -> str:
    """The family of a model in a folder; its context must hold a packed sequence."""
    told = read_json(folder / "config.json")
    check_context(told.get("max_position_embeddings"), length)
    return str(told.get("model_type", ""))


def _check_targets(family: str, model: ModelConfig, lora: LoraConfig) -> None:
    if family not in NAMES_KNOWN:
        return
    known = sorted({HEAD}.union(*(layer.linears for layer in layers(model.model_copy(update={"family": family})))))
    for target in lora.targets:
        if (name := target.rpartition(".")[2]) not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ConfigError(
                f"no module of a {family} is called {target}", where="train.lora.targets",
                fix=(f"did you mean {near[0]}? " if near else "") + f"its linear modules are {', '.join(known)}",
            )  # fmt: skip


def _check_machine(*, flex: bool, compile: bool) -> None:
    from pipeline_lib.hardware.machine import training_device
    from pipeline_lib.training.attention import require_device
    from pipeline_lib.training.objective import require_compiler

    device = training_device()
    if flex:
        require_device("flex_attention", device)
    if compile:
        require_compiler(device)
