"""Where a model starts from: nothing, a folder, the hub, or an artifact. Light: reuse paths read this without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.config.model import ModelConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.hub import HUB, fetch
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.identity import file_digest
from pipeline_lib.workspace.resolve import key_of

Lookup = Callable[[str], Artifact]
DATA = ("*.json", "*.safetensors")  # what is fetched and digested: numbers and weights, no code and no pickle
WORDS = ("scratch", "champion")  # `champion` is a reference by the time a stage runs; before, it has no files


def start_folder(start: str, store_lookup: Lookup | None = None) -> Path:
    """The folder of a start that is not `scratch`: config.json and safetensors; an artifact's files are verified first.

    Raises:
        ConfigError: there is no safetensors model, the hub does not give it, or the artifact is not the one that was meant.
    """
    key = key_of(start)
    if not key:
        folder = fetch(start, "model", DATA, where="model.start") if start.startswith(HUB) else Path(start).expanduser()
        if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
            raise ConfigError(
                f"{start!r} has no config.json with *.safetensors beside it", where="model.start",
                fix="convert the checkpoint to safetensors with `save_pretrained` (pickled weights are never loaded)",
            )  # fmt: skip
        return folder
    if store_lookup is None:
        raise ConfigError(f"{start!r} names an artifact, but there is no workspace to look it up in", where="model.start")
    artifact = store_lookup(key)
    if not artifact.manifest.was(start.partition("#")[2]):
        raise ConfigError(f"{key} is not the artifact that was meant: its digest differs", where="model.start")
    return artifact.files("model")[0].parent


def check_context(positions: int | None, sequence_length: int) -> None:
    """Refuse sequences that are longer than what a model knows.

    Raises:
        ConfigError: they are.
    """
    if positions and positions < sequence_length:
        raise ConfigError(
            f"the model knows {positions} positions, pack.sequence_length is {sequence_length}", where="model.start",
            fix=f"set pack.sequence_length to at most {positions}",
        )  # fmt: skip


def special_ids(packed: Mapping[str, Any]) -> dict[str, int]:
    """Tokens that a model's configuration names, from `pack`'s details; `stop` ends an answer where a chat template has one."""
    stop = (packed["chat"] or {}).get("stop_id")
    return {"eos": packed["eos_id"], "pad": packed["pad_id"], **({} if stop is None else {"stop": stop})}


def real_numbers(model: ModelConfig, vocabulary_size: int, store_lookup: Lookup | None = None) -> tuple[ModelConfig, int]:
    """The numbers of the model that is really trained, and the rows of its embedding: a start brings its own.

    Args:
        model: as configured; its numbers hold for `scratch` only.
        vocabulary_size: entries of the tokenizer.
        store_lookup: see `start_folder`.

    Raises:
        ConfigError: the start cannot be read.
    """
    if model.start == "scratch":
        return model, vocabulary_size
    from transformers import AutoConfig

    folder = start_folder(model.start, store_lookup)
    try:
        told = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{folder}: config.json cannot be read ({error})", where="model.start") from error
    width = int(told.hidden_size)
    numbers = {
        "family": told.model_type,
        "width": width,
        "depth": int(told.num_hidden_layers),
        "heads": int(told.num_attention_heads),
        "kv_heads": int(getattr(told, "num_key_value_heads", None) or 0),
        "ffn_width": int(getattr(told, "intermediate_size", None) or getattr(told, "n_inner", None) or 4 * width),
        "tied_embeddings": bool(told.tie_word_embeddings),
    }
    return model.model_copy(update=numbers), int(told.vocab_size)


def file_digests(*, model: ModelConfig, **others: object) -> dict[str, str]:
    """What training reads outside the workspace: digests of the files of a start, by name; nothing otherwise.

    Raises:
        ConfigError: the folder holds no safetensors model.
    """
    if model.start in WORDS or key_of(model.start):
        return {}
    folder = start_folder(model.start)
    return {path.name: file_digest(path) for pattern in DATA for path in sorted(folder.glob(pattern))}
