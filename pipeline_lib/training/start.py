"""Where a model starts from: nothing, a folder, or an artifact. Light: reuse paths read this without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline_lib.config.model import ModelConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.identity import file_digest
from pipeline_lib.workspace.resolve import key_of

Lookup = Callable[[str], Artifact]
WORDS = ("scratch", "champion")  # `champion` is a reference by the time a stage runs; before, it has no files


def start_folder(start: str, store_lookup: Lookup | None = None) -> Path:
    """The folder of a start that is not `scratch`: config.json and safetensors; an artifact's files are verified first.

    Raises:
        ConfigError: the folder holds no safetensors model, or the artifact is not the one that was meant.
    """
    key = key_of(start)
    if not key:
        folder = Path(start).expanduser()
        if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
            raise ConfigError(
                f"{start!r} has no config.json with *.safetensors beside it", where="model.start",
                fix="convert the checkpoint to safetensors with `save_pretrained` (pickled weights are never loaded)",
            )  # fmt: skip
        return folder
    if store_lookup is None:
        raise ConfigError(f"{start!r} names an artifact, but there is no workspace to look it up in", where="model.start")
    artifact = store_lookup(key)
    if artifact.manifest.digest != start.partition("#")[2]:
        raise ConfigError(f"{key} is not the artifact that was meant: its digest differs", where="model.start")
    return artifact.files("model")[0].parent


def file_digests(*, model: ModelConfig, **others: object) -> dict[str, str]:
    """What training reads outside the workspace: digests of the files of a start folder, by name; nothing otherwise.

    Raises:
        ConfigError: the folder holds no safetensors model.
    """
    if model.start in WORDS or key_of(model.start):
        return {}
    folder = start_folder(model.start)
    return {path.name: file_digest(path) for pattern in ("*.json", "*.safetensors") for path in sorted(folder.glob(pattern))}
