"""Several processes that train together, started and watched from the stage: the launcher owns restarts.

It starts them itself, one by one, or through torchrun as its child; or it waits for processes that somebody else starts
(`external`: torchrun or `accelerate launch` on several machines, a batch system). All find their order in a folder of the launch,
which the machines share, and answer in files there.

A rank that dies leaves the others waiting, so all are ended and launched afresh from the newest checkpoint: a bounded number of
times without a new checkpoint, with a growing pause. A rank that stands still is found by the silence. Whatever ends the launcher
ends its ranks and all that they started; a rank whose parent or launcher is gone ends itself (`rank.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline_lib import errors
from pipeline_lib.config.model import Launcher, ModelConfig, TrainConfig
from pipeline_lib.errors import MillraceError, StageFailedError, StoppedError
from pipeline_lib.extensions import active_extensions
from pipeline_lib.training.checkpoints import committed
from pipeline_lib.training.failure import give_up
from pipeline_lib.training.policies import Ledger
from pipeline_lib.training.rank import ALIVE_SECONDS, LAUNCHER, OF_A_LAUNCHER, ORDER, STOP, Order, said_by
from pipeline_lib.training.signals import Signal
from pipeline_lib.workspace.files import remove_tree, write_json
from pipeline_lib.workspace.machine import usable_cores
from pipeline_lib.workspace.services import Progress
from pipeline_lib.workspace.stage import StageRun

LOOK_SECONDS = 0.2
TAIL_BYTES = 2000  # of a rank's standard error, told when it dies
LONGEST_PAUSE = 60.0  # seconds before a relaunch
FIX = "look at the end of the rank's log; `millrace retry` goes on; train.processes=1 needs no other process"


@dataclass(frozen=True)
class _Death:
    """Why a launch ended without its work being done."""

    who: str
    how: str
    log: str  # its end


@dataclass(frozen=True)
class _Child:
    """A process of the launch."""

    who: str
    process: subprocess.Popen[bytes]
    log: Path


def launch(run: StageRun, *, train: TrainConfig, model: ModelConfig) -> None:
    """Train with `train.processes` processes until the last checkpoint is committed.

    Raises:
        StoppedError: a stop was asked for; a checkpoint is saved.
        StageFailedError: processes died again and again without a new checkpoint.
        MillraceError: what the training itself had to tell.
    """
    ledger = Ledger(train.recovery.table())
    checkpoints = run.keep("checkpoints")
    reached = _newest(checkpoints)
    tried = 0
    while death := _once(run, train, model):
        if (now := _newest(checkpoints)) > reached:  # it moves: count anew
            reached, tried, ledger = now, 0, Ledger(ledger.table)
        policy = ledger.take("worker_died", now)
        evidence = {"who": death.who, "how": death.how, "end of its log": death.log[-300:]}
        if policy is None or policy.action != "relaunch":
            give_up(run.event, Signal("worker_died", now, evidence), tried=ledger.tried("worker_died"), fix=FIX)
        pause = min(policy.pause_seconds * 2**tried, LONGEST_PAUSE)
        tried += 1
        run.event(
            "recovery", step=now, policy=policy.name, action=policy.action, signal="worker_died", evidence=evidence,
            cost={"from_step": now, "pause_seconds": pause, "launch": tried + 1},
        )  # fmt: skip
        _wait(run, pause)


def _wait(run: StageRun, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if run.services.should_stop():
            raise StoppedError("stopped on request between two launches", where="stage train", fix="run it again: it goes on")
        time.sleep(min(LOOK_SECONDS, seconds))


def _newest(checkpoints: Path) -> int:
    found = committed(checkpoints)
    return int(found[-1].name.partition("-")[2]) if found else 0


def _once(run: StageRun, train: TrainConfig, model: ModelConfig) -> _Death | None:
    """One launch: None when the work is done."""
    folder = run.keep("trainer") / f"launch-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    (folder / LAUNCHER).write_text("0")
    write_json(folder / ORDER, _order(run, train, model).to_json())
    try:
        with _children(folder, train.launcher, train.processes) as children:
            if not children:
                words = shlex.join(_command("torchrun", train.processes, folder))
                run.services.log(f"train: waits for {train.processes} processes that you start, for example with: {words}")
            return _watch(run, children, train.processes, train.stall_seconds, folder)
    finally:
        remove_tree(folder)


def _order(run: StageRun, train: TrainConfig, model: ModelConfig) -> Order:
    services = run.services
    row = {name: getattr(run.stage, name) for name in ("name", "version", "kind", "function")}
    return Order(
        size=train.processes, parallel=train.parallel, workspace=str(run.workspace.root), work=str(run.work),
        stage={**row, "uses": dict(run.stage.uses)},
        key=run.key, fingerprint=run.fingerprint, inputs={name: artifact.key for name, artifact in run.inputs.items()},
        seed=run.seed, train=train.model_dump(mode="json"), model=model.model_dump(mode="json"),
        extensions=list(active_extensions()), adaptive=services.adaptive,
        follow=None if services.follow is None else list(services.follow),
        deadline=services.deadline.isoformat() if services.deadline else None,
    )  # fmt: skip


def _command(launcher: Launcher, size: int, folder: Path) -> list[str]:
    """What is started: one rank, or torchrun, which starts all of them; restarts are ours."""
    rank = ["-m", "pipeline_lib.training.rank", str(folder)]
    if launcher == "own":
        return [sys.executable, *rank]
    alone = ["--standalone", "--max-restarts=0", f"--nproc-per-node={size}"]
    return [sys.executable, "-m", "torch.distributed.run", *alone, *rank]


@contextlib.contextmanager
def _children(folder: Path, launcher: Launcher, size: int) -> Iterator[list[_Child]]:
    """Start what is to be started; however the block is left, none of it and nothing that it started is left."""
    children: list[_Child] = []
    base = {name: value for name, value in os.environ.items() if name not in OF_A_LAUNCHER}  # the stage's own, where it has one
    base["OMP_NUM_THREADS"] = str(max(1, usable_cores() // size))
    if launcher == "own":
        starts = [(f"rank {rank}", {"RANK": str(rank), "WORLD_SIZE": str(size)}) for rank in range(size)]
    else:
        starts = [] if launcher == "external" else [(launcher, {})]
    try:
        for who, own in starts:
            log = folder / f"{who.replace(' ', '-')}.log"
            with log.open("wb") as handle:
                process = subprocess.Popen(
                    _command(launcher, size, folder), env={**base, **own}, stdin=subprocess.DEVNULL, stdout=handle,
                    stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
            children.append(_Child(who, process, log))
        yield children
    finally:
        for child in children:
            _end(child.process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and its descendants. What matters is committed; a rank that was asked to save has left by itself.

    A child leads a process group: what it started is in it even when the child is dead and its children are nobody's. Those that
    have made a group of their own (torchrun's ranks) are found while the child lives; ranks see by themselves that it is dead.
    """
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _watch(run: StageRun, children: Sequence[_Child], size: int, stall_seconds: float, folder: Path) -> _Death | None:
    """Pass on what the ranks say until all have done their work (None), a child dies, or a rank is silent.

    Raises:
        MillraceError: a rank had it to tell.
    """
    begin = time.monotonic()
    ears = [_Ear(said_by(folder, rank), begin) for rank in range(size)]
    begun, pulse = bool(children), 0
    while True:
        codes = [child.process.poll() for child in children]  # before listening: what an ended one had to say is heard
        for ear in ears:
            for line in ear.listen():
                ear.done = _pass_on(run, line) == "done" or ear.done
        if dead := [(child, code) for child, code in zip(children, codes, strict=True) if code]:
            child, code = min(dead, key=lambda one: one[1] > 0)  # when one is killed, the others soon end by themselves
            return _Death(child.who, _words(code), _tail(child.log))
        waiting = [rank for rank, ear in enumerate(ears) if not ear.done]
        if all(code == 0 for code in codes) and (not waiting or children):
            return _Death(f"rank {waiting[0]}", "ended before its work was done", "") if waiting else None
        if not begun and any(ear.place for ear in ears):  # who starts ranks himself takes his time
            begun = True
            for ear in ears:
                ear.heard = time.monotonic()
        if begun and waiting and (silence := time.monotonic() - min(ears[rank].heard for rank in waiting)) > stall_seconds:
            quiet = min(waiting, key=lambda rank: ears[rank].heard)
            log = children[min(quiet, len(children) - 1)].log if children else None
            return _Death(f"rank {quiet}", f"gave no sign of life for {silence:.0f} s", _tail(log) if log else "")
        if run.services.should_stop():
            if not begun:
                raise StoppedError("stopped on request before a process was there", where="stage train", fix="run it again")
            (folder / STOP).touch()
        if time.monotonic() - begin >= pulse * ALIVE_SECONDS:
            pulse += 1
            (folder / LAUNCHER).write_text(str(pulse))
        time.sleep(LOOK_SECONDS)


class _Ear:
    """Listens to what a rank says in its file."""

    def __init__(self, path: Path, now: float) -> None:
        self.path, self.heard, self.place, self.done = path, now, 0, False

    def listen(self) -> list[bytes]:
        """The whole lines that are new."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.place)
                new = file.read()
        except FileNotFoundError:
            return []
        lines = new[: new.rfind(b"\n") + 1]
        if lines:
            self.place, self.heard = self.place + len(lines), time.monotonic()
        return lines.splitlines()


def _pass_on(run: StageRun, line: bytes) -> str:
    """Tell what a rank said to whom it concerns; what kind of saying it was."""
    told = json.loads(line)
    kind = str(told["say"])
    if kind == "event":
        run.event(told["kind"], **told["detail"])
    elif kind == "log":
        run.services.log(told["line"])
    elif kind == "progress":
        run.services.announce(Progress(*told["values"]))
    elif kind == "metrics":
        run.services.tracker.metrics(told["values"], step=told["step"])
    elif kind == "failed":
        raise _error(told)
    return kind


def _error(told: dict[str, str]) -> MillraceError:
    known = getattr(errors, told["kind"], StageFailedError)
    kind = known if isinstance(known, type) and issubclass(known, MillraceError) else StageFailedError
    return kind(told["what"], where=told["where"], fix=told["fix"])


def _words(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _tail(log: Path) -> str:
    with log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - TAIL_BYTES))
        return handle.read().decode("utf-8", "replace").strip()
