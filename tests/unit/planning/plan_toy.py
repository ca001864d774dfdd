"""The real stage `plan` behind inputs whose details a test writes, with a clock that stands still."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline_lib.config.data import SuitesConfig
from pipeline_lib.config.fields import Section, setting
from pipeline_lib.config.model import ModelConfig, PlanConfig, TrainConfig, ValidationConfig
from pipeline_lib.config.resources import ResourcesConfig
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import TABLES
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.stage import Outcome, Stage, StageRun, execute
from pipeline_lib.workspace.workspace import Workspace

START = datetime(2026, 1, 1, tzinfo=UTC)
GIB = 1 << 30


def profile(micro_batch: int, rate: float, gib: float) -> dict[str, Any]:
    return {
        "micro_batch": micro_batch, "precision": "bf16", "tokens_per_second": rate, "peak_memory_bytes": int(gib * GIB),
        "estimated_bytes": 1, "error": "",
    }  # fmt: skip


DATA = {
    "sequence_length": 256, "vocabulary_size": 4096, "sequences": {"train": 20_000, "dev": 200, "test": 200},
    "tokens": {"train": 5_000_000, "dev": 50_000, "test": 50_000},
}  # fmt: skip
CALIBRATED = {
    "profiles": [profile(4, 8_000.0, 1.0), profile(8, 10_000.0, 2.0), {"error": "not measured"}], "interval": [0.8, 1.1],
    "evaluate_tokens_per_second": 40_000.0, "save_seconds": 0.1, "build_seconds": 1.0, "import_seconds": 4.0, "threads": 2,
}  # fmt: skip
UNTUNED: dict[str, Any] = {"best": {}, "curve": []}


class Config(Section):
    data: dict[str, Any] = setting(lambda: DATA, "details of fill_gaps")
    calibrated: dict[str, Any] = setting(lambda: CALIBRATED, "details of calibrate")
    tuned: dict[str, Any] = setting(lambda: UNTUNED, "details of tune")
    trained: dict[str, Any] = setting(dict, "metrics of train")
    plan: PlanConfig = setting(PlanConfig, "plan")
    model: ModelConfig = setting(ModelConfig, "model")
    train: TrainConfig = setting(TrainConfig, "train")
    resources: ResourcesConfig = setting(lambda: ResourcesConfig(max_hours=0.25, margin_minutes=1), "resources")
    validation: ValidationConfig = setting(ValidationConfig, "validation")
    suites: SuitesConfig = setting(SuitesConfig, "suites")


def data_details(run: StageRun, *, data: dict[str, Any]) -> Outcome:
    return Outcome(details=data)


def calibrated_details(run: StageRun, *, calibrated: dict[str, Any]) -> Outcome:
    return Outcome(details=calibrated)


def tuned_details(run: StageRun, *, tuned: dict[str, Any]) -> Outcome:
    return Outcome(details=tuned)


def trained(run: StageRun, *, trained: dict[str, Any]) -> Outcome:
    write_table(TABLES["events"].empty_table(), run.observed("events.parquet"))
    return Outcome(metrics=trained)


TRAINED = Stage("train", 1, "pure", "plan_toy:trained", sections=("trained",))
INPUTS = (
    Stage("fill_gaps", 1, "pure", "plan_toy:data_details", sections=("data",)),
    Stage("calibrate", 1, "recorded", "plan_toy:calibrated_details", sections=("calibrated",)),
    Stage("tune", 1, "recorded", "plan_toy:tuned_details", sections=("tuned",)),
)


def make_plan(root: Path, *, spent: float = 100.0, windowless: bool = False, **sections: Any) -> Artifact:
    """Plan a run that has used `spent` seconds of its window."""
    config, workspace = Config(**sections), Workspace.open(root)
    refs = {stage.name: execute(workspace, stage, config, {}) for stage in INPUTS}
    end = None if windowless else START + timedelta(hours=config.resources.max_hours)
    services = Services(clock=lambda: START + timedelta(seconds=spent), started=START, deadline=end)
    ref = execute(workspace, BY_NAME["plan"], config, refs, services=services)
    return workspace.store.artifact(ref.key)
