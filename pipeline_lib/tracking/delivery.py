"""Carries operations from the spool to MLflow: in order, in batches, as often as needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline_lib.secrets import told
from pipeline_lib.tracking.server import experiment, open_client
from pipeline_lib.tracking.spool import Spool
from pipeline_lib.workspace.workspace import Workspace

RUN_TAG = "millrace.id"  # our name of a run; MLflow's own id is found by it
BATCH = 1000  # metrics MLflow takes in one call
PARAM_CHARACTERS = 500  # longer values are cut by MLflow at 6,000 in silence; nobody reads even 500

REFUSED = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST", "INVALID_STATE")


class Delivery:
    """Delivers one spool to one server. Not thread-safe: one thread owns it.

    Attributes:
        ids: our run names → MLflow run ids, as far as known.
        refused: what the server refused for good, in words.
    """

    def __init__(self, spool: Spool, uri: str, experiment_name: str, workspace: Workspace) -> None:
        self.spool, self.uri, self.experiment_name, self.workspace = spool, uri, experiment_name, workspace
        self.ids: dict[str, str] = {}
        self.models: dict[str, str] = {}
        self.refused: list[str] = []
        self.experiment_id = ""
        self._client: Any = None

    def connect(self) -> Any:
        """The client, opened at first use."""
        if self._client is None:
            client = open_client(self.uri, self.workspace)
            self.experiment_id = experiment(client, self.experiment_name, self.workspace, self.uri)
            self._client = client
        return self._client

    def deliver(self) -> int:
        """Send everything pending; the number of operations sent.

        Raises:
            Exception: whatever the client raises when the server is away; what was delivered is noted.
        """
        sent = 0
        batch: list[tuple[int, dict[str, Any]]] = []
        for offset, operation in self.spool.pending():
            if operation["op"] != "metrics" or (batch and batch[0][1]["run"] != operation["run"]) or len(batch) >= BATCH:
                sent += self._metrics(batch)
                batch = []
            if operation["op"] == "metrics":
                batch.append((offset, operation))
                continue
            self._try(getattr(self, f"_do_{operation['op']}"), operation)
            self.spool.note(offset)
            sent += 1
        return sent + self._metrics(batch)

    def _try(self, handler: Callable[[dict[str, Any]], None], operation: dict[str, Any]) -> None:
        """What the server refuses for good is remembered and passed over: one bad line must not hold up all that follow."""
        from mlflow.exceptions import MlflowException

        try:
            handler(operation)
        except (MlflowException, KeyError) as error:  # KeyError: a run that was never started
            if isinstance(error, MlflowException) and error.error_code not in REFUSED:
                raise
            self.refused.append(f"{operation['op']} of {operation['run']}: {told(error).splitlines()[0][:200]}")

    def _metrics(self, batch: list[tuple[int, dict[str, Any]]]) -> int:
        if not batch:
            return 0
        from mlflow.entities import Metric

        client, run = self.connect(), self.run_id(batch[0][1]["run"])
        metrics = [
            Metric(name, float(value), operation["time"], int(operation["step"]))
            for _, operation in batch
            for name, value in operation["values"].items()
            if math.isfinite(value)  # MLflow stores infinity as the largest float
        ]
        for first in range(0, len(metrics), BATCH):
            client.log_batch(run, metrics=metrics[first : first + BATCH])
        self.spool.note(batch[-1][0])
        return len(batch)

    def run_id(self, name: str) -> str:
        """MLflow's id of a run of ours; found by tag after a restart.

        Raises:
            KeyError: the run was never started.
        """
        if name not in self.ids:
            found = self.connect().search_runs([self.experiment_id], f"tags.`{RUN_TAG}` = '{name}'", max_results=1)
            if not found:
                raise KeyError(name)
            self.ids[name] = found[0].info.run_id
        return self.ids[name]

    def _do_start(self, operation: dict[str, Any]) -> None:
        client, name = self.connect(), operation["run"]
        try:
            client.update_run(self.run_id(name), status="RUNNING")
        except KeyError:
            tags = {**operation["tags"], RUN_TAG: name}
            if operation["parent"]:
                tags["mlflow.parentRunId"] = self.run_id(operation["parent"])
            run = client.create_run(self.experiment_id, start_time=operation["time"], tags=tags, run_name=operation["name"])
            self.ids[name] = run.info.run_id

    def _do_params(self, operation: dict[str, Any]) -> None:
        from mlflow.entities import Param

        client, run = self.connect(), self.run_id(operation["run"])
        there = client.get_run(run).data.params  # a logged parameter cannot change, and logging it again costs a call
        params = [Param(k, str(v)[:PARAM_CHARACTERS]) for k, v in operation["values"].items() if k not in there]
        for first in range(0, len(params), 100):
            client.log_batch(run, params=params[first : first + 100])

    def _do_tags(self, operation: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        self.connect().log_batch(
            self.run_id(operation["run"]), tags=[RunTag(k, str(v)) for k, v in sorted(operation["values"].items())]
        )

    def _do_dataset(self, operation: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(operation["name"], operation["digest"][:36], "local", operation["source"], profile=operation["profile"])
        context = InputTag("mlflow.data.context", operation["context"])
        self.connect().log_inputs(self.run_id(operation["run"]), [DatasetInput(dataset, [context])])

    def _do_artifact(self, operation: dict[str, Any]) -> None:
        path = Path(operation["path"])
        if path.exists():
            self.connect().log_artifact(self.run_id(operation["run"]), str(path), operation["folder"] or None)

    def _do_model(self, operation: dict[str, Any]) -> None:
        """A checkpoint or a finished model as a LoggedModel: by reference, or with its files when `upload` is set.

        The model of a reused training is the one that the run which trained had made.
        """
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus

        client, run = self.connect(), self.run_id(operation["run"])
        name, mark = operation["name"], f"{operation['run']}/{operation['name']}"
        if found := self._model(operation):
            if found.source_run_id != run:
                client.log_outputs(run, [LoggedModelOutput(found.model_id, step=int(operation["step"]))])
                for key, value in operation["metrics"].items():
                    if math.isfinite(value):
                        client.log_metric(run, key, float(value), step=int(operation["step"]))
            self.models[mark] = found.model_id
            return
        model = client.create_logged_model(
            self.experiment_id, name=name, source_run_id=run, tags={**operation["tags"], RUN_TAG: mark}, model_type="checkpoint"
        )
        client.log_outputs(run, [LoggedModelOutput(model.model_id, step=int(operation["step"]))])  # the run's page lists it
        for key, value in operation["metrics"].items():
            if math.isfinite(value):
                client.log_metric(run, key, float(value), step=int(operation["step"]), model_id=model.model_id)
        if operation["upload"] and Path(operation["folder"]).is_dir():
            client.log_model_artifacts(model.model_id, operation["folder"])
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        self.models[mark] = model.model_id

    def _model(self, operation: dict[str, Any]) -> Any:
        """The LoggedModel of a run of ours, or else of the run that made it; None where there is neither."""
        for run in filter(None, (operation["run"], operation.get("made_by"))):
            wanted = f"tags.`{RUN_TAG}` = '{run}/{operation['name']}'"
            if found := self.connect().search_logged_models([self.experiment_id], wanted, max_results=1):
                return found[0]
        return None

    def _do_register(self, operation: dict[str, Any]) -> None:
        """A finished model as a version of the registered model, with its verdict; aliases follow `champion.json`."""
        client, run = self.connect(), self.run_id(operation["run"])
        registered = operation["registered"]
        if not client.search_registered_models(f"name = '{registered}'"):
            client.create_registered_model(registered)
        version = self._version(registered, operation["run"])
        if version is None:
            mark = f"{operation['run']}/{operation['name']}"
            if mark not in self.models:
                self.models[mark] = self._model(operation).model_id
            source = f"models:/{self.models[mark]}"
            made = client.create_model_version(
                registered, source, run_id=run, tags={**operation["tags"], RUN_TAG: operation["run"]}, model_id=self.models[mark]
            )
            version = made.version
        for key, value in operation["tags"].items():
            client.set_model_version_tag(registered, version, key, value)

    def _do_alias(self, operation: dict[str, Any]) -> None:
        client, registered = self.connect(), operation["registered"]
        version = self._version(registered, operation["target"])
        if version is not None:
            client.set_registered_model_alias(registered, operation["alias"], version)

    def _version(self, registered: str, run: str) -> str | None:
        found = self.connect().search_model_versions(f"name = '{registered}' and tags.`{RUN_TAG}` = '{run}'", max_results=1)
        return str(found[0].version) if found else None

    def _do_end(self, operation: dict[str, Any]) -> None:
        self.connect().set_terminated(self.run_id(operation["run"]), operation["status"], end_time=operation["time"])
