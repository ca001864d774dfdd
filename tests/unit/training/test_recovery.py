"""Every policy is fired by a real fault in a real training; what it did, and what the training was afterwards."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from training_toy import PLAN, SILENT, Config, run_train

from pipeline_lib.config.model import TrainConfig
from pipeline_lib.config.recovery import POLICIES, RecoveryConfig
from pipeline_lib.config.resources import ExecutionConfig
from pipeline_lib.errors import StageFailedError
from pipeline_lib.training import checkpoints
from pipeline_lib.training.adjustments import Adjustment, Adjustments
from pipeline_lib.training.checkpoints import DiskLowError
from pipeline_lib.training.policies import Ledger
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.services import Services

STEPS = 100  # the guard against spikes needs 64 losses


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`broken(fault, …, steps=…)`: a training in which these faults happen."""

    def run(
        *faults: dict[str, Any],
        recovery: dict[str, Any] | None = None,
        root: str = "w",
        services: Services | None = None,
        milestones: int = 0,
        **plan: Any,
    ) -> Artifact:
        marks = tmp_path / f"{root}-marks"
        marks.mkdir(exist_ok=True)
        monkeypatch.setenv("MILLRACE_TEST_FAULTS", json.dumps(faults))
        monkeypatch.setenv("MILLRACE_TEST_MARKS", str(marks))
        config = Config(
            plan={**PLAN, "decay_steps": 4, "save_every": 20, "evaluate_every": 0, **plan},
            train=TrainConfig(
                samples=SILENT, recovery=RecoveryConfig.model_validate({"policies": recovery or {}}), milestone_every=milestones
            ),
            execution=ExecutionConfig(extensions=["tests.training_faults"]),
        )
        return run_train(tmp_path / root, config, services=services)

    return run


def recoveries(made: Artifact) -> list[dict[str, Any]]:
    return [event["detail"] for event in made.manifest.events if event["kind"] == "recovery"]


def steps_of(made: Artifact) -> list[dict[str, Any]]:
    (log,) = [path for path in made.files("observed") if path.name == "steps.parquet"]
    return [row for row in pq.read_table(log).to_pylist() if not row["superseded"]]


def weights_of(made: Artifact) -> dict[str, torch.Tensor]:
    return load_file(next(path for path in made.files("model") if path.suffix == ".safetensors"))


@pytest.mark.parametrize("kind", ["nan_loss", "inf_gradient"])
def test_a_step_that_is_not_finite_is_skipped(broken: Any, kind: str) -> None:
    made = broken({"kind": kind, "steps": [5]}, steps=12)
    (told,) = recoveries(made)
    assert (told["policy"], told["action"], told["step"], told["cost"]) == ("non_finite", "skip_step", 5, {"tokens": 128})
    assert [row["step"] for row in steps_of(made)] == list(range(1, 13))
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(made).values())


def test_the_ladder_begins_with_what_cured_the_same_before(broken: Any) -> None:
    """The plan says so: the skips that did not help there are passed over, and the rest of the ladder is as ever."""
    cures = {"non_finite": {"begin": "non_finite_again", "passed_over": ["non_finite"], "run": "20260101-000000-aa"}}
    fault = {"kind": "nan_loss", "steps": [8]}
    made = broken(fault, steps=14, save_every=4, cures=cures)
    (told,) = recoveries(made)
    assert (told["policy"], told["action"], told["cost"]["to_step"]) == ("non_finite_again", "roll_back", 4)
    assert told["why"] == (
        "non_finite_again, rate × 0.5, as in run 20260101-000000-aa, where it cured the same; non_finite did not help there"
    )
    with pytest.raises(StageFailedError, match=r"Tried: roll_back \(2 times\)"):
        broken({**fault, "steps": list(range(8, 99)), "once": False}, steps=14, save_every=4, cures=cures, root="ends")


def test_steps_that_stay_bad_roll_back_and_then_give_up_with_a_report(broken: Any) -> None:
    with pytest.raises(StageFailedError) as report:
        broken({"kind": "nan_loss", "steps": list(range(8, 99)), "once": False}, steps=30, save_every=4)
    assert "non_finite at step" in report.value.what
    assert "Tried: skip_step (5 times); roll_back (2 times)" in report.value.what
    assert "train.learning_rate" in report.value.fix


def test_a_spike_is_withheld_and_a_second_run_of_them_rolls_back(broken: Any) -> None:
    """Three steps of nonsense are not learned; at the fourth the training goes back, over other data, at a lower rate."""
    few = broken({"kind": "spike", "steps": [80, 81]}, steps=STEPS, root="few")
    assert [(told["policy"], told["step"]) for told in recoveries(few)] == [("spike", 80), ("spike", 81)]
    many = broken({"kind": "spike", "steps": [80, 81, 82, 83]}, steps=STEPS, root="many")
    *skips, back = recoveries(many)
    assert [told["policy"] for told in skips] == ["spike"] * 3
    assert (back["policy"], back["cost"]["to_step"], back["cost"]["steps"]) == ("spike_again", 80, 3)
    rows = steps_of(many)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    jump = [b["first_sequence"] - a["first_sequence"] for a, b in pairwise(rows)]
    assert jump == [4] * 79 + [4 * 4] + [4] * (STEPS - 81)  # the steps 81 to 83 are passed over
    assert rows[85]["lr"] == pytest.approx(0.7 * rows[70]["lr"])
    assert many.metrics["dev_loss"] == pytest.approx(few.metrics["dev_loss"], rel=0.05)


def test_divergence_rolls_back_and_the_second_time_regularises_more(broken: Any) -> None:
    made = broken(
        {"kind": "diverge", "steps": list(range(36, 54)), "strength": 60.0},
        {"kind": "diverge", "steps": list(range(80, 94)), "strength": 60.0},
        recovery={"spike": {"at_most": 0}, "spike_again": {"at_most": 0}},
        steps=130,
    )  # fmt: skip
    told = [found for found in recoveries(made) if found["action"] == "roll_back"]
    assert [found["policy"] for found in told[:2]] == ["divergence", "divergence_again"]
    assert [found["cost"]["weight_decay"] for found in told[:2]] == [1.0, 2.0]
    first, second = (found["cost"]["rate"] for found in told[:2])
    assert first == 0.5
    assert 0.25 <= second < 0.3  # the first one's had begun to grow back
    assert told[0]["evidence"]["median"] > told[0]["evidence"]["limit"]
    assert [row["step"] for row in steps_of(made)] == list(range(1, 131))


def test_a_loss_that_rises_on_harder_texts_is_no_divergence(broken: Any) -> None:
    """The dev loss stayed below that of the checkpoint before: going back would only cost steps."""
    hard = list(range(44, 84))
    only_divergence = {"spike": {"at_most": 0}, "spike_again": {"at_most": 0}}
    made = broken({"kind": "hard", "steps": hard, "strength": 4.0}, recovery=only_divergence, steps=90, evaluate_every=20)
    kinds = [event["kind"] for event in made.manifest.events]
    assert "divergence" in kinds
    assert recoveries(made) == []
    (told,) = [event["detail"] for event in made.manifest.events if event["kind"] == "divergence_not_confirmed"]
    assert told["dev_loss"] < told["dev_loss_before"]
    assert [row["step"] for row in steps_of(made)] == list(range(1, 91))


def test_memory_that_runs_out_halves_the_micro_batch_inside_the_step(broken: Any) -> None:
    """The same global batch and the same mean over its tokens: equal weights but for rounding."""
    whole = broken(steps=8, micro_batch=4, root="whole")
    made = broken({"kind": "memory", "steps": [3, 4, 5, 6, 7, 8], "most": 1, "once": False}, steps=8, micro_batch=4)
    assert [(told["policy"], told["step"], told["cost"]["micro_batch"]) for told in recoveries(made)] == [
        ("memory", 3, 2),
        ("memory", 3, 1),
    ]
    assert [row["loss"] for row in steps_of(made)] == pytest.approx([row["loss"] for row in steps_of(whole)], rel=1e-4)
    for name, tensor in weights_of(whole).items():
        torch.testing.assert_close(weights_of(made)[name], tensor, rtol=1e-3, atol=1e-4)


def test_memory_for_not_even_one_sequence_is_reported(broken: Any) -> None:
    with pytest.raises(StageFailedError, match="out_of_memory at step 2") as report:
        broken({"kind": "memory", "steps": [2], "most": 0, "once": False}, steps=4)
    assert "halve_micro_batch (1 times)" in report.value.what
    assert "pack.sequence_length" in report.value.fix


def test_a_disk_without_room_is_pruned_and_then_the_training_stops_cleanly(
    broken: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left are two checkpoints, and the same command goes on from there when there is room again."""
    monkeypatch.setattr(checkpoints, "SPARE_BYTES", checkpoints.SPARE_BYTES)  # put back at the end
    lines: list[str] = []
    fault = {"kind": "no_room", "steps": [22]}
    with pytest.raises(DiskLowError):
        broken(fault, steps=30, save_every=4, milestones=4, services=Services(log=lines.append))
    assert any("'policy': 'disk'" in line and "'action': 'prune'" in line for line in lines)
    assert sorted(path.name for path in (tmp_path / "w").glob("work/train-*/checkpoints/step-*")) == [
        "step-00000016",
        "step-00000020",
    ]
    monkeypatch.undo()
    made = broken(fault, steps=30, save_every=4, milestones=4)
    assert [event["detail"]["step"] for event in made.manifest.events if event["kind"] == "resumed"] == [20]


def test_adjustments_are_functions_of_the_step() -> None:
    changes = Adjustments([Adjustment(40, 3, 0.5, 1.0)])
    assert [changes.data_step(step) for step in (0, 39, 40, 41)] == [0, 39, 43, 44]
    assert [changes.rate(step) for step in (39, 40)] == [1.0, 0.5]
    changes.add(
        Adjustment(20, 30, 0.5, 2.0)
    )  # at step 50, which read what step 53 would: everything from 20 to 52 is passed over
    assert changes.data_step(20) == 53
    assert (changes.rate(19), changes.rate(20), changes.decay(20)) == (1.0, 0.25, 2.0)
    assert Adjustments(Adjustment(**change) for change in changes.to_json()).to_json() == changes.to_json()
    trial = Adjustments([Adjustment(40, 3, 0.25, 1.0, regained=20)])  # ten steps at the lower rate, ten in which it grows back
    assert [trial.rate(step) for step in (39, 40, 50, 55, 60, 61)] == pytest.approx([1.0, 0.25, 0.25, 0.5, 1.0, 1.0])
    trial.add(Adjustment(35, 20, 0.5, 2.0))  # the trouble came again: it stays lower
    assert [trial.rate(step) for step in (35, 1000)] == [0.125, 0.125]


def test_a_row_acts_until_it_is_used_up_and_rests_while_it_cools_down() -> None:
    config = RecoveryConfig.model_validate(
        {"policies": {"divergence": {"cool_down": 10}, "spike": {"at_most": 1, "per_steps": 5}}}
    )
    ledger = Ledger(config.table())
    taken = [ledger.take("divergence", step) for step in (100, 109, 110, 150, 190, 230)]
    assert [policy.name if policy else "" for policy in taken] == [
        "divergence", "", "divergence_again", "divergence_again", "divergence_still", "divergence_still",
    ]  # fmt: skip
    assert [ledger.take("loss_spike", step).name for step in (10, 12, 15)] == ["spike", "spike_again", "spike"]  # type: ignore[union-attr]
    again = Ledger(config.table())
    again.restore(json.loads(json.dumps(ledger.state())))
    assert again.state() == ledger.state()
    assert ledger.take("plateau", 3) is None


def test_the_table_says_what_may_be_changed() -> None:
    assert {policy.signal for policy in POLICIES} == {
        "non_finite", "loss_spike", "divergence", "out_of_memory", "disk_low", "checkpoint_damaged", "chunk_damaged",
        "stop_asked", "worker_died",
    }  # fmt: skip
    with pytest.raises(ValueError, match="did you mean spike"):
        RecoveryConfig.model_validate({"policies": {"spikes": {"at_most": 2}}})
    with pytest.raises(ValueError, match="has no rate to change"):
        RecoveryConfig.model_validate({"policies": {"memory": {"rate": 0.5}}})
