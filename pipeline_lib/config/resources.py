"""What a run may use, and where it runs."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from pipeline_lib.config.fields import Section, setting
from pipeline_lib.config.window import parse_finish_by


class ResourcesConfig(Section):
    """Limits: plan and search refuse against them, the report prints spent against limit."""

    max_hours: float = setting(12.0, "Window of the whole run, from the flow's start", unit="hours", gt=0, le=24 * 90)
    finish_by: str = setting("", "Instead of max_hours: a wall-clock time with zone, `07:00 Europe/Berlin` or ISO 8601")
    margin_minutes: float = setting(30.0, "Safety margin at the end of the window", unit="minutes", ge=0)
    search_share: float = setting(0.15, "Share of the window for the hyperparameter search", unit="share", ge=0, le=0.9)
    memory_gib: float = setting(
        0.0, "Memory that may be used; 0: nine tenths of the GPU's, or of the machine's", unit="GiB", ge=0
    )
    money: float = setting(0.0, "What the run may cost; 0: no limit", unit="currency", ge=0)
    price_per_hour: float = setting(0.0, "Price of the machine", unit="currency/hour", ge=0)
    watts: float = setting(0.0, "Power draw for the energy estimate; 0: unknown", unit="W", ge=0)
    price_per_kwh: float = setting(0.0, "Price of energy", unit="currency/kWh", ge=0)
    currency: str = setting("EUR", "Currency of all prices", pattern=r"^[A-Z]{3}$")

    @field_validator("finish_by")
    @classmethod
    def _one_moment(cls, text: str) -> str:
        if text:
            parse_finish_by(text)
        return text

    @model_validator(mode="after")
    def _limits_agree(self) -> ResourcesConfig:
        default = type(self).model_fields["max_hours"].default
        if self.finish_by and self.max_hours != default:
            raise ValueError(
                f"finish_by = {self.finish_by!r} and max_hours = {self.max_hours:g} are two windows; keep one: remove max_hours, "
                'or set finish_by = ""'
            )
        window_minutes = self.max_hours * 60
        if not self.finish_by and self.margin_minutes >= window_minutes:
            raise ValueError(
                f"margin_minutes = {self.margin_minutes:g} leaves nothing of a window of {window_minutes:g} minutes "
                f"(max_hours = {self.max_hours:g}); at most {window_minutes / 4:g} would be sensible"
            )
        margin_share = 0.0 if self.finish_by else self.margin_minutes / window_minutes
        if margin_share + self.search_share >= 1:
            raise ValueError(
                f"search_share = {self.search_share:g} and margin_minutes = {self.margin_minutes:g} together are the window of "
                f"{window_minutes:g} minutes; search_share = {max(1 - margin_share, 0) / 2:.2g} would leave as much to training"
            )
        if self.money and not (self.price_per_hour or (self.watts and self.price_per_kwh)):
            raise ValueError("money is limited but nothing has a price: set price_per_hour, or watts and price_per_kwh")
        return self


class ExecutionConfig(Section):
    """How the work is spread. Machine facts: never part of a fingerprint."""

    task_runner: Literal["threads", "processes", "dask", "ray"] = setting("threads", "Prefect task runner", identity=False)
    address: str = setting("", "Scheduler address (dask, ray)", identity=False)
    workers: int = setting(0, "Workers of data stages; 0: all cores", ge=0, le=1024, identity=False)
    extensions: list[str] = setting(
        list,
        "Modules that register sources, signals, rule sets, models, callbacks or suites: dotted names, or paths of .py files",
        path=(),
    )


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = setting(True, "Track runs in MLflow", identity=False)
    uri: str = setting(
        "", "Tracking server; empty: a database file in the workspace ($MILLRACE_MLFLOW_URI goes first)", identity=False
    )
    experiment: str = setting("millrace", "Experiment name", identity=False)
    model_name: str = setting("millrace", "Registered model name", identity=False)
    sinks: list[Literal["tensorboard", "wandb"]] = setting(
        list, "Where curves go beside MLflow: TensorBoard files, W&B (offline without $WANDB_MODE); each an extra", identity=False
    )


class KeepConfig(Section):
    """What garbage collection leaves."""

    runs: int = setting(10, "Newest runs whose artifacts stay", unit="runs", ge=1, identity=False)
    days: int = setting(14, "Runs younger than this stay", unit="days", ge=0, identity=False)


class MemoryConfig(Section):
    """What is remembered of past runs, beyond their artifacts."""

    hot: int = setting(200, "Latest steps and events of a running job that are shown", unit="rows", ge=1, identity=False)
    warm: int = setting(1000, "Ended runs that stay single files", unit="runs", ge=1, identity=False)
    warm_days: float = setting(
        180.0, "Older ones move to Parquet by month whatever their number", unit="days", ge=1, identity=False
    )
    cold: int = setting(100_000, "Runs kept in Parquet; the files of the oldest months go", unit="runs", ge=1, identity=False)
    embedding_model: str = setting(
        "none", "Folder of a sentence-embedding model (safetensors) that compares goals; `none`: hashed n-grams", identity=False,
        path=("none",),
    )  # fmt: skip
