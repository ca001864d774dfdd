"""Which MLflow to talk to, and a client that is ready."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from pipeline_lib.config.resources import TrackingConfig
from pipeline_lib.workspace.workspace import Workspace

TRAINING_VIEW = "workflowType=machine_learning"
# A server that is down must be noticed in seconds; the spool, not the client, does the waiting.
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def database(workspace: Workspace) -> Path:
    """The embedded database."""
    return workspace.db_folder / "mlflow.db"


def artifacts_folder(workspace: Workspace) -> Path:
    """Where the embedded MLflow keeps files."""
    return workspace.root / "mlartifacts"


def tracking_uri(config: TrackingConfig, workspace: Workspace, *, running: str = "") -> str:
    """$MILLRACE_MLFLOW_URI, else the configuration, else a running server of this workspace, else the embedded database."""
    return os.environ.get("MILLRACE_MLFLOW_URI") or config.uri or running or f"sqlite:///{database(workspace)}"


def open_client(uri: str, workspace: Workspace) -> Any:
    """An `MlflowClient`. A fresh SQLite store is made by one process at a time: its migrations do not stand a race."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import logging

    for name in ("alembic", "mlflow", "mlflow.store.db.utils", "urllib3.connectionpool"):  # our own line says it once
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(uri)  # the embedded registry looks logged models up through the global address
    mlflow.set_registry_uri(uri)
    if not uri.startswith("sqlite:"):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    with FileLock(database(workspace).with_suffix(".lock")):
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


def experiment(client: Any, name: str, workspace: Workspace, uri: str) -> str:
    """The experiment's id; made when missing. Embedded, its files lie in the workspace."""
    found = client.get_experiment_by_name(name)
    if found:
        return str(found.experiment_id)
    location = artifacts_folder(workspace).as_uri() if uri.startswith("sqlite:") else None
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:  # another process was first
        return str(client.get_experiment_by_name(name).experiment_id)


def shown(uri: str) -> str:
    """A server's address as it may be shown and written: without user and password (a browser asks for them)."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", uri)


def run_link(base: str, experiment_id: str, run_id: str) -> str:
    """Address of a run's page, in the training view (the plain address opens the view for generative AI)."""
    return f"{shown(base).rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}?{TRAINING_VIEW}"


def experiments_link(base: str) -> str:
    """Address of the list of experiments, in the training view."""
    return f"{shown(base).rstrip('/')}/#/experiments?{TRAINING_VIEW}"


def comparison_link(base: str, experiment_id: str, run_ids: list[str]) -> str:
    """Address of the comparison of runs."""
    runs = quote("[" + ",".join(f'"{run}"' for run in run_ids) + "]")
    experiments = quote(f'["{experiment_id}"]')
    return f"{shown(base).rstrip('/')}/#/compare-runs?runs={runs}&experiments={experiments}&{TRAINING_VIEW}"
