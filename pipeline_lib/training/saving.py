"""How a checkpoint is written and loaded. Training waits only while its state is copied in memory; a thread does the rest.

Invariants: at most one checkpoint is under way; it is a commit (written beside, digested, synced, renamed), so that a kill at any
moment leaves the older ones as they were; what fails in the thread is raised in training, at the next step; nothing of a
checkpoint is used before the very bytes that are used were digested.
"""

from __future__ import annotations

import contextlib
import errno
import json
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from pipeline_lib.errors import DamagedError, StageFailedError
from pipeline_lib.hardware.machine import synchronize
from pipeline_lib.training.checkpoints import (
    FORMAT,
    OBSERVED,
    RECORD,
    Checkpoint,
    DiskLowError,
    Retention,
    facts_of,
    prune,
    require_room,
)
from pipeline_lib.training.images import Image
from pipeline_lib.training.loop import Session, random_states, set_random_states
from pipeline_lib.training.parallel import like, whole
from pipeline_lib.training.schedule import Schedule
from pipeline_lib.training.state import restore_training, training_tensors
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.files import remove_tree, sync_file, sync_folder
from pipeline_lib.workspace.identity import bytes_digest, fingerprint_of
from pipeline_lib.workspace.machine import versions

FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class _Order:
    """One checkpoint to be written: everything but the tensors, which the images hold."""

    record: Mapping[str, Any]
    observed: Mapping[str, Any]
    config: Any


class CheckpointWriter:
    """Writes a training's checkpoints, one at a time, behind its back. As a context it leaves nothing under way.

    Args:
        root: folder of checkpoints.
        identity: what a checkpoint belongs to, for its record: {"data": digest, "tokenizer": digest}; one of other data is
            refused at resume.
        retention: what stays after each commit.
    """

    def __init__(self, root: Path, *, identity: Mapping[str, str], retention: Retention | None = None) -> None:
        self.root, self.identity, self.retention = root, dict(identity), retention or Retention()
        self.step = -1  # of the latest checkpoint that was ordered
        self._images: dict[str, Image] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):  # the first error is the one to tell
            self.wait()

    def save(
        self,
        session: Session,
        *,
        notes: Mapping[str, Any],
        metrics: Mapping[str, float | None] | None = None,
        observed: Mapping[str, Any] | None = None,
        scheduled: bool = True,
    ) -> None:
        """Copy the session's state and begin to commit it as `root/step-XXXXXXXX`. Waits for the one before, if it is under way.

        Args:
            session: what is saved.
            notes: JSON values of callbacks, by name.
            metrics: losses at this step; `dev_loss` says which checkpoint is the best.
            observed: JSON values that depend on the clock.
            scheduled: False for one that only a stop request caused: it goes as soon as a newer one is there.

        Raises:
            DiskLowError: there is no room for it, or there was none for the one before.
            OSError: the one before could not be written.
        """
        self.wait()
        self.root.mkdir(parents=True, exist_ok=True)
        parts = {
            "model.safetensors": {name: whole(tensor) for name, tensor in weights_of(session.model).items()},
            "optimizer.safetensors": training_tensors(session),
            "rng.safetensors": random_states(),
        }
        if not session.world.main:  # it had to help to put sharded tensors together; the first process writes
            self.step = session.step
            return
        self._take(parts)
        synchronize(session.device)
        require_room(self.root, sum(image.size for image in self._images.values()))
        schedule = session.schedule
        record = {
            "format": FORMAT,
            "step": session.step,
            "position": session.position,
            "scheduled": scheduled,
            "stable": schedule.kind == "wsd" and session.step <= schedule.decay_start,
            "seed": session.seed,
            "plan": session.plan.to_json(),
            "schedule": schedule.to_json(),
            "rates": dict(session.rates),
            "learning_rate": session.learning_rate,
            **self.identity,
            "metrics": dict(metrics or {}),
            "notes": dict(notes),
            "versions": versions(),
        }
        self.step = session.step
        fault_point("checkpoint.copied")
        order = _Order(record, dict(observed or {}), session.model.config)
        self._thread = threading.Thread(target=self._commit, args=(order,), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise what went wrong behind training's back; costs nothing when nothing did.

        Raises:
            DiskLowError: there was no room.
            OSError: it could not be written.
        """
        if self._error is not None:
            error, self._error, self.step = self._error, None, -1
            raise error

    def wait(self) -> None:
        """Until nothing is under way.

        Raises: as `check`.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _take(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, tensors in parts.items():
            if name not in self._images or not self._images[name].fits(tensors):
                self._images.pop(name, None)
                self._images[name] = Image(tensors)
            self._images[name].take(tensors)

    def _commit(self, order: _Order) -> None:
        beside = self.root / f".step-{uuid.uuid4().hex[:8]}"
        try:
            self._write(order, beside)
            prune(self.root, self.retention)
        except BaseException as error:
            remove_tree(beside)
            self._error = _told(error, self.root)

    def _write(self, order: _Order, beside: Path) -> None:
        beside.mkdir()
        files = {}
        for name, image in self._images.items():
            files[name] = image.write(beside / name)
            fault_point("checkpoint.file_written")
        order.config.save_pretrained(beside)
        files["config.json"] = facts_of(beside / "config.json")
        record = {**order.record, "files": files}
        for name, value in ((OBSERVED, order.observed), (RECORD, record)):
            (beside / name).write_text(json.dumps({**value, "digest": fingerprint_of(value)}, indent=1) + "\n", "utf-8")
        for path in beside.iterdir():  # all at once: the system has begun to write the first ones meanwhile
            sync_file(path)
        sync_folder(beside)
        target = self.root / f"step-{record['step']:08d}"
        fault_point("checkpoint.before_commit")
        remove_tree(target)
        beside.rename(target)
        sync_folder(self.root)
        fault_point("checkpoint.after_commit")


def _told(error: BaseException, root: Path) -> BaseException:
    """What the thread met, in training's words."""
    if isinstance(error, OSError) and error.errno in FULL:
        return DiskLowError(
            f"the disk became full while a checkpoint was written ({error.strerror}); the earlier ones are intact",
            where=str(root), fix="make room (`millrace gc` shows what can go), then `millrace retry`",
        )  # fmt: skip
    return error


def restore(checkpoint: Checkpoint, session: Session, *, schedule: Schedule | None = None) -> None:
    """Bring a fresh session to the state of a checkpoint: weights, optimizer, schedule, random numbers, place.

    Args:
        checkpoint: a verified one.
        session: of the same model and optimizer.
        schedule: what is followed from here on; None: what was in effect.

    Raises:
        DamagedError: a file is not what was committed.
        StageFailedError: the checkpoint belongs to another model.
    """
    load_weights(session.model, read_part(checkpoint, "model.safetensors"))
    restore_training(session, read_part(checkpoint, "optimizer.safetensors"))
    set_random_states(read_part(checkpoint, "rng.safetensors"))
    session.rates = dict(checkpoint.record["rates"])
    session.continue_at(checkpoint.step, schedule or Schedule(**checkpoint.record["schedule"]))


def read_part(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint's file. The bytes that are parsed are the bytes that were digested.

    Raises:
        DamagedError: they are not what was committed.
    """
    data = (checkpoint.folder / name).read_bytes()
    if bytes_digest(data) != checkpoint.record["files"][name]["digest"]:
        raise DamagedError(
            f"{name} is not what was committed", where=str(checkpoint.folder), fix="run again: an older one is used"
        )
    return load(data)


def load_weights(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into a model.

    Raises:
        StageFailedError: they are another model's: other names or other shapes.
    """
    own = weights_of(model)
    differing = sorted(own.keys() ^ weights.keys()) or sorted(name for name in own if own[name].shape != weights[name].shape)
    if differing:
        raise StageFailedError(
            f"the checkpoint holds another model's weights: {', '.join(differing[:5])}", where="model.safetensors",
            fix="build the model as the checkpoint's config.json says",
        )  # fmt: skip
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(like(tensor, weights[name]))


def weights_of(model: Any) -> dict[str, Tensor]:
    """Parameters and persistent buffers, tied ones once, under the names `from_pretrained` reads."""
    names = dict(model.named_parameters()).keys() | dict(model.named_buffers()).keys()
    return {name: tensor for name, tensor in model.state_dict(keep_vars=False).items() if name in names}
