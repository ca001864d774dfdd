"""Curves for those who look at them elsewhere: TensorBoard files, or W&B, offline unless its own settings say otherwise."""

from __future__ import annotations

import atexit
import os
import re
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pipeline_lib.errors import ConfigError
from pipeline_lib.workspace.services import NullTracker

EXTRAS = {"tensorboard": "TensorBoard", "wandb": "W&B"}  # the package, the extra and the setting have one name
FLUSH_SECONDS = 10
NOT_IN_IDS = re.compile(r"[^\w-]")


class Sink(Protocol):
    """Takes numbers; writes in the background."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at a step."""

    def close(self) -> None:
        """Write what is left. Harmless when done twice."""


class TensorBoard:
    """Event files, `tensorboard --logdir FOLDER` shows them. A resumed run writes a further file into the same folder."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.writer = EventFileWriter(str(folder), flush_secs=FLUSH_SECONDS)
        atexit.register(self.close)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at a step."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = [Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()]
        self.writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=numbers)))

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class WeightsAndBiases:
    """A run of W&B, by our id, so that a resumed run goes on with the same one. $WANDB_MODE=online sends it while it goes;
    otherwise it stays in the folder until `wandb sync`."""

    def __init__(self, folder: Path, run_id: str, project: str) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self.run: Any = wandb.init(
            project=project, name=run_id, id=NOT_IN_IDS.sub("-", run_id), dir=str(folder), mode=mode, resume="allow",
            settings=wandb.Settings(console="off", x_disable_stats=True),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="step")
        atexit.register(self.close)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers at a step; steps may come again after a resume."""
        self.run.log({**values, "step": step})

    def close(self) -> None:
        """Write what is left: `finish` alone leaves the end of an offline run in the memory of W&B's own process."""
        import wandb

        self.run.finish()
        wandb.teardown()


class SinkTracker(NullTracker):
    """A run that is followed by sinks alone."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = sinks

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Log numbers at a step."""
        for sink in self.sinks:
            sink.metrics(values, int(step))


def check_sinks(names: Sequence[str]) -> None:
    """Raise ConfigError where a sink that is asked for is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(
                f"{EXTRAS[name]} is not installed", where="tracking.sinks", fix=f"pip install 'millrace[{name}]', or leave it out"
            )


def open_sinks(names: Sequence[str], folder: Path, *, run_id: str, project: str) -> list[Sink]:
    """The sinks that `tracking.sinks` names.

    Args:
        names: `tensorboard`, `wandb`.
        folder: each gets a folder of its own in it.
        run_id: of the run.
        project: of W&B.

    Raises:
        ConfigError: one is not installed.
    """
    check_sinks(names)
    made: dict[str, Any] = {
        "tensorboard": lambda: TensorBoard(folder / "tensorboard" / run_id),
        "wandb": lambda: WeightsAndBiases(folder / "wandb", run_id, project),
    }
    return [made[name]() for name in dict.fromkeys(names)]
