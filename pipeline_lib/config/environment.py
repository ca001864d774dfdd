"""The environment variables that are read: secrets and locations, nothing else. One table for code, help and docs."""

from __future__ import annotations

from typing import NamedTuple


class Variable(NamedTuple):
    """One environment variable."""

    name: str
    what: str
    default: str
    secret: bool = False


ENVIRONMENT: tuple[Variable, ...] = (
    Variable("MILLRACE_HOME", "The workspace: everything a pipeline made and knows", "./workspace"),
    Variable("MILLRACE_ALLOWED_ROOTS", "Further folders that configured paths may lie in, separated like $PATH", "none"),
    Variable(
        "MILLRACE_ALLOWED_MODULES", "Dotted modules that forms may name as execution.extensions, separated by commas", "none"
    ),
    Variable(
        "MILLRACE_ALLOWED_NETWORKS", "Private networks that sources may lie in, as 10.1.0.0/16, separated by commas", "none"
    ),
    Variable("MILLRACE_STORE", "Where artifacts are kept: an fsspec URL such as s3://bucket/folder", "the workspace"),
    Variable("MILLRACE_MLFLOW_URI", "MLflow tracking server, goes before tracking.uri", "tracking.uri", True),
    Variable("MILLRACE_MLFLOW_DB", "Database URL of the MLflow server of `millrace up`", "a file in the workspace", True),
    Variable("MILLRACE_OPTUNA_URL", "Database URL of the hyperparameter search", "a file in the workspace", True),
    Variable("MLFLOW_TRACKING_TOKEN", "Read by MLflow: token for a tracking server", "none", True),
    Variable("MLFLOW_TRACKING_USERNAME", "Read by MLflow: user for a tracking server", "none", True),
    Variable("MLFLOW_TRACKING_PASSWORD", "Read by MLflow: password for a tracking server", "none", True),
    Variable("PREFECT_API_URL", "Read by Prefect: address of its server; without one, Prefect runs embedded", "none"),
    Variable("PREFECT_API_KEY", "Read by Prefect: key for its server", "none", True),
    Variable("PREFECT_API_DATABASE_CONNECTION_URL", "Read by Prefect: its database URL", "a file in the workspace", True),
    Variable("AWS_ACCESS_KEY_ID", "Read by s3fs for s3:// paths, with AWS_SECRET_ACCESS_KEY and AWS_PROFILE", "none", True),
    Variable("HF_TOKEN", "Read by the libraries of the Hugging Face hub: token for what is not public", "none", True),
    Variable("WANDB_MODE", "Read by W&B (`tracking.sinks: [wandb]`), with WANDB_API_KEY", "offline"),
    Variable("NO_COLOR", "Set: no colours", "unset"),
)
