import math
import os
from pathlib import Path

import pytest
import torch
from training_toy import PLAN, TINY
from transformers import TrainerCallback

from pipeline_lib.config.model import LoraConfig, TrainConfig
from pipeline_lib.hardware.machine import PeakFlops
from pipeline_lib.packing.order import order
from pipeline_lib.training.data import MicroBatches, RandomSequences, spread
from pipeline_lib.training.loop import Session, fit
from pipeline_lib.training.measure import measure
from pipeline_lib.training.model import build_model
from pipeline_lib.training.monitor import Monitor
from pipeline_lib.training.plan import TrainingPlan


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def session_of(tmp_path: Path, *, optimizer: str = "adamw", **changes: object) -> Session:
    model = build_model(TINY, vocabulary_size=100, sequence_length=32, seed=0)
    plan = TrainingPlan.from_details({**PLAN, **changes})
    return Session(model, plan, TrainConfig(optimizer=optimizer), RandomSequences(100, 32), 0, tmp_path)  # type: ignore[arg-type]


def watched(session: Session, events: list[tuple[str, dict[str, object]]], rows: list[dict[str, float]]) -> Monitor:
    return Monitor(
        session, sequence_length=32, flops_per_token=1e6, peak=PeakFlops(1e12, "test", measured=False),
        event=lambda kind, **detail: events.append((kind, detail)), rows=rows.extend,  # type: ignore[arg-type]
    )  # fmt: skip


def weights(session: Session) -> list[torch.Tensor]:
    return [p.detach().clone() for p in session.model.parameters()]


def test_any_micro_batch_is_the_same_step(tmp_path: Path) -> None:
    """Token-exact accumulation: the mean is over the step's tokens, not over its micro-batches' means."""
    results = []
    for micro in (1, 2, 4):
        session = session_of(tmp_path, micro_batch=micro, steps=3)
        session.data.tokens[::2, 20:] = 7  # type: ignore[attr-defined]
        fit(session, [])
        results.append((float(session.loss), weights(session)))
    for loss, found in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        for ours, reference in zip(found, results[0][1], strict=True):
            torch.testing.assert_close(ours, reference, rtol=1e-3, atol=2e-5)


def test_what_accelerate_launch_leaves_in_the_environment_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer would take the precision from there: gradients scaled for fp16, in a training that is planned in fp32."""
    calm = session_of(tmp_path, steps=3)
    fit(calm, [])
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    told = session_of(tmp_path, steps=3)
    fit(told, [])
    assert all(torch.equal(a, b) for a, b in zip(weights(calm), weights(told), strict=True))
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "fp16"


def test_a_position_in_the_data_is_the_whole_state() -> None:
    data = RandomSequences(100, 32, sequences=10)
    stream, batches = iter(MicroBatches(data, 5, 4)), []
    for _ in range(6):
        batches.append(next(stream))
    resumed = next(iter(MicroBatches(data, 5, 4, position=20)))
    assert torch.equal(resumed["input_ids"], batches[5]["input_ids"])
    seen = torch.cat([batch["input_ids"] for batch in batches])
    wanted = [*order(10, 5, 0), *order(10, 5, 1), *order(10, 5, 2)[:4]]
    assert torch.equal(seen, torch.as_tensor(data.tokens[wanted]))


def test_dev_sequences_are_spread_and_always_the_same() -> None:
    data = RandomSequences(100, 32, sequences=50)
    batches = spread(data, 8, 3)
    assert [len(batch["input_ids"]) for batch in batches] == [3, 3, 2]
    assert torch.equal(batches[0]["input_ids"][0], torch.as_tensor(data.tokens[0]))
    assert torch.equal(batches[-1]["input_ids"][-1], torch.as_tensor(data.tokens[49]))


class _Poison:
    """Makes the backbone's output NaN at some forward passes of training."""

    def __init__(self, model: torch.nn.Module, bad: set[int]) -> None:
        self.calls, self.bad = 0, bad
        model.model.norm.register_forward_hook(self)

    def __call__(self, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        self.calls += 1
        return output * math.nan if self.calls in self.bad else output


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, optimizer: str) -> None:
    """Multiplying its gradient by zero would still poison Adam's moments: from then on every weight would be NaN."""
    session = session_of(tmp_path, optimizer=optimizer, micro_batch=4, steps=6, decay_steps=0)
    _Poison(session.model, {3})
    events: list[tuple[str, dict[str, object]]] = []
    rows: list[dict[str, float]] = []
    snapshots = []

    class Snapshots(TrainerCallback):
        def on_step_end(self, *args: object, **kwargs: object) -> None:
            snapshots.append(weights(session))

    fit(session, [watched(session, events, rows), Snapshots()])
    assert [kind for kind, _ in events] == ["non_finite"]
    assert events[0][1]["step"] == 3
    assert all(torch.equal(a, b) for a, b in zip(snapshots[1], snapshots[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(snapshots[2], snapshots[3], strict=True))
    assert all(bool(torch.isfinite(w).all()) for w in snapshots[-1])
    assert [math.isnan(row["loss"]) for row in rows] == [False, False, True, False, False, False]


def test_measure_times_steps_evaluation_and_a_checkpoint() -> None:
    seen = measure(TINY, vocabulary_size=100, sequence_length=32, micro_batch=4, n_steps=5, precision="bf16", threads=1)
    assert len(seen.step_seconds) == 5
    middle = sorted(seen.step_seconds)[2]
    assert seen.tokens_per_second == pytest.approx(4 * 32 / middle)
    assert seen.parameters == 23_840
    assert min(seen.evaluate_tokens_per_second, seen.save_seconds, seen.peak_memory_bytes) > 0
    short = measure(
        TINY, vocabulary_size=100, sequence_length=32, micro_batch=4, n_steps=10_000, precision="fp32", seconds=0.2, threads=1,
        optimizer="adafactor", lora=LoraConfig(rank=2),
    )  # fmt: skip
    assert 1 <= len(short.step_seconds) < 1000
