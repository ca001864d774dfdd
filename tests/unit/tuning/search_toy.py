"""A packed toy corpus and the real stages `calibrate`, `tune`, `plan` and `train` behind it, run in a small window."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from packing_toy import Toy, ToyCorpus, run_toy

from pipeline_lib.config.data import SuitesConfig
from pipeline_lib.config.fields import setting
from pipeline_lib.config.model import (
    CalibrateConfig,
    ModelConfig,
    PackConfig,
    PlanConfig,
    TokenizerConfig,
    TrainConfig,
    TuneConfig,
    ValidationConfig,
)
from pipeline_lib.config.resources import ResourcesConfig
from pipeline_lib.stages import BY_NAME
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.services import Progress, Services
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

TINY = ModelConfig(width=32, depth=2, heads=2, ffn_width=64)
STAGES = ("calibrate", "tune", "plan", "train")


class Config(Toy):
    toy: ToyCorpus = setting(lambda: ToyCorpus(documents=160), "corpus")
    pack: PackConfig = setting(lambda: PackConfig(sequence_length=32, range_tokens=2048), "pack")
    tokenizer: TokenizerConfig = setting(lambda: TokenizerConfig(vocabulary_size=400), "tokenizer")
    resources: ResourcesConfig = setting(lambda: ResourcesConfig(max_hours=0.1, margin_minutes=0.2), "resources")
    calibrate: CalibrateConfig = setting(lambda: CalibrateConfig(seconds=2.0, micro_batches=[4]), "calibrate")
    tune: TuneConfig = setting(lambda: TuneConfig(trials=3, steps=8), "tune")
    plan: PlanConfig = setting(PlanConfig, "plan")
    train: TrainConfig = setting(lambda: TrainConfig(batch_tokens=256, max_steps=30), "train")
    model: ModelConfig = setting(lambda: TINY, "model")
    validation: ValidationConfig = setting(lambda: ValidationConfig(language_tokens=1000), "validation")
    suites: SuitesConfig = setting(SuitesConfig, "suites")
    seed: int = setting(0, "seed")


def window(seconds: float, services: Services | None = None) -> Services:
    """Services whose window begins now and lasts so long."""
    now = datetime.now(UTC)
    return replace(services or Services(), started=now, deadline=now + timedelta(seconds=seconds))


def run_until(
    root: Path, until: str, config: Config | None = None, *, services: Services | None = None, **options: Any
) -> dict[str, Artifact]:
    """Everything up to a stage, in a workspace; what is there is reused. `options` go to the last stage."""
    config = config or Config()
    workspace, found = run_toy(root, config)
    return found | run_stages(workspace, found, until, config, services=services, **options)


def run_stages(
    workspace: Workspace, found: dict[str, Artifact], until: str, config: Config, *, services: Services | None, **options: Any
) -> dict[str, Artifact]:
    """The planning stages up to `until` over a packed corpus."""
    made: dict[str, Artifact] = {}
    for name in STAGES:
        stage, known = BY_NAME[name], found | made
        inputs = {needed: known[needed].ref() for needed in stage.reads}
        last = name == until
        ref = execute(workspace, stage, config, inputs, services=services, **(options if last else {}))
        made[name] = workspace.store.artifact(ref.key)
        if last:
            break
    return made


def killed(parallel: int) -> Config:
    """The search that is killed, with so many trials side by side."""
    return Config(tune=TuneConfig(trials=5, steps=24, pruner="asha", parallel=parallel))


def _say(pipe: int, progress: Progress) -> None:
    if progress.stage == "tune":
        os.write(pipe, b".")


def search_killed_at(root: Path, parallel: int, moments: list[tuple[int, float]]) -> None:
    """Search in processes that are killed: each when it has begun so many rungs, and so many seconds later.

    They are forks of one that has imported everything and run nothing.
    """
    for module in ("pipeline_lib.tuning.tune", "pipeline_lib.training.saving", "pipeline_lib.packing.reader", "optuna"):
        importlib.import_module(module)
    for rungs, seconds in moments:
        seen, told = os.pipe()
        if not (process := os.fork()):
            run_until(root, "tune", killed(parallel), services=Services(announce=partial(_say, told)))
            os._exit(0)
        for _ in range(rungs):
            os.read(seen, 1)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(seen)
        os.close(told)


if __name__ == "__main__":
    told = [(int(rungs), float(seconds)) for rungs, _, seconds in (moment.partition("+") for moment in sys.argv[3:])]
    search_killed_at(Path(sys.argv[1]), int(sys.argv[2]), told)
