"""A checkpoint is a commit: written beside, digested, synced, renamed. What cannot be verified is never loaded.

```
step-00000500/  model.safetensors  optimizer.safetensors  rng.safetensors  config.json  checkpoint.json
```
`checkpoint.json` holds the place (step, position in the data), the plan, the schedule in effect, the data's digest, notes of the
callbacks and the digest of every file, and its own. There is no pickle and no time stamp: the same training gives the same bytes.
What depends on the clock (the controller's pace) lies beside in `observed.json`: helpful, promising nothing, never published.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline_lib.errors import StageFailedError
from pipeline_lib.training.loop import Session
from pipeline_lib.training.schedule import Schedule
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.files import link_or_copy, read_json, remove_tree, sync_file, sync_folder, write_json
from pipeline_lib.workspace.identity import file_digest, fingerprint_of
from pipeline_lib.workspace.machine import versions

FORMAT = 1
RECORD = "checkpoint.json"
OBSERVED = "observed.json"
PARTS = ("model.safetensors", "optimizer.safetensors", "rng.safetensors", "config.json")


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
        """What depends on the clock; empty when it cannot be read."""
        try:
            return dict(read_json(self.folder / OBSERVED))
        except (OSError, ValueError):
            return {}

    @property
    def notes(self) -> dict[str, Any]:
        """What callbacks wanted to keep, by their name."""
        return dict(self.record["notes"])


def write_checkpoint(
    root: Path,
    session: Session,
    *,
    data_digest: str,
    notes: Mapping[str, Any],
    observed: Mapping[str, Any] | None = None,
    scheduled: bool = True,
) -> Path:
    """Commit the session's state as `root/step-XXXXXXXX`.

    Args:
        root: folder of checkpoints.
        session: what is saved.
        data_digest: digest of the data that is trained on; a checkpoint of other data is refused at resume.
        notes: JSON values of callbacks, by name.
        observed: JSON values that depend on the clock.
        scheduled: False for one that only a stop request caused: it goes as soon as a newer one is there.
    """
    root.mkdir(parents=True, exist_ok=True)
    beside = root / f".step-{uuid.uuid4().hex[:8]}"
    beside.mkdir()
    save_file(_weights(session.model), beside / "model.safetensors", metadata={"format": "pt"})
    save_file(_optimizer_tensors(session.optimizer), beside / "optimizer.safetensors")
    save_file(_generators(), beside / "rng.safetensors")
    session.model.config.save_pretrained(beside)
    record: dict[str, Any] = {
        "format": FORMAT,
        "step": session.step,
        "position": session.step * session.plan.batch_sequences,
        "scheduled": scheduled,
        "seed": session.seed,
        "plan": session.plan.to_json(),
        "schedule": session.schedule.to_json(),
        "data": data_digest,
        "notes": dict(notes),
        "versions": versions(),
        "files": {name: _facts(beside / name) for name in PARTS},
    }
    for name in PARTS:
        sync_file(beside / name)
    write_json(beside / OBSERVED, dict(observed or {}))
    write_json(beside / RECORD, {**record, "digest": fingerprint_of(record)})
    target = root / f"step-{session.step:08d}"
    fault_point("checkpoint.before_commit")
    remove_tree(target)
    beside.rename(target)
    sync_folder(root)
    fault_point("checkpoint.after_commit")
    return target


def publish_checkpoint(folder: Path, place: Callable[[str], Path]) -> None:
    """Put a committed checkpoint's promised files where `place(name)` says."""
    for name in (*PARTS, RECORD):
        link_or_copy(folder / name, place(name))


def prune(root: Path, keep: int) -> None:
    """Leave the newest `keep` scheduled checkpoints, and an unscheduled one only while it is the newest of all."""
    kept = 0
    for place, folder in enumerate(reversed(committed(root))):
        scheduled = _is_scheduled(folder)
        if (scheduled and kept < keep) or (not scheduled and place == 0):
            kept += scheduled
            continue
        remove_tree(folder)
    for scrap in root.glob(".*"):
        shutil.rmtree(scrap, ignore_errors=True)


def has_checkpoint(root: Path, step: int) -> bool:
    """Whether a checkpoint of a step is committed (not verified)."""
    return (root / f"step-{step:08d}" / RECORD).is_file()


def committed(root: Path) -> list[Path]:
    """Folders of committed checkpoints, oldest first (not verified)."""
    return sorted(root.glob("step-*"))


def newest(
    root: Path, *, data_digest: str, plan: Mapping[str, Any], event: Callable[..., None] = lambda kind, **detail: None
) -> Checkpoint | None:
    """The newest checkpoint that is intact. Damaged ones are renamed `damaged-…`, with an event, and the next older is tried.

    Raises:
        StageFailedError: it belongs to other data or another plan: nothing is loaded.
    """
    for folder in reversed(committed(root)):
        if reason := damage(folder):
            aside = folder.with_name(f"damaged-{folder.name}-{uuid.uuid4().hex[:4]}")
            folder.rename(aside)
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


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, or ""."""
    try:
        record = read_json(folder / RECORD)
        digest = record.pop("digest")
        if record["format"] != FORMAT:
            return f"format {record['format']} is not known here"
        if digest != fingerprint_of(record):
            return f"{RECORD} is not what was committed"
        for name in PARTS:
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _facts(folder / name) != record["files"][name]:
                return f"{name} is not what was committed"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{RECORD} cannot be read ({type(error).__name__}: {error})"
    return ""


def restore(checkpoint: Checkpoint, session: Session) -> None:
    """Bring a fresh session to the state of a verified checkpoint: weights, optimizer, schedule, random numbers, place."""
    weights = load_file(checkpoint.folder / "model.safetensors")
    own = _weights(session.model)
    if own.keys() != weights.keys():
        raise StageFailedError(f"the checkpoint holds other weights: {sorted(own.keys() ^ weights.keys())[:5]}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
    _restore_optimizer(session.optimizer, load_file(checkpoint.folder / "optimizer.safetensors"))
    generators = load_file(checkpoint.folder / "rng.safetensors")
    torch.random.set_rng_state(generators["cpu"])
    if "cuda" in generators and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators["cuda"])
    session.continue_at(checkpoint.step, Schedule(**checkpoint.record["schedule"]))


def _facts(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "digest": file_digest(path)}


def _is_scheduled(folder: Path) -> bool:
    try:
        return bool(read_json(folder / RECORD)["scheduled"])
    except (OSError, ValueError, KeyError):
        return False


def _weights(model: Any) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers, tied ones once, under the names `from_pretrained` reads."""
    names = dict(model.named_parameters()).keys() | dict(model.named_buffers()).keys()
    return {name: tensor.contiguous() for name, tensor in model.state_dict(keep_vars=False).items() if name in names}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """State of every parameter as `<index>.<name>`. Rates and decay are the plan's and are not stored."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value.contiguous() for index, values in state.items() for name, value in values.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    if sum(len(group["params"]) for group in groups) != len(state):
        raise StageFailedError("the checkpoint's optimizer belongs to another model", where="optimizer.safetensors")
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _generators() -> dict[str, torch.Tensor]:
    """Random states. Training draws from torch only."""
    states = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
