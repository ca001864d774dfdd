"""A run in MLflow: start or resume by our own id, parameters once, batched metrics through the spool, the true end."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline_lib.config.resources import TrackingConfig
from pipeline_lib.tracking.courier import Courier
from pipeline_lib.tracking.delivery import Delivery
from pipeline_lib.tracking.server import tracking_uri
from pipeline_lib.tracking.sinks import Sink
from pipeline_lib.tracking.spool import Spool
from pipeline_lib.workspace.machine import code_revision
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace

FLUSH_SECONDS = 30.0  # what a finished run waits for the server; the rest is delivered at the next start
NOT_IN_NAMES = re.compile(r"[^\w./ -]")  # MLflow refuses other characters in a parameter's name
STATUS = {"completed": "FINISHED", "nothing_new": "FINISHED", "failed": "FAILED", "cancelled": "KILLED", "killed": "KILLED"}


class Run:
    """Implements `workspace.services.Tracker` for a pipeline run and its nested runs. Calls return at once."""

    def __init__(self, spool: Spool, name: str, courier: Courier | None = None) -> None:
        self.spool, self.name, self.courier = spool, name, courier
        self.sinks: Sequence[Sink] = ()  # curves go there, too

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Log numbers at a step."""
        for sink in self.sinks:
            sink.metrics(values, int(step))
        self.spool.append("metrics", self.name, values={k: float(v) for k, v in values.items()}, step=int(step))

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; a value that is already there stays."""
        self.spool.append("params", self.name, values={k: str(v) for k, v in values.items()})

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self.spool.append("tags", self.name, values=dict(values))

    def child(self, name: str, *, tags: Mapping[str, str] | None = None) -> Run:
        """Start or resume a nested run."""
        full = f"{self.name}/{name}"
        self.spool.append("start", full, name=name, parent=self.name, tags=dict(tags or {}))
        return Run(self.spool, full, self.courier)

    def dataset(self, name: str, digest: str, source: str, *, context: str, profile: str = "{}") -> None:
        """A data set that the run used, by digest."""
        self.spool.append("dataset", self.name, name=name, digest=digest, source=source, context=context, profile=profile)

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file to keep with the run."""
        self.spool.append("artifact", self.name, path=str(path), folder=folder)

    def model(
        self,
        name: str,
        folder: Path,
        *,
        step: int,
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        upload: bool = False,
        made_by: str = "",
    ) -> None:
        """A checkpoint (by reference) or a finished model (uploaded). `made_by`: the run of ours whose model of this name it is;
        where MLflow has that one, nothing is made or copied."""
        self.spool.append(
            "model", self.name, name=name, folder=str(folder), step=step, metrics=dict(metrics),
            tags={**tags, "millrace.folder": str(folder)}, upload=upload, made_by=made_by,
        )  # fmt: skip

    def register(self, registered: str, name: str, tags: Mapping[str, str], *, made_by: str = "") -> None:
        """The finished model as a version of a registered model; `made_by` as in `model`."""
        self.spool.append("register", self.name, registered=registered, name=name, tags=dict(tags), made_by=made_by)

    def alias(self, registered: str, alias: str, target: str) -> None:
        """Let an alias name the version that a run of ours made."""
        self.spool.append("alias", self.name, registered=registered, alias=alias, target=target)

    def end(self, status: str = "FINISHED") -> None:
        """End with the true status."""
        self.spool.append("end", self.name, status=status)

    def close(self, seconds: float = FLUSH_SECONDS) -> dict[str, str]:
        """Deliver what is left; see `known`."""
        if self.courier is not None:
            self.courier.stop(seconds)
        return self.known()

    def known(self) -> dict[str, str]:
        """MLflow's ids as far as they are known: {"run_id", "experiment_id"}."""
        return dict(self.courier.known) if self.courier else {}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested configuration as short dotted parameters."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for number, item in enumerate(value):
                found |= flat(item, f"{prefix}{key}.{item.get('name', number)}.")
        else:
            found[NOT_IN_NAMES.sub("_", prefix + key)] = str(value)
    return found


def start_run(
    workspace: Workspace, config: TrackingConfig, record: RunRecord, *, log: Callable[[str], None], running: str = ""
) -> Run:
    """Start (or resume) the MLflow run of a pipeline run. Returns at once; MLflow itself is met in the background.

    Args:
        workspace: where the spool lies.
        config: tracking section.
        record: the run; its id names the MLflow run.
        log: where to say that the server is away.
        running: address of this workspace's running MLflow server, if there is one.
    """
    spool = Spool(workspace.spool_folder / f"{record.run_id}.jsonl")
    run = Run(spool, record.run_id)
    tags = {
        "millrace.config_digest": record.config_digest,
        "millrace.parent_run": record.parent,
        "mlflow.note.content": record.goal,
        "mlflow.source.name": f"millrace: {record.pipeline}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": code_revision(),
        **{f"millrace.resolved.{name}": value for name, value in record.resolved.items()},
    }
    name = f"{record.run_id} {record.pipeline}"  # MLflow's lists cut names at their end, which must not be what differs
    spool.append("start", record.run_id, name=name, parent="", tags={k: v for k, v in tags.items() if v})
    run.params(flat(record.config))
    uri = tracking_uri(config, workspace, running=running)
    run.courier = Courier(workspace, record.run_id, spool, uri=uri, experiment=config.experiment, log=log)
    return run


def reconcile(
    workspace: Workspace, config: TrackingConfig, dead: Mapping[str, str], *, log: Callable[[str], None], running: str = ""
) -> int:
    """Close in MLflow what dead runs left open, and deliver every spool that is not empty.

    Args:
        workspace: where the spools lie.
        config: tracking section.
        dead: run id → outcome of runs whose process is gone.
        log: where to say what could not be delivered.
        running: address of this workspace's running MLflow server.

    Returns:
        The number of operations delivered.
    """
    sent = 0
    for path in sorted(workspace.spool_folder.glob("*.jsonl")):
        spool = Spool(path)
        if path.stem in dead:
            operations = spool.all()
            ended = {op["run"] for op in operations if op["op"] == "end"}
            for name in dict.fromkeys(op["run"] for op in operations if op["op"] == "start"):
                if name not in ended:
                    spool.append("end", name, status=STATUS[dead[path.stem]])
        if spool.done():
            continue
        try:
            with FileLock(path.with_suffix(".lock"), thread_local=False).acquire(timeout=0):
                uri = tracking_uri(config, workspace, running=running)
                sent += Delivery(spool, uri, config.experiment, workspace).deliver()
        except Timeout:
            continue  # its own process is delivering
        except Exception as error:
            log(f"{path.stem}: not delivered to MLflow yet ({type(error).__name__})")
            return sent
    return sent
