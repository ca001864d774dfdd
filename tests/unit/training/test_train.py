import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from training_toy import PLAN, SILENT, Config, Scripted, begin, planned, run_train
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline_lib.config.model import LoraConfig, ModelConfig, TrainConfig
from pipeline_lib.config.resources import ExecutionConfig
from pipeline_lib.errors import ConfigError, StageFailedError, StoppedError
from pipeline_lib.planning.controller import WindowController
from pipeline_lib.training.checkpoints import committed, damage, newest
from pipeline_lib.training.hooks import Decision
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.features import features_of
from pipeline_lib.workspace.resolve import reference
from pipeline_lib.workspace.runs import RunRecord, StageRecord
from pipeline_lib.workspace.services import Progress, Services
from pipeline_lib.workspace.workspace import Workspace

HERE = Path(__file__).parent
SCRIPTED = "training_toy:Scripted"


@pytest.fixture(autouse=True)
def _no_script() -> None:
    Scripted.script = {}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run_train(tmp_path_factory.mktemp("whole"), planned(precision="bf16"), services=Services(adaptive=False))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return run_train(tmp_path_factory.mktemp("fp32"))


def work_of(root: Path) -> Path:
    (work,) = (root / "work").glob("train-*")
    return work


class StopAt:
    """Asks for a stop after so many looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def __call__(self) -> bool:
        self.left -= 1
        return self.left <= 0


def stopped(root: Path, after: int, config: Config | None = None, **options: str) -> None:
    """Train until a person asks for a stop after `after` steps."""
    with pytest.raises(StoppedError, match=f"stopped on request after step {after}"):
        run_train(root, config, services=Services(should_stop=StopAt(after)), **options)


def test_what_is_published(undisturbed: Artifact) -> None:
    folder = undisturbed.files("model")[0].parent
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("aib dbing")["input_ids"]])).logits
    assert logits.shape[-1] == undisturbed.details["vocabulary_size"] == len(tokenizer)
    weights = load_file(folder / "model.safetensors")
    checkpoint = load_file(next(p for p in undisturbed.files("checkpoints") if p.name == "model.safetensors"))
    assert all(torch.equal(weights[name], checkpoint[name]) for name in weights)
    assert {entry.path.rpartition("/")[2] for entry in undisturbed.manifest.files if entry.content} <= {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "checkpoint.json", "optimizer.safetensors", "rng.safetensors",
    }  # fmt: skip
    assert undisturbed.details["steps"] == PLAN["steps"]
    assert undisturbed.metrics["dev_loss"] < 0.8 * undisturbed.metrics["first_dev_loss"]
    assert undisturbed.details["tokens_seen"] == 24 * 4 * 32
    steps = pq.read_table(next(p for p in undisturbed.files("observed") if p.name == "steps.parquet")).to_pylist()
    assert [row["step"] for row in steps] == list(range(1, 25))
    assert steps[5]["lr"] == pytest.approx(PLAN["learning_rate"])
    assert (steps[3]["first_sequence"], steps[3]["last_sequence"]) == (12, 15)
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]


def test_the_same_again_is_the_same_bytes(tmp_path: Path, undisturbed: Artifact) -> None:
    again = run_train(tmp_path, planned(precision="bf16"), services=Services(adaptive=False))
    assert again.manifest.tables == undisturbed.manifest.tables
    assert again.manifest.digest == undisturbed.manifest.digest


def test_killed_at_checkpoints_and_resumed_is_the_same_bytes(tmp_path: Path, undisturbed: Artifact) -> None:
    begin(tmp_path, planned(precision="bf16"))
    for fault in ("checkpoint.before_commit:2", "checkpoint.after_commit:2"):
        environment = {**os.environ, "MILLRACE_FAULT": fault, "PYTHONPATH": f"{HERE}:{HERE.parent / 'packing'}"}
        child = subprocess.run(
            [sys.executable, str(HERE / "training_toy.py"), str(tmp_path)], env=environment, capture_output=True, check=False
        )
        assert child.returncode == -9, child.stderr.decode()[-2000:]
    resumed = run_train(tmp_path, planned(precision="bf16"), services=Services(adaptive=False))
    assert [event["detail"]["step"] for event in resumed.manifest.events if event["kind"] == "resumed"] == [18]
    assert resumed.manifest.tables == undisturbed.manifest.tables
    assert resumed.manifest.digest == undisturbed.manifest.digest
    steps = pq.read_table(next(p for p in resumed.files("observed") if p.name == "steps.parquet")).to_pylist()
    current = [row["step"] for row in steps if not row["superseded"]]
    assert current == list(range(1, 25))  # the second attempt repeated steps 7 to 12, which the first had lost
    # … and those that it did while the checkpoint of step 12 was being written
    assert {row["step"] for row in steps if row["superseded"]} >= set(range(7, 13))


def test_a_stop_on_request_costs_nothing(tmp_path: Path, whole: Artifact) -> None:
    stopped(tmp_path, 9)
    names = [folder.name for folder in committed(work_of(tmp_path) / "checkpoints")]
    assert names == ["step-00000006", "step-00000009"]
    resumed = run_train(tmp_path)
    assert resumed.manifest.digest == whole.manifest.digest
    assert resumed.metrics["first_dev_loss"] == whole.metrics["first_dev_loss"]


@pytest.mark.parametrize("harm", ["flip", "truncate", "optimizer", "record"])
def test_a_damaged_checkpoint_is_set_aside_and_the_older_one_used(tmp_path: Path, whole: Artifact, harm: str) -> None:
    """Trainer alone loads a flipped bit, and begins a fresh optimizer when its file is gone, both in silence."""
    stopped(tmp_path, 14)
    checkpoints = work_of(tmp_path) / "checkpoints"
    latest = committed(checkpoints)[-1]
    weights = latest / "model.safetensors"
    if harm == "flip":
        data = bytearray(weights.read_bytes())
        data[-5] ^= 1
        weights.write_bytes(data)
    elif harm == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif harm == "optimizer":
        (latest / "optimizer.safetensors").unlink()
    else:
        record = latest / "checkpoint.json"
        record.write_text(record.read_text().replace('"step": 14', '"step": 15'))
    assert damage(latest)
    resumed = run_train(tmp_path)
    events = {event["kind"]: event["detail"] for event in resumed.manifest.events}
    assert events["checkpoint_damaged"]["checkpoint"] == "step-00000014"
    assert events["resumed"]["step"] == 12
    assert resumed.manifest.digest == whole.manifest.digest


def test_a_checkpoint_of_other_data_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path, 7)
    checkpoints = work_of(tmp_path) / "checkpoints"
    record = json.loads((committed(checkpoints)[-1] / "checkpoint.json").read_text())
    aside = tmp_path / "quarantine"
    assert newest(checkpoints, data_digest=record["data"], plan=record["plan"], quarantine=aside) is not None
    with pytest.raises(StageFailedError, match="made with another data"):
        newest(checkpoints, data_digest="other", plan=record["plan"], quarantine=aside)
    with pytest.raises(StageFailedError, match="made with another plan"):
        newest(checkpoints, data_digest=record["data"], plan={**record["plan"], "learning_rate": 1.0}, quarantine=aside)


def test_decisions_change_the_schedule_and_survive_a_stop(tmp_path: Path) -> None:
    Scripted.script = {
        5: Decision("replan", total_steps=30, decay_start=20, reason="faster than thought"),
        10: Decision("start_decay", decay_steps=4, reason="time is short"),
    }
    whole = run_train(tmp_path / "whole", controller=SCRIPTED)
    assert whole.details["steps"] == 14
    assert whole.details["dev_curve"][-1][0] == 14
    changes = [event["detail"] for event in whole.manifest.events if event["kind"] == "schedule_changed"]
    assert [(c["decision"], c["step"], c["total_steps"]) for c in changes] == [
        ("replan", 5, [24, 30]),
        ("start_decay", 10, [30, 14]),
    ]
    rates = pq.read_table(next(p for p in whole.files("observed") if p.name == "steps.parquet"))["lr"].to_pylist()
    assert rates[4:10] == [0.01] * 6
    assert rates[10:] == pytest.approx([0.01 * (1 - 0.99 * (step / 4) ** 0.5) for step in (1, 2, 3, 4)])
    stopped(tmp_path / "stopped", 12, controller=SCRIPTED)
    observed = json.loads((committed(work_of(tmp_path / "stopped") / "checkpoints")[-1] / "observed.json").read_text())
    assert observed["controller"]["asked"] == list(range(1, 13))
    assert run_train(tmp_path / "stopped", controller=SCRIPTED).manifest.digest == whole.manifest.digest


def test_a_controller_can_end_training_at_once(tmp_path: Path) -> None:
    Scripted.script = {8: Decision("stop", reason="no time left")}
    made = run_train(tmp_path, controller=SCRIPTED)
    assert made.details["steps"] == 8
    assert made.details["dev_curve"][-1] == [8, made.metrics["dev_loss"]]


def test_progress_and_curves(tmp_path: Path) -> None:
    lines: list[Progress] = []
    curves: dict[str, list[int]] = {}

    class Curves:
        def metrics(self, values: dict[str, float], *, step: int = 0) -> None:
            for name in values:
                curves.setdefault(name, []).append(step)

    run_train(
        tmp_path,
        services=Services(
            announce=lines.append, tracker=Curves(), deadline=datetime.now(UTC) + timedelta(minutes=59, seconds=40)
        ),  # type: ignore[arg-type]
    )
    told = [line for line in lines if line.stage == "train"]
    assert (told[-1].done, told[-1].total, told[-1].unit) == (24, 24, "steps")
    assert "ETA 00:00 | window +59:" in told[-1].note
    assert curves["dev_loss"] == [0, 6, 12, 18, 24]
    assert curves["train_loss"] == list(range(1, 25))


def test_the_real_controller_fits_the_hook() -> None:
    controller = WindowController(PLAN, lambda: datetime.now(UTC), None, False)
    assert controller.on_step(1, 0.1).kind == "continue"
    controller.restore(controller.state())


def test_a_night_goes_on_from_an_artifact_with_lora(tmp_path: Path) -> None:
    first = run_train(tmp_path)
    start = reference(first.key, first.manifest.digest)
    night = Config(
        model=ModelConfig(start=start),
        train=TrainConfig(samples=SILENT, lora=LoraConfig(rank=2)),
        plan={**PLAN, "learning_rate": 1e-3},
    )
    second = run_train(tmp_path, night)
    assert second.metrics["first_dev_loss"] == pytest.approx(first.metrics["dev_loss"], rel=1e-5)
    assert second.metrics["dev_loss"] < first.metrics["dev_loss"]
    old, new = (load_file(next(p for p in a.files("model") if p.suffix == ".safetensors")) for a in (first, second))
    assert old.keys() == new.keys()  # merged: a plain model again
    changed = {name.rpartition("layers.")[2][2:] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {f"self_attn.{name}_proj.weight" for name in "qkvo"}
    told = {"model": {"family": "gpt2", "width": 999}, "tokenizer": {"vocabulary_size": 9}}  # a start brings its own numbers
    record = RunRecord("r", "p", config=told, stages={"train": StageRecord("made", second.ref().to_json())})
    features = features_of(Workspace.open(tmp_path), record)
    expected = {"family": "llama", "width": 32, "depth": 2, "vocabulary_size": second.details["vocabulary_size"]}
    assert expected.items() <= features.items()
    wrong = Config(model=ModelConfig(start=reference(first.key, "0" * 32)))
    with pytest.raises(ConfigError, match="its digest differs"):
        run_train(tmp_path, wrong)


def test_adapters_on_four_bits_are_trained_stopped_and_published(tmp_path: Path) -> None:
    """Stopped and taken up the frozen weights are the same four bits; what is published is a plain model."""
    lora = LoraConfig(rank=2, quantize="4bit")
    night = Config(train=TrainConfig(samples=SILENT, lora=lora), plan={**PLAN, "learning_rate": 0.02, "precision": "bf16"})
    whole = run_train(tmp_path / "whole", night)
    stopped(tmp_path / "stopped", 7, night)
    again = run_train(tmp_path / "stopped", night)
    assert again.manifest.digest == whole.manifest.digest
    assert whole.metrics["dev_loss"] < whole.metrics["first_dev_loss"]
    model = load_file(next(p for p in whole.files("model") if p.suffix == ".safetensors"))
    assert {tensor.dtype for tensor in model.values()} == {torch.float32}


def test_a_merge_that_is_not_the_trained_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora.layer import Linear

    right = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: 3 * right(self, adapter))
    config = Config(train=TrainConfig(samples=SILENT, lora=LoraConfig(rank=2)), plan={**PLAN, "learning_rate": 1e-2})
    with pytest.raises(StageFailedError, match="adapters merged is not the trained one"):
        run_train(tmp_path, config)


def test_extensions_bring_models_and_callbacks(tmp_path: Path) -> None:
    config = Config(
        model=ModelConfig(family="small-gpt2", width=32, heads=2), execution=ExecutionConfig(extensions=["training_extension"])
    )
    made = run_train(tmp_path, config)
    assert json.loads(next(p for p in made.files("model") if p.name == "config.json").read_text())["n_layer"] == 1
    assert list(range(1, 25)) == sys.modules["training_extension"].SEEN
