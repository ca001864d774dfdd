"""Which embedding model the stage reads outside the workspace. Not in `semantic`, which loads more than a reused run needs."""

from __future__ import annotations

from pathlib import Path

from pipeline_lib.config.data import DedupConfig
from pipeline_lib.errors import NotFoundError
from pipeline_lib.workspace.identity import tree_digest


def model_digest(config: DedupConfig) -> str:
    """Digest of the model's folder; "" when nothing is embedded.

    Raises:
        NotFoundError: there is no model in the folder.
    """
    if config.semantic == "none":
        return ""
    folder = Path(config.semantic)
    if not (folder / "config.json").is_file():
        fix = "a folder with config.json, model.safetensors and a tokenizer"
        raise NotFoundError(f"no model in {folder}", where="dedup.semantic", fix=fix)
    return tree_digest(folder)


def file_digests(*, dedup: DedupConfig) -> dict[str, str]:
    """What the stage reads outside the workspace."""
    digest = model_digest(dedup)
    return {"semantic": digest} if digest else {}
