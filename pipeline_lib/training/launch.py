"""Several processes that train together, started and watched from the stage: the launcher owns restarts.

A rank that dies leaves the others waiting, so all are ended and launched afresh from the newest checkpoint: a bounded number of
times without a new checkpoint, with a growing pause. A rank that stands still is found by the silence. Whatever ends the launcher
ends its ranks and all that they started; a rank whose parent is gone ends itself (`rank.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline_lib import errors
from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.errors import MillraceError, StageFailedError, StoppedError
from pipeline_lib.extensions import active_extensions
from pipeline_lib.training.checkpoints import committed
from pipeline_lib.training.policies import Ledger
from pipeline_lib.training.rank import ORDER, Order
from pipeline_lib.workspace.files import remove_tree, write_json
from pipeline_lib.workspace.machine import usable_cores
from pipeline_lib.workspace.services import Progress
from pipeline_lib.workspace.stage import StageRun

LOOK_SECONDS = 0.2
TAIL_BYTES = 2000  # of a rank's standard error, told when it dies
LONGEST_PAUSE = 60.0  # seconds before a relaunch


@dataclass
class _Death:
    """Why a launch ended without its work being done."""

    rank: int
    how: str
    log: str
    evidence: dict[str, Any] = field(default_factory=dict)


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
        evidence = {"rank": death.rank, "how": death.how, "log": death.log[-300:], **death.evidence}
        if policy is None or policy.action != "relaunch":
            _give_up(run, evidence, tried, now)
        else:
            pause = min(policy.pause_seconds * 2**tried, LONGEST_PAUSE)
            tried += 1
            run.event(
                "recovery", step=now, policy=policy.name, action=policy.action, signal="worker_died", evidence=evidence,
                cost={"from_step": now, "pause_seconds": pause, "launch": tried + 1},
            )  # fmt: skip
            _wait(run, pause)


def _give_up(run: StageRun, evidence: dict[str, Any], tried: int, step: int) -> None:
    fix = "the end of the rank's log is in the text; `millrace retry` goes on; train.processes=1 needs no other process"
    run.event("training_failed", step=step, signal="worker_died", evidence=evidence, tried=[f"relaunch ({tried} times)"], fix=fix)
    raise StageFailedError(
        f"worker_died at step {step:,}, and nothing helped: rank {evidence['rank']} {evidence['how']}. Tried: relaunch ({tried} "
        f"times without a new checkpoint). The end of its log: …{evidence['log']}",
        where="stage train", fix=fix,
    )  # fmt: skip


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
    write_json(folder / ORDER, _order(run, train, model).to_json())
    try:
        with _ranks(folder, train.processes) as ranks:
            return _watch(run, ranks, train.stall_seconds, folder)
    finally:
        remove_tree(folder)


def _order(run: StageRun, train: TrainConfig, model: ModelConfig) -> Order:
    services = run.services
    row = {name: getattr(run.stage, name) for name in ("name", "version", "kind", "function")}
    return Order(
        parent=os.getpid(), parallel=train.parallel, workspace=str(run.workspace.root), work=str(run.work),
        stage={**row, "uses": dict(run.stage.uses)},
        key=run.key, fingerprint=run.fingerprint, inputs={name: artifact.key for name, artifact in run.inputs.items()},
        seed=run.seed, train=train.model_dump(mode="json"), model=model.model_dump(mode="json"),
        extensions=list(active_extensions()), adaptive=services.adaptive,
        follow=None if services.follow is None else list(services.follow),
        deadline=services.deadline.isoformat() if services.deadline else None,
    )  # fmt: skip


@contextlib.contextmanager
def _ranks(folder: Path, size: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start all ranks; however the block is left, none of them and nothing that they started is left."""
    ranks: list[subprocess.Popen[bytes]] = []
    threads = str(max(1, usable_cores() // size))
    try:
        for rank in range(size):
            env = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "OMP_NUM_THREADS": threads}
            with (folder / f"rank-{rank}.log").open("wb") as log:
                command = [sys.executable, "-m", "pipeline_lib.training.rank", str(folder)]
                process = subprocess.Popen(
                    command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
                )
                ranks.append(process)
        yield ranks
    finally:
        for process in ranks:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a rank and its descendants. What matters is committed; a rank that was asked to save has left by itself.

    A rank leads a process group: what it started is in it even when the rank is dead and its children are nobody's. Those that
    have made a group of their own are found while the rank lives.
    """
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                child.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def _watch(run: StageRun, ranks: list[subprocess.Popen[bytes]], stall_seconds: float, folder: Path) -> _Death | None:
    """Pass on what the ranks say until all have ended well (None), one dies, or all are silent.

    Raises:
        MillraceError: a rank had it to tell.
    """
    said: queue.Queue[tuple[int, bytes]] = queue.Queue()
    for rank, process in enumerate(ranks):
        threading.Thread(target=_listen, args=(rank, process, said), name=f"rank-{rank}", daemon=True).start()
    heard = [time.monotonic()] * len(ranks)
    asked, look = False, 0.0
    while True:
        with contextlib.suppress(queue.Empty):
            rank, line = said.get(timeout=LOOK_SECONDS)
            heard[rank] = time.monotonic()
            _pass_on(run, line)
        if time.monotonic() < look:  # a rank that speaks all the time must not keep us from looking
            continue
        look = time.monotonic() + LOOK_SECONDS
        codes = [process.poll() for process in ranks]
        if any(code is not None for code in codes):
            _drain(run, said)
        if all(code == 0 for code in codes):
            return None
        for rank, code in enumerate(codes):
            if code:
                return _Death(rank, _words(code), _tail(folder / f"rank-{rank}.log"))
        quiet = min((rank for rank, code in enumerate(codes) if code is None), key=lambda rank: heard[rank])
        if (silence := time.monotonic() - heard[quiet]) > stall_seconds:
            return _Death(quiet, f"gave no sign of life for {silence:.0f} s", _tail(folder / f"rank-{quiet}.log"))
        if not asked and run.services.should_stop():
            asked = True
            for process in ranks:
                process.send_signal(signal.SIGTERM)


def _drain(run: StageRun, said: queue.Queue[tuple[int, bytes]]) -> None:
    """What an ended rank has still said, before its end is judged."""
    with contextlib.suppress(queue.Empty):
        end = time.monotonic() + 10 * LOOK_SECONDS
        while time.monotonic() < end:
            _pass_on(run, said.get(timeout=LOOK_SECONDS)[1])


def _listen(rank: int, process: subprocess.Popen[bytes], said: queue.Queue[tuple[int, bytes]]) -> None:
    with contextlib.suppress(ValueError, OSError):  # closed when the launch ended
        for line in process.stdout or ():
            said.put((rank, line))


def _pass_on(run: StageRun, line: bytes) -> None:
    try:
        told = json.loads(line)
        kind = told.pop("say")
    except (ValueError, KeyError, TypeError, AttributeError):
        run.services.log(line.decode("utf-8", "replace").rstrip())  # a library printed
        return
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
