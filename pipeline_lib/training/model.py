"""The model: from numbers, from a folder, or from an earlier artifact. Safetensors only, no remote code, no network."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline_lib.config.model import LoraConfig, ModelConfig
from pipeline_lib.errors import ConfigError, StageFailedError
from pipeline_lib.pretrained import MAKING, quiet, read_model
from pipeline_lib.training.attention import use_attention
from pipeline_lib.training.four_bits import entries, to_four_bits, to_plain
from pipeline_lib.training.start import Lookup, check_context, start_folder
from pipeline_lib.workspace.files import read_json, write_json

HYBRIDS = {"lfm2": ("conv", "conv", "full_attention")}
"""Kinds of layers that repeat, where the family's configuration names none (LFM2's models: ten convolutions, six attentions)."""

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def build_model(
    model: ModelConfig,
    *,
    vocabulary_size: int,
    sequence_length: int,
    seed: int,
    store_lookup: Lookup | None = None,
    special_ids: Mapping[str, int] | None = None,
    tokenizer_file: Path | None = None,
) -> Any:
    """Build a `PreTrainedModel` on the CPU: fp32 weights, sdpa attention where the family has it, training mode.

    Args:
        model: numbers, or `start` as a folder or `artifact:<train key>#<digest>`; with a start the numbers are the checkpoint's.
        vocabulary_size: entries of the tokenizer.
        sequence_length: tokens in a packed sequence.
        seed: of the initial weights; the global torch generator is seeded with it.
        store_lookup: artifact of a key, where `start` may be a reference.
        special_ids: {"bos", "eos", "pad"} token ids for generation; missing ones are None in the model's configuration. A start
            keeps those that it has. {"stop"}: a further token at which generation ends.
        tokenizer_file: the `tokenizer.json` that made the data; compared with the start's own.

    Raises:
        ConfigError: unknown family, or a start that does not fit the tokenizer.
    """
    quiet()
    with MAKING:
        torch.manual_seed(seed)
        if model.start == "scratch":
            built = _from_numbers(model, vocabulary_size, sequence_length)
        else:
            folder = start_folder(model.start, store_lookup)
            _same_tokenizer(folder, tokenizer_file)
            built = _from_folder(folder, vocabulary_size, sequence_length)
            built.config._name_or_path = ""  # a path is no part of what is published
    for name in ("bos", "eos", "pad"):  # what a start says itself stays
        token = (special_ids or {}).get(name)
        for part in (built.config, built.generation_config):
            if part is not None and (model.start == "scratch" or getattr(part, f"{name}_token_id", None) is None):
                setattr(part, f"{name}_token_id", token)
    if (stop := (special_ids or {}).get("stop")) is not None and built.generation_config is not None:
        ends = built.generation_config.eos_token_id
        built.generation_config.eos_token_id = sorted(
            {stop, *([] if ends is None else ends if isinstance(ends, list) else [ends])}
        )
    built.config.use_cache = False  # a cache in training lets packed documents attend to each other
    return built.train()


def export_model(model: Any, folder: Path) -> None:
    """Write config.json, generation_config.json and safetensors that `AutoModelForCausalLM.from_pretrained` reads."""
    model.config.use_cache = True  # what a user generates with
    try:
        model.save_pretrained(folder)
    finally:
        model.config.use_cache = False


def _from_numbers(model: ModelConfig, vocabulary_size: int, sequence_length: int) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    if maker := _registered(model.family):
        return maker(model, vocabulary_size=vocabulary_size, sequence_length=sequence_length)
    check_family(model.family)
    default = AutoConfig.for_model(model.family)
    head_width = model.width // model.heads
    wanted = {
        "vocab_size": vocabulary_size,
        "hidden_size": model.width,
        "intermediate_size": model.ffn_width,
        "n_inner": model.ffn_width,  # gpt2's name for it
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads or model.heads,
        "head_dim": head_width,
        "num_heads": getattr(default, "expand", 1) * model.heads,  # mamba2: heads over the expanded width
        "n_groups": 1,  # of mamba2's heads
        "moe_intermediate_size": model.ffn_width,
        "shared_expert_intermediate_size": model.ffn_width,
        "num_local_experts": model.experts,
        "num_experts": model.experts,
        "num_experts_per_tok": model.experts_per_token,
        "max_position_embeddings": sequence_length,
        "tie_word_embeddings": model.tied_embeddings,
        **dict.fromkeys(("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout"), model.dropout),
    }
    if model.family in HYBRIDS:
        kinds = HYBRIDS[model.family]
        wanted["layer_types"] = [kinds[layer % len(kinds)] for layer in range(model.depth)]
    values = {key: value for key, value in wanted.items() if hasattr(default, key)}
    config = AutoConfig.for_model(model.family, **values, bos_token_id=None, eos_token_id=None, pad_token_id=None)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)  # type: ignore[no-untyped-call]


def check_family(family: str) -> None:
    """Refuse a family that transformers cannot build.

    Raises:
        ConfigError: with the nearest names.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or family not in CONFIG_MAPPING:
        near = difflib.get_close_matches(family, sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), n=3)
        raise ConfigError(
            f"{family!r} is not a causal language model of transformers, and no extension registers it",
            where="model.family",
            fix=f"did you mean {', '.join(near)}?" if near else "llama, qwen3, gpt2 and mistral are good beginnings",
        )


def _registered(family: str) -> Callable[..., Any] | None:
    """A model class from an extension, or None."""
    from pipeline_lib import extensions

    return extensions.extensions("model").get(family)


def _from_folder(folder: Path, vocabulary_size: int, sequence_length: int) -> Any:
    model = read_model(folder)
    rows, positions = model.get_input_embeddings().weight.shape[0], getattr(model.config, "max_position_embeddings", None)
    if rows < vocabulary_size:
        raise ConfigError(
            f"the model has {rows} embeddings, the tokenizer {vocabulary_size} entries", where="model.start",
            fix="set tokenizer.source to the tokenizer that belongs to this model (`champion`, or its folder)",
        )  # fmt: skip
    check_context(positions, sequence_length)
    return model


def _same_tokenizer(folder: Path, tokenizer_file: Path | None) -> None:
    own = folder / "tokenizer.json"
    if tokenizer_file is None or not own.is_file():
        return
    ours, theirs = (_vocabulary(path) for path in (tokenizer_file, own))
    if ours != theirs:
        differing = sum(theirs.get(token) != number for token, number in ours.items()) + len(theirs.keys() - ours.keys())
        raise ConfigError(
            f"the model's tokenizer is not the one that packed the data: {differing} entries differ", where="model.start",
            fix="set tokenizer.source to `champion` or to this model's folder, and pack again",
        )  # fmt: skip


def _vocabulary(path: Path) -> dict[str, int]:
    value = read_json(path)
    vocabulary = value["model"]["vocab"]
    entries = vocabulary if isinstance(vocabulary, dict) else {token: i for i, (token, _) in enumerate(vocabulary)}
    return {**entries, **{token["content"]: token["id"] for token in value.get("added_tokens", [])}}


class Adapted:
    """LoRA around a model: the model itself stays what is trained and saved; `merge` folds the adapters into its weights."""

    def __init__(self, model: Any, lora: LoraConfig) -> None:
        import peft

        _check_lora(model, lora)
        self._in_four_bits = lora.quantize == "4bit"
        if self._in_four_bits:
            to_four_bits(model)
        config = peft.LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,  # type: ignore[arg-type] # a float works
            target_modules=list(lora.targets), task_type="CAUSAL_LM",
        )  # fmt: skip
        self._wrapped = peft.get_peft_model(model, config)
        self.model = self._wrapped.get_base_model()

    def merge(self, adapter: Path | None = None) -> Any:
        """Fold the adapters into the weights and give back the plain model; with a folder, write them there first, for peft.

        Weights in four bits become whole again for it, on the processor: an accelerator may not have the room.
        """
        if adapter:
            self._save(adapter)
        if self._in_four_bits:
            self._wrapped.to("cpu")
            to_plain(self._wrapped)
        return self._wrapped.merge_and_unload()

    def _save(self, folder: Path) -> None:
        self._wrapped.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
        for path in folder.iterdir():
            if path.name not in ADAPTER_FILES:  # a model card about nothing
                path.unlink()
        told = read_json(folder / "adapter_config.json")
        told |= {"target_modules": sorted(told["target_modules"]), "base_model_name_or_path": None}  # peft writes a set's order
        write_json(folder / "adapter_config.json", told)


def _check_lora(model: Any, lora: LoraConfig) -> None:
    known = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    # peft leaves out silently what it does not find, as long as it finds one.
    if missing := [target for target in lora.targets if target.rpartition(".")[2] not in known]:
        near = {found for target in missing for found in difflib.get_close_matches(target, sorted(known), n=1)}
        raise ConfigError(
            f"no module of this model is called {' or '.join(missing)}", where="train.lora.targets",
            fix=(f"did you mean {' or '.join(sorted(near))}? " if near else "")
            + f"its linear modules are {', '.join(sorted(known))}",
        )  # fmt: skip


def adapt(model: Any, lora: LoraConfig) -> tuple[Any, Callable[..., Any]]:
    """The model to train, and a function that gives back the plain model afterwards (`Adapted.merge`)."""
    if lora.rank == 0:
        return model, lambda adapter=None: model
    adapted = Adapted(model, lora)
    return adapted.model, adapted.merge


def count_parameters(model: Any, *, trainable: bool = False) -> int:
    """Parameters, tied ones once."""
    return sum(entries(p) for p in model.parameters() if p.requires_grad or not trainable)


def flops_per_token(model: Any, sequence_length: int) -> float:
    """Training FLOPs a token: 6·N_matmul + Σ_layers 12·d·min(window, T).

    Embeddings are out, the head is in, tied or not (PaLM, appendix B; Kaplan et al. 2020). A frozen matrix (LoRA) costs 4 a
    weight: its own gradient is not computed.
    """
    head = model.get_output_embeddings()
    tables = {id(part) for part in model.modules() if isinstance(part, nn.Embedding)}
    matmul = 0.0
    for part in model.modules():
        if id(part) in tables or part is head:
            continue
        for name, weight in part.named_parameters(recurse=False):
            if weight.dim() >= 2 and not name.startswith("bias"):
                matmul += (6 if weight.requires_grad else 4) * entries(weight)
    if head is not None:
        matmul += (6 if head.weight.requires_grad else 4) * head.weight.numel()
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or sequence_length
    attention = 12 * config.hidden_size * min(window, sequence_length) * config.num_hidden_layers
    return float(matmul + attention)


def prepare(model: Any, *, attention: str = "", activation_checkpointing: bool = False) -> None:
    """Make a model ready for training: which attention it uses ("": its family's own), and whether it keeps activations.

    Raises:
        ConfigError: the family has no such attention, or cannot compute activations twice.
    """
    if attention:
        use_attention(model, attention)
    if activation_checkpointing:
        if not getattr(model, "supports_gradient_checkpointing", False):
            raise ConfigError(
                f"{model.config.model_type} cannot compute activations twice", where="train.activation_checkpointing",
                fix="set train.activation_checkpointing to false, and a smaller micro-batch",
            )  # fmt: skip
        model.activation_checkpointing_enable({"use_reentrant": False})


def check_trainable(model: Any) -> None:
    """Refuse a model in which nothing can be trained.

    Raises:
        StageFailedError: no parameter takes a gradient.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise StageFailedError("no parameter of the model takes a gradient", where="stage train")
