"""Going on from a checkpoint in a run of its own: the checkpoint is held under its digest, and `train.parent` names it.

Light: planning and commands read this without torch. `forks/<digest>/` in the workspace holds the files (hard links), so that the
parent's retention, its end or its removal take nothing away from the fork.
"""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.errors import DamagedError, NotFoundError, RefusedError
from pipeline_lib.training.checkpoints import OBSERVED, PARTS, RECORD, Checkpoint, damage, record_of
from pipeline_lib.workspace.files import link_or_copy, read_json

if TYPE_CHECKING:
    from pipeline_lib.workspace.workspace import Workspace

NONE = "none"
_REFERENCE = re.compile(r"checkpoint:([0-9a-f]{32})")


def reference_of(record: Mapping[str, Any]) -> str:
    """The text that stands for a checkpoint in `train.parent`."""
    return f"checkpoint:{record['digest']}"


def folder_of(workspace: Workspace, reference: str) -> Path:
    """Where a fork's source is held.

    Raises:
        NotFoundError: the text is no reference.
    """
    found = _REFERENCE.fullmatch(reference)
    if not found:
        raise NotFoundError(
            f"{reference!r} is no checkpoint",
            where="train.parent",
            fix="`millrace train --from CHECKPOINT` sets it; default: none",
        )
    return workspace.root / "forks" / found[1]


def hold(workspace: Workspace, folder: Path) -> str:
    """Keep a checkpoint for a fork; returns the reference to it.

    Raises:
        DamagedError: it is not what was committed.
    """
    if reason := damage(folder):
        raise DamagedError(reason, where=str(folder), fix="`millrace checkpoints list` names the others")
    reference = reference_of(record_of(folder))
    target = folder_of(workspace, reference)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        beside.mkdir()
        for name in (*PARTS, RECORD, OBSERVED):
            if (folder / name).exists():
                link_or_copy(folder / name, beside / name)
        try:
            beside.rename(target)
        except OSError:  # another process was faster: the same bytes
            shutil.rmtree(beside)
    return reference


def source_of(workspace: Workspace, reference: str) -> Checkpoint | None:
    """The checkpoint that a fork goes on from; None for `none`. Its record is verified, its files are when they are read.

    Raises:
        NotFoundError: it is gone.
        DamagedError: its record is not what was committed.
    """
    if reference == NONE:
        return None
    folder = folder_of(workspace, reference)
    if not folder.exists():
        raise NotFoundError(
            f"{reference} is not held any more", where=str(folder), fix="fork again: `millrace train --from CHECKPOINT`"
        )
    record = record_of(folder)
    if not record or reference_of(record) != reference:
        raise DamagedError(f"{RECORD} is not what was committed", where=str(folder), fix="fork again from another checkpoint")
    return Checkpoint(folder, read_json(folder / RECORD))


def check_fits(source: Checkpoint, identity: Mapping[str, str]) -> None:
    """Refuse a checkpoint of other data or another tokenizer.

    Args:
        source: what is gone on from.
        identity: digests {"data", "tokenizer"} of what is trained on now.

    Raises:
        RefusedError: they differ.
    """
    for what in ("tokenizer", "data"):
        if source.record.get(what) != identity[what]:
            raise RefusedError(
                f"the checkpoint was trained with another {what}: its place in the data would mean something else",
                where=str(source.folder),
                fix="set model.start to begin from a model's weights alone, or fork with what the checkpoint was trained on",
            )
