"""A checkpoint is a commit: what lies on disk, what is intact, what is kept. Light: lists and commands read this without torch.

```
step-00000500/  model.safetensors  optimizer.safetensors  rng.safetensors  config.json  checkpoint.json
```
`checkpoint.json` holds the place (step, position in the data), the plan, the schedule in effect, the digests of data and
tokenizer, the losses, notes of the callbacks and the digest of every file, and its own. There is no pickle and no time stamp: the
same training gives the same bytes. What depends on the clock (the controller's pace) lies beside in `observed.json`: helpful,
promising nothing, never published. How a checkpoint is written and loaded: `saving.py`.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_lib.errors import RefusedError, StageFailedError
from pipeline_lib.workspace.files import link_or_copy, read_json, remove_tree, write_json
from pipeline_lib.workspace.identity import file_digest, fingerprint_of
from pipeline_lib.workspace.machine import versions

FORMAT = 2
RECORD = "checkpoint.json"
OBSERVED = "observed.json"
PARTS = ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "config.json")
LEAST_KEPT = 2  # a single checkpoint that turns out damaged would cost the whole training
SPARE_BYTES = 32 << 20  # free space beside the checkpoint itself: journal, records, what the file system takes


class DiskLowError(RefusedError):
    """The next checkpoint does not fit on the disk; the earlier ones are intact."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.record["step"])

    @property
    def observed(self) -> dict[str, Any]:
        """What depends on the clock; empty when it is not what was written."""
        try:
            told: dict[str, Any] = dict(read_json(self.folder / OBSERVED))
            return told if told.pop("digest") == fingerprint_of(told) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    @property
    def notes(self) -> dict[str, Any]:
        """What callbacks wanted to keep, by their name."""
        return dict(self.record["notes"])


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay while a training goes on: the newest, the best, the last before the decay, and milestones."""

    newest: int = LEAST_KEPT
    milestone_every: int = 0  # steps; 0: none

    def __post_init__(self) -> None:
        if self.newest < LEAST_KEPT:
            raise ValueError(f"newest = {self.newest}: never fewer than {LEAST_KEPT} are kept")


def kept(records: Iterable[Mapping[str, Any]], retention: Retention) -> dict[int, str]:
    """The steps whose checkpoints stay, with the reasons, in words.

    Args:
        records: of committed checkpoints, oldest first.
        retention: the rule.
    """
    found = list(records)
    if not found:
        return {}
    scheduled = [record for record in found if record["scheduled"]]
    reasons: dict[int, list[str]] = {}

    def keep(record: Mapping[str, Any], why: str) -> None:
        reasons.setdefault(int(record["step"]), []).append(why)

    keep(found[-1], "newest")  # one that only a stop request caused stays while it is the newest of all
    for record in scheduled[-retention.newest :]:
        if record is not found[-1]:
            keep(record, "newest")
    judged = [record for record in scheduled if record["metrics"].get("dev_loss") is not None]
    if judged:
        keep(min(reversed(judged), key=lambda record: float(record["metrics"]["dev_loss"])), "best")
    if stable := [record for record in scheduled if record["stable"]]:
        keep(stable[-1], "before the decay")
    for record in scheduled:
        if retention.milestone_every and record["step"] % retention.milestone_every == 0:
            keep(record, "milestone")
    return {step: ", ".join(why) for step, why in sorted(reasons.items())}


def prune(root: Path, retention: Retention) -> None:
    """Remove what the rule does not keep, and what writers that died left beside."""
    records = {folder: record for folder in committed(root) if (record := record_of(folder))}
    stay = kept(records.values(), retention)
    for folder, record in records.items():
        if record["step"] not in stay:
            remove_tree(folder)
    for scrap in root.glob(".*"):
        shutil.rmtree(scrap, ignore_errors=True)


def require_room(root: Path, size: int) -> None:
    """See that a checkpoint of `size` bytes fits.

    Raises:
        DiskLowError: it does not; what can go is the policy's to decide (`recovery.py`).
    """
    if (free := shutil.disk_usage(root).free) < size + SPARE_BYTES:
        raise DiskLowError(
            f"{free / 1e6:,.0f} MB are free, a checkpoint needs {(size + SPARE_BYTES) / 1e6:,.0f} MB; earlier ones are intact",
            where=str(root), fix="make room (`millrace gc` shows what can go), then `millrace retry`",
        )  # fmt: skip


def committed(root: Path) -> list[Path]:
    """Folders of committed checkpoints, oldest first (not verified)."""
    return sorted(root.glob("step-*"))


def record_of(folder: Path) -> dict[str, Any]:
    """The record of a committed checkpoint if it is what was committed (files are not looked at); else empty."""
    try:
        record: dict[str, Any] = read_json(folder / RECORD)
        return record if record["format"] == FORMAT and _is_whole(record) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_whole(record: Mapping[str, Any]) -> bool:
    """Whether a record is what was committed. Its digest stands for all else that is in it, in every format."""
    return bool(record["digest"] == fingerprint_of({name: value for name, value in record.items() if name != "digest"}))


def foreign(folder: Path) -> str:
    """Of a whole checkpoint that another version of Millrace wrote in another format: what to say of it. Else ""."""
    try:
        record = read_json(folder / RECORD)
        if record["format"] != FORMAT and _is_whole(record):
            return f"of format {record['format']}, written by another version of Millrace; this one reads format {FORMAT}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return ""


def damage(folder: Path) -> str:
    """Why a checkpoint cannot be used, or "": it is not what was committed, or it is `foreign`. Every byte is digested."""
    try:
        record = read_json(folder / RECORD)
        if words := foreign(folder):
            return words
        if not _is_whole(record):
            return f"{RECORD} is not what was committed"
        for name in PARTS:
            if not (folder / name).is_file():
                return f"{name} is missing"
            if facts_of(folder / name) != record["files"][name]:
                return f"{name} is not what was committed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{RECORD} cannot be read ({type(error).__name__}: {error})"
    return ""


def facts_of(path: Path) -> dict[str, Any]:
    """Size and digest of a file, as records name them."""
    return {"size": path.stat().st_size, "digest": file_digest(path)}


def checkpoint_at(folder: Path) -> Checkpoint:
    """A checkpoint that `newest` has found intact."""
    return Checkpoint(folder, read_json(folder / RECORD))


def newest(
    root: Path,
    *,
    data_digest: str,
    plan: Mapping[str, Any],
    quarantine: Path,
    event: Callable[..., None] = lambda kind, **detail: None,
) -> Checkpoint | None:
    """The newest checkpoint that is intact. Damaged ones go to quarantine, with an event, and the next older one is tried.

    Raises:
        StageFailedError: it belongs to other data or another plan, or another version wrote it: nothing is loaded.
    """
    for folder in reversed(committed(root)):
        if words := foreign(folder):
            raise StageFailedError(
                f"the checkpoint is {words}", where=str(folder),
                fix="go on with the version that wrote it, or remove the folder to begin anew",
            )  # fmt: skip
        if reason := damage(folder):
            aside = set_aside(folder, quarantine, reason)
            event("checkpoint_damaged", checkpoint=folder.name, reason=reason, moved_to=aside.name)
            continue
        record = read_json(folder / RECORD)
        for what, found, wanted in (("data", record["data"], data_digest), ("plan", record["plan"], dict(plan))):
            if found != wanted:
                raise StageFailedError(
                    f"the checkpoint was made with another {what}; going on would silently train something else",
                    where=str(folder),
                    fix="remove the folder to begin anew, or run again with what it was made with",
                )
        if record["versions"] != versions():
            changed = {name: [old, versions().get(name, "")] for name, old in record["versions"].items()}
            differing = {name: pair for name, pair in changed.items() if pair[0] != pair[1]}
            event("resumed_with_other_versions", checkpoint=folder.name, versions=differing)
        return Checkpoint(folder, record)
    return None


def set_aside(folder: Path, quarantine: Path, reason: str) -> Path:
    """Move a damaged checkpoint to quarantine, with the reason beside; never read again, there to be looked at."""
    quarantine.mkdir(parents=True, exist_ok=True)
    aside = quarantine / f"checkpoint-{folder.name}-{uuid.uuid4().hex[:8]}"
    shutil.move(folder, aside)
    write_json(aside / "reason.json", {"checkpoint": str(folder), "reason": reason})
    return aside


def quarantined(quarantine: Path, root: Path) -> list[Path]:
    """Damaged checkpoints that were set aside from a folder of checkpoints."""
    return [path.parent for path in sorted(quarantine.glob("checkpoint-step-*/reason.json")) if _set_aside_from(path, root)]


def _set_aside_from(reason: Path, root: Path) -> bool:
    try:
        return Path(read_json(reason)["checkpoint"]).parent == root
    except (OSError, ValueError, KeyError, TypeError):
        return False


def publish_checkpoint(folder: Path, place: Callable[[str], Path]) -> None:
    """Put a committed checkpoint's promised files where `place(name)` says."""
    for name in (*PARTS, RECORD):
        link_or_copy(folder / name, place(name))
