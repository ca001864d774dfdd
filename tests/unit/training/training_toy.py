"""A toy corpus, the real stages `pack` and `fill_gaps`, a plan written by a test, and the real stage `train` behind them."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import packing_toy
from packing_toy import Toy, ToyCorpus, run_toy

from pipeline_lib.config.fields import setting
from pipeline_lib.config.model import ModelConfig, PackConfig, SamplesConfig, TokenizerConfig, TrainConfig
from pipeline_lib.config.resources import ExecutionConfig
from pipeline_lib.stages import BY_NAME
from pipeline_lib.training.hooks import CONTINUE, Decision
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.identity import fingerprint_of
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.stage import Outcome, Stage, StageRun, execute

PLAN: dict[str, Any] = {
    "steps": 24, "warmup_steps": 2, "decay_steps": 6, "schedule": "wsd", "learning_rate": 0.01, "weight_decay": 0.1,
    "batch_sequences": 4, "micro_batch": 2, "precision": "fp32", "evaluate_every": 6, "save_every": 6, "epochs": 1.0,
    "seconds_per_step": 0.01, "tokens_per_second": 1e4, "threads": 1,
}  # fmt: skip
SILENT = SamplesConfig(prompts=[])  # what a model writes costs more than these trainings
TINY = ModelConfig(width=32, depth=2, heads=2, ffn_width=64)


class Config(Toy):
    toy: ToyCorpus = setting(lambda: ToyCorpus(documents=160), "corpus")
    pack: PackConfig = setting(lambda: PackConfig(sequence_length=32, range_tokens=2048), "pack")
    tokenizer: TokenizerConfig = setting(lambda: TokenizerConfig(vocabulary_size=400), "tokenizer")
    plan: dict[str, Any] = setting(lambda: dict(PLAN), "details of the plan")
    train: TrainConfig = setting(lambda: TrainConfig(samples=SILENT), "train")
    model: ModelConfig = setting(lambda: TINY, "model")
    seed: int = setting(0, "seed")
    execution: ExecutionConfig = setting(ExecutionConfig, "extensions")


def toy_plan(run: StageRun, *, plan: dict[str, Any]) -> Outcome:
    return Outcome(details=plan)


_packed: dict[str, Path] = {}  # workspaces of this process in which a text is packed already


def begin(root: Path, config: Config) -> None:
    """Make `root` a workspace in which everything before the plan is done, as it is in the first one that had the same text."""
    if (root / "artifacts").exists():
        return
    parts = {name: getattr(config, name).model_dump() for name in Toy.model_fields}
    key = fingerprint_of({**parts, "texts": packing_toy.texts_of(config.toy)})
    if key not in _packed:
        _packed[key] = Path(tempfile.mkdtemp(prefix="millrace-packed-"))
        atexit.register(shutil.rmtree, _packed[key], ignore_errors=True)
        run_toy(_packed[key], config)
    shutil.copytree(_packed[key], root, symlinks=True, dirs_exist_ok=True)


def run_train(
    root: Path, config: Config | None = None, *, services: Services | None = None, controller: str = "", **options: Any
) -> Artifact:
    """Run everything up to `train` in a workspace; what is there is reused."""
    config = config or Config()
    begin(root, config)
    workspace, found = run_toy(root, config)
    refs = {name: artifact.ref() for name, artifact in found.items()}
    refs["plan"] = execute(workspace, Stage("plan", 1, "recorded", "training_toy:toy_plan", sections=("plan",)), config, {})
    stage = BY_NAME["train"]
    if controller:
        stage = replace(stage, uses={"controller": controller})
    ref = execute(workspace, stage, config, {name: refs[name] for name in stage.reads}, services=services, **options)
    return workspace.store.artifact(ref.key)


def planned(**changes: Any) -> Config:
    """A configuration whose plan has some other numbers."""
    return Config(plan={**PLAN, **changes})


class Scripted:
    """A controller that decides by step, and shows its state to the next attempt."""

    script: ClassVar[dict[int, Decision]] = {}

    def __init__(self, plan: Mapping[str, Any], clock: Any, deadline: Any, adaptive: bool) -> None:
        self.asked: list[int] = []

    def on_step(self, step: int, elapsed_seconds: float) -> Decision:
        self.asked.append(step)
        return self.script.get(step, CONTINUE)

    def outlook(self) -> dict[str, Any]:
        return {}

    def state(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.asked = list(state["asked"])


if __name__ == "__main__":  # in a process that may be killed
    made = run_train(Path(sys.argv[1]), planned(precision="bf16"), services=Services(adaptive=False))
    sys.stdout.write(made.manifest.digest)
    sys.stdout.flush()
    os._exit(0)
