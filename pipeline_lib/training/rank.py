"""One process of a training over several: `python -m pipeline_lib.training.rank FOLDER`, with torchrun's RANK and WORLD_SIZE, or
what mpirun has for them.

FOLDER/order.json says what to train. The process says what happens as lines of JSON in a file of FOLDER (the first rank
everything, the others only that they live), and stops at the next step when it gets a SIGTERM or FOLDER/stop is there. It ends
when whoever started it is gone, or whoever gave the order. What it leaves is a committed checkpoint; the stage publishes it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.errors import ConfigError, MillraceError
from pipeline_lib.extensions import load_extensions
from pipeline_lib.workspace.files import read_json
from pipeline_lib.workspace.services import NullTracker, Progress, Services
from pipeline_lib.workspace.stage import Stage, StageRun
from pipeline_lib.workspace.workspace import Workspace

PARENT_SECONDS = 0.5  # between looks at whether parent and launcher live
ALIVE_SECONDS = 1.0  # between signs of life at most, in both directions
LOST_SECONDS = 20.0  # without a sign of life of the launcher, which may be on another machine
ORDER, STOP, LAUNCHER = "order.json", "stop", "launcher"  # files of a launch: what to do, stop asked for, the launcher's pulse
OF_A_LAUNCHER = frozenset({"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"})
"""What torchrun tells its ranks in the environment."""
OF_MPI = {
    "RANK": ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"),
    "LOCAL_RANK": ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "MV2_COMM_WORLD_LOCAL_RANK"),
}
"""The same as mpirun tells it (Open MPI, MPICH and Intel's, MVAPICH), alone or for `accelerate launch --mpirun_hostfile`."""
NOBODY_SAID = """nobody told this process which rank it is: it needs RANK and WORLD_SIZE, from torchrun or mpirun. On processors
`accelerate launch` starts a single process, without --mpirun_hostfile; torchrun starts as many as it is told."""
Said = Literal["alive", "event", "log", "progress", "metrics", "failed", "done"]


@dataclass(frozen=True)
class Order:
    """What the parent wants trained, as JSON."""

    size: int  # processes
    parallel: Literal["ddp", "fsdp"]
    workspace: str
    work: str  # the stage's work folder
    stage: Mapping[str, Any]  # name, version, kind, function, uses
    key: str
    fingerprint: str
    inputs: Mapping[str, str]  # stage → artifact key
    seed: int
    train: Mapping[str, Any]
    model: Mapping[str, Any]
    extensions: list[str]
    adaptive: bool
    follow: list[Mapping[str, Any]] | None
    deadline: str | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def said_by(folder: Path, rank: int) -> Path:
    """Where a rank of a launch says what happens."""
    return folder / f"said-{rank}.jsonl"


class Voice:
    """What a rank says to its launcher: a line is written at once and whole."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.file = said_by(folder, rank).open("ab", buffering=0)

    def __call__(self, said: Said, /, **what: Any) -> None:
        """One line."""
        self.file.write((json.dumps({"say": said, **what}, default=str) + "\n").encode())


class Rank(StageRun):
    """The stage's run as a rank has it: events are the parent's, and only the first rank's journal counts."""

    rank: int
    say: Voice

    def event(self, kind: str, **detail: Any) -> None:
        """Tell the launcher."""
        if self.rank == 0:
            self.say("event", kind=kind, detail=detail)

    def keep(self, name: str) -> Path:
        """The shared folder; a journal of its own for a rank whose journal nobody reads."""
        return super().keep(name if self.rank == 0 or name != "journal" else f"journal-of-rank-{self.rank}")


class _Relay(NullTracker):
    """Curves, to the launcher's tracker."""

    def __init__(self, say: Voice) -> None:
        self.say = say

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Tell the launcher."""
        self.say("metrics", values=dict(values), step=step)


class _Alive:
    """A sign of life at most once a second; called after every step."""

    def __init__(self, say: Voice) -> None:
        self.say, self.last = say, 0.0

    def __call__(self) -> None:
        if (now := time.monotonic()) - self.last >= ALIVE_SECONDS:
            self.last = now
            self.say("alive")


def follow(folder: Path) -> None:
    """End this process, whatever it waits for, when its parent is gone, the launch is over, or its launcher is silent."""
    parent, pulse, heard = os.getppid(), "", time.monotonic()

    def watch() -> None:
        nonlocal pulse, heard
        while os.getppid() == parent:
            try:
                now = (folder / LAUNCHER).read_text()
            except FileNotFoundError:
                break
            if now != pulse:
                pulse, heard = now, time.monotonic()
            if time.monotonic() - heard > LOST_SECONDS:
                break
            time.sleep(PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="follow", daemon=True).start()


def take_from_mpi() -> bool:
    """Put what mpirun tells where torchrun would, and nowhere else: accelerate looks there too; whether the rank is known now."""
    for name, others in OF_MPI.items():
        told = [os.environ.pop(other) for other in others if other in os.environ]
        if told:
            os.environ.setdefault(name, told[0])
    return {"RANK", "WORLD_SIZE"} <= os.environ.keys()


def main(folder: Path) -> int:
    """Join the others and train; the exit code."""
    if not take_from_mpi():
        print(NOBODY_SAID, file=sys.stderr)
        return ConfigError.exit_code
    follow(folder)
    order = Order(**read_json(folder / ORDER))
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the launcher, which asks
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    say = Voice(folder, rank)
    alive = _Alive(say)

    def should_stop() -> bool:
        alive()
        return asked.is_set() or (folder / STOP).exists()

    def announce(progress: Progress) -> None:
        say("progress", values=list(vars(progress).values()))

    main_rank = rank == 0
    services = Services(
        tracker=_Relay(say) if main_rank else NullTracker(), should_stop=should_stop, adaptive=order.adaptive,
        follow=None if order.follow is None else tuple(order.follow),
        announce=announce if main_rank else lambda progress: None,
        log=(lambda line: say("log", line=line)) if main_rank else lambda line: None,
        deadline=datetime.fromisoformat(order.deadline) if order.deadline else None,
    )  # fmt: skip
    try:
        if size != order.size:
            raise ConfigError(f"{size} processes were started", where="train.processes", fix=f"start {order.size}")
        from pipeline_lib.training.train import train_rank
        from pipeline_lib.training.world import join

        workspace = Workspace.open(order.workspace)
        inputs = {name: workspace.artifact(key) for name, key in order.inputs.items()}
        run = Rank(
            Stage(**order.stage), order.fingerprint, workspace, inputs, Path(order.work), services, seed=order.seed,
            key=order.key,
        )  # fmt: skip
        run.rank, run.say = rank, say
        load_extensions(order.extensions)
        join(folder / "meeting", rank, size, order.parallel)
        train_rank(run, train=TrainConfig.model_validate(order.train), model=ModelConfig.model_validate(order.model))
    except MillraceError as error:
        known = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == MillraceError.__module__)
        say("failed", kind=known, what=error.what, where=error.where, fix=error.fix)
        return error.exit_code
    say("done")
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)  # the group's threads would wait for ranks that have left
