"""Find a tokenizer, copy its files, and know its special ids, without loading remote code."""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.model import TokenizerConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.hub import HUB, fetch
from pipeline_lib.tokens.train import EOS, PAD
from pipeline_lib.workspace.files import read_json
from pipeline_lib.workspace.identity import file_digest
from pipeline_lib.workspace.resolve import key_of

if TYPE_CHECKING:
    from pipeline_lib.workspace.workspace import Workspace

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")  # plain data, no code
COPY_AGAIN = "copy the tokenizer's folder again from where it came from"


@dataclass(frozen=True)
class TokenizerFacts:
    """What the rest of the pipeline must know of a tokenizer."""

    digest: str  # blake3 of tokenizer.json: its identity
    vocabulary_size: int  # largest id + 1
    eos_id: int
    pad_id: int


def source_folder(source: str, workspace: Workspace) -> Path:
    """The folder that a `tokenizer.source` names.

    Args:
        source: a folder with tokenizer.json, that file, `hf://organisation/name@commit`, or `artifact:pack/<key>#<digest>`.
        workspace: where artifacts lie.

    Raises:
        ConfigError: there is no tokenizer.json, or the hub does not give it.
        NotFoundError, DamagedError: the artifact is gone or is not what was committed.
    """
    if key := key_of(source):
        return workspace.store.artifact(key).files("tokenizer")[0].parent
    return _folder_outside(source)


def _folder_outside(source: str) -> Path:
    if source.startswith(HUB):
        return _checked(fetch(source, "tokenizer", FILES, where="tokenizer.source"))
    path = Path(source).expanduser()
    return _checked(path.parent if path.name == "tokenizer.json" else path)


def _checked(folder: Path) -> Path:
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(
            f"{str(folder)!r} holds no tokenizer.json",
            where="tokenizer.source",
            fix="name a folder with tokenizer.json, `hf://organisation/name@commit`, or `train` to train one on the selection",
        )
    return folder


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the data files of a tokenizer; anything else in the folder (code, weights) stays behind."""
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def read_named(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a tokenizer folder; empty where there is none.

    Raises:
        ConfigError: it is no JSON object.
    """
    path = folder / name
    if not path.is_file():
        return {}
    try:
        found = read_json(path)
    except ValueError as error:
        raise ConfigError(f"cannot be read as JSON ({error})", where=str(path), fix=COPY_AGAIN) from error
    if not isinstance(found, dict):
        raise ConfigError(f"holds a {type(found).__name__} and no JSON object", where=str(path), fix=COPY_AGAIN)
    return found


def _named(folder: Path, name: str) -> str:
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        value = read_named(folder, file).get(name)
        if isinstance(value, dict):
            value = value.get("content")
        if value:
            return str(value)
    return ""


def read_facts(folder: Path) -> TokenizerFacts:
    """Vocabulary size, end and padding ids of a tokenizer folder. Padding falls back to the end token.

    Raises:
        ConfigError: tokenizer.json cannot be read, or there is no end-of-text token.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        vocabulary: dict[str, int] = Tokenizer.from_str(path.read_text("utf-8")).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exception
        raise ConfigError(f"cannot be read as a tokenizer ({error})", where=str(path)) from error
    eos = next((token for token in (_named(folder, "eos_token"), EOS) if token in vocabulary), None)
    if eos is None:
        raise ConfigError(
            "the tokenizer names no end-of-text token",
            where=str(folder),
            fix=f'add "eos_token" to tokenizer_config.json, or a token {EOS} to the vocabulary',
        )
    pad = next((token for token in (_named(folder, "pad_token"), PAD) if token in vocabulary), eos)
    return TokenizerFacts(file_digest(path), max(vocabulary.values()) + 1, vocabulary[eos], vocabulary[pad])


def without_special_tokens(path: Path) -> str:
    """tokenizer.json in which no text is a special token: what spells one is ordinary text. Other added tokens stay."""
    parsed = json.loads(path.read_text("utf-8"))
    parsed["added_tokens"] = [token for token in parsed.get("added_tokens") or [] if not token.get("special")]
    return json.dumps(parsed, ensure_ascii=False)


def with_unspellable_special_tokens(path: Path) -> str:
    """tokenizer.json with the same ids, in which special tokens have names that no text holds.

    `encode_special_tokens` keeps special tokens from being looked for. That is not enough for models that look up whole words or
    pieces in their vocabulary, where special tokens are entries like others (Unigram, WordLevel). BPE gets to them by merges
    only, and has none for them.
    """
    text = path.read_text("utf-8")
    parsed = json.loads(text)
    model = parsed["model"]
    if "merges" in model:
        return text
    added = parsed.get("added_tokens") or []
    names = {token["content"]: secrets.token_hex(32) for token in added if token.get("special")}
    for token in added:
        token["content"] = names.get(token["content"], token["content"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if unknown := model.get("unk_token"):
        model["unk_token"] = names.get(unknown, unknown)
    return json.dumps(parsed)


def file_digests(*, tokenizer: TokenizerConfig, **others: object) -> dict[str, str]:
    """What `pack` reads outside the workspace: digests of a tokenizer's files, by name; nothing when it is trained.

    Raises:
        ConfigError: the folder holds no tokenizer.json.
    """
    if tokenizer.source in {"train", "champion"} or key_of(tokenizer.source):
        return {}
    folder = _folder_outside(tokenizer.source)
    return {name: file_digest(folder / name) for name in FILES if (folder / name).is_file()}
