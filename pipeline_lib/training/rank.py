"""One process of a training over several: `python -m pipeline_lib.training.rank FOLDER`, with torchrun's RANK and WORLD_SIZE.

FOLDER/order.json says what to train. The process tells its parent what happens as lines of JSON on standard output (the first one
everything, the others only that they live), follows it when it dies, and stops at the next step when it gets a SIGTERM. What it
leaves is a committed checkpoint; the parent publishes.
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
from pipeline_lib.errors import MillraceError
from pipeline_lib.extensions import load_extensions
from pipeline_lib.workspace.files import read_json
from pipeline_lib.workspace.services import NullTracker, Progress, Services
from pipeline_lib.workspace.stage import Stage, StageRun
from pipeline_lib.workspace.workspace import Workspace

PARENT_SECONDS = 0.5  # between looks at whether the parent lives
ALIVE_SECONDS = 1.0  # between signs of life at most
ORDER = "order.json"
Say = Literal["alive", "event", "log", "progress", "metrics", "failed"]


@dataclass(frozen=True)
class Order:
    """What the parent wants trained, as JSON."""

    parent: int  # process id
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


def say(said: Say, /, **what: Any) -> None:
    """One line to the parent."""
    sys.stdout.write(json.dumps({"say": said, **what}, default=str) + "\n")
    sys.stdout.flush()


class Rank(StageRun):
    """The stage's run as a rank has it: events are the parent's, and only the first rank's journal counts."""

    rank = 0

    def event(self, kind: str, **detail: Any) -> None:
        """Tell the parent."""
        if self.rank == 0:
            say("event", kind=kind, detail=detail)

    def keep(self, name: str) -> Path:
        """The shared folder; a journal of its own for a rank whose journal nobody reads."""
        return super().keep(name if self.rank == 0 or name != "journal" else f"journal-of-rank-{self.rank}")


class _Relay(NullTracker):
    """Curves, to the parent's tracker."""

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Tell the parent."""
        say("metrics", values=dict(values), step=step)


class _Alive:
    """A sign of life at most once a second; called after every step."""

    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self) -> None:
        if (now := time.monotonic()) - self.last >= ALIVE_SECONDS:
            self.last = now
            say("alive")


def _follow(parent: int) -> None:
    """End this process when its parent is gone, whatever it waits for."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="follow", daemon=True).start()


def main(folder: Path) -> int:
    """Join the others and train; the exit code."""
    order = Order(**read_json(folder / ORDER))
    _follow(order.parent)
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which asks
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    from pipeline_lib.training.train import train_rank
    from pipeline_lib.training.world import join

    alive = _Alive()

    def should_stop() -> bool:
        alive()
        return asked.is_set()

    def announce(progress: Progress) -> None:
        say("progress", values=list(vars(progress).values()))

    main_rank = rank == 0
    services = Services(
        tracker=_Relay() if main_rank else NullTracker(), should_stop=should_stop, adaptive=order.adaptive,
        follow=None if order.follow is None else tuple(order.follow),
        announce=announce if main_rank else lambda progress: None,
        log=(lambda line: say("log", line=line)) if main_rank else lambda line: None,
        deadline=datetime.fromisoformat(order.deadline) if order.deadline else None,
    )  # fmt: skip
    workspace = Workspace.open(order.workspace)
    inputs = {name: workspace.artifact(key) for name, key in order.inputs.items()}
    run = Rank(
        Stage(**order.stage), order.fingerprint, workspace, inputs, Path(order.work), services, seed=order.seed, key=order.key
    )
    run.rank = rank
    try:
        load_extensions(order.extensions)
        join(folder / "meeting", rank, size, order.parallel)
        train_rank(run, train=TrainConfig.model_validate(order.train), model=ModelConfig.model_validate(order.model))
    except MillraceError as error:
        known = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == MillraceError.__module__)
        say("failed", kind=known, what=error.what, where=error.where, fix=error.fix)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)  # the group's threads would wait for ranks that have left
