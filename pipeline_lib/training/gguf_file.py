"""One GGUF file of an exported model (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), read back and compared.

Families that llama.cpp knows as `llama`, `qwen2` and `qwen3`, in fp32 (its `llama-quantize` makes smaller ones), with a tokenizer
that splits as GPT-2's does, which is what is trained here. What is read back is compared bit by bit, and transformers' own reader
must get the model's logits from it (`export.compare_gguf`); llama.cpp, which is no Python package, is not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from pipeline_lib.errors import ConfigError, StageFailedError
from pipeline_lib.workspace.files import read_json

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # transformers' name → GGUF's
SPLITTER = "gpt-2"  # llama.cpp's name for byte-level BPE with GPT-2's pattern


def write_gguf(folder: Path, target: Path, *, name: str) -> dict[str, str]:
    """Write a folder's model and tokenizer into one file and read it back.

    Args:
        folder: config.json, *.safetensors in fp32, tokenizer.json, and a chat template where there is one.
        target: the file.
        name: of the model, for people.

    Returns:
        What was checked, in words.

    Raises:
        ConfigError: the family, the position encoding or the tokenizer is none that this writes.
        StageFailedError: what is read back is not what was written.
    """
    import gguf

    config, tokenizer = read_json(folder / "config.json"), read_json(folder / "tokenizer.json")
    architecture = _architecture(config)
    _check_tokenizer(tokenizer)
    writer = gguf.GGUFWriter(target, architecture)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _add_numbers(writer, config)
    tokens = _add_tokenizer(writer, config, tokenizer)
    _add_ends(writer, folder, config)
    tensors = dict(_tensors(folder, config, architecture))
    for key, values in tensors.items():
        writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _read_back(target, architecture, tensors, tokens)
    return {
        "gguf": f"{target.name}: {len(tensors)} tensors and {len(tokens)} tokens read back bit by bit",
        "not tried": "llama.cpp itself, which is not here",
    }


def _architecture(config: Mapping[str, Any]) -> str:
    family = config["model_type"]
    if family not in ARCHITECTURES:
        raise ConfigError(
            f"GGUF files are written of {', '.join(ARCHITECTURES)}; this is {family}", where="--to gguf",
            fix="export with --to hf; llama.cpp's own converter knows more families",
        )  # fmt: skip
    if (kind := _rope(config).get("rope_type", "default")) != "default":
        raise ConfigError(f"positions are scaled ({kind}), which is not written", where="--to gguf", fix="export with --to hf")
    return ARCHITECTURES[family]


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(config.get("rope_parameters") or config.get("rope_scaling") or {})


def _check_tokenizer(tokenizer: Mapping[str, Any]) -> None:
    splitter, normalizer = tokenizer.get("pre_tokenizer") or {}, tokenizer.get("normalizer")
    fits = splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True) and not splitter.get("add_prefix_space")
    if tokenizer["model"].get("type") != "BPE" or not fits or normalizer:
        raise ConfigError(
            "GGUF files are written with byte-level BPE that splits as GPT-2 does; this tokenizer splits "
            f"{splitter.get('type')!r}" + (f" and normalizes {normalizer.get('type')!r}" if normalizer else ""),
            where="--to gguf", fix="export with --to hf; llama.cpp's own converter knows more tokenizers",
        )  # fmt: skip


def _add_numbers(writer: Any, config: Mapping[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(_rope(config).get("rope_theta", config.get("rope_theta", 10000.0))))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _add_tokenizer(writer: Any, config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> list[str]:
    """The vocabulary in the order of its numbers; rows of the embedding beyond it are named `[PAD…]` and unused."""
    import gguf

    by_id = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    added = {one["id"]: one for one in tokenizer.get("added_tokens", [])}
    tokens, kinds = [], []
    for number in range(config["vocab_size"]):
        if number in added:
            special = added[number]["special"]
            tokens.append(added[number]["content"])
            kinds.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        else:
            tokens.append(by_id.get(number, f"[PAD{number}]"))
            kinds.append(gguf.TokenType.NORMAL if number in by_id else gguf.TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(SPLITTER)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    return tokens


def _add_ends(writer: Any, folder: Path, config: Mapping[str, Any]) -> None:
    """Where generation ends; the last of several is the chat template's, which llama.cpp calls the end of a turn."""
    generation = read_json(folder / "generation_config.json") if (folder / "generation_config.json").exists() else config
    ends = generation.get("eos_token_id")
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    if ends:
        writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[-1])
    if (pad := generation.get("pad_token_id")) is not None:
        writer.add_pad_token_id(pad)
    if (folder / "chat_template.jinja").exists():
        writer.add_chat_template((folder / "chat_template.jinja").read_text("utf-8"))
    writer.add_add_bos_token(False)


def _tensors(folder: Path, config: Mapping[str, Any], architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"]}
    heads["k_proj"] = config.get("num_key_value_heads") or heads["q_proj"]
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "numpy") as held:
            for name in sorted(held.keys()):
                given = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if given is None:
                    raise ConfigError(f"GGUF has no name for {name}", where="--to gguf", fix="export with --to hf")
                values = held.get_tensor(name)
                part = name.split(".")[-2]
                yield given, _interleaved(values, heads[part]) if architecture == "llama" and part in heads else values


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys in llama.cpp's order: it rotates neighbours, transformers the two halves of a head."""
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))


def _read_back(path: Path, architecture: str, tensors: Mapping[str, np.ndarray], tokens: list[str]) -> None:
    import gguf

    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    same = found.keys() == tensors.keys() and all(
        found[name].tobytes() == values.tobytes() and found[name].shape == values.shape for name, values in tensors.items()
    )
    kind, vocabulary = reader.get_field("general.architecture"), reader.get_field("tokenizer.ggml.tokens")
    if not same or kind is None or vocabulary is None:
        raise StageFailedError("the GGUF file does not hold the tensors that were written", where=str(path))
    if kind.contents() != architecture or vocabulary.contents() != tokens:
        raise StageFailedError("the GGUF file does not hold the vocabulary that was written", where=str(path))
