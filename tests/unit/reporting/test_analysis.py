"""Planted troubles in a training's numbers are named with evidence and a setting that exists; healthy ones raise no alarm."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.config.walk import field_at
from pipeline_lib.reporting.analysis import analyse
from pipeline_lib.reporting.evidence import Event, Evidence, Schedule, read_training
from pipeline_lib.reporting.learning import fit
from pipeline_lib.tables.schemas import STEPS
from pipeline_lib.workspace.runs import RunRecord

STEPS_IN_ALL = 800
SCHEDULE = Schedule("wsd", 40, 640, STEPS_IN_ALL)
CONFIG = PipelineConfig()


def course(seed=0, *, floor=3.0, scale=6.0, exponent=0.35, noise=0.05, ratio=1e-3, **changed):
    """A training that follows a power law with noise, and a fall at its decay; `changed` replaces what is planted."""
    draw = np.random.default_rng(seed)
    steps = np.arange(1.0, STEPS_IN_ALL + 1)
    true = floor + scale * steps**-exponent - 0.15 * np.clip((steps - 640) / 160, 0, 1)
    loss = changed.pop("loss", true) + noise * draw.standard_normal(len(steps))
    rate = 0.01 * np.minimum(steps / 40, 1) * np.clip((STEPS_IN_ALL - steps) / 160, 0, 1)
    values = {
        "steps": steps, "loss": loss, "rate": rate, "norm": 0.4 + 0.1 * draw.random(len(steps)),
        "seconds": np.full(len(steps), 0.1), "waited": np.full(len(steps), 0.01), "speed": np.full(len(steps), 1e4),
        "dev": [(int(s), float(true[s - 1] + 0.05)) for s in range(40, STEPS_IN_ALL + 1, 40)],
        "layers": [{"step": s, "group": "all", "grad_norm": 0.4, "update_ratio": ratio} for s in range(20, 800, 20)],
        "schedule": SCHEDULE, "metrics": {"train": {"epochs": 0.9}, "dedup": {"documents": 1000, "dropped": 100}},
        "overlap": (0, 50),
    }  # fmt: skip
    return Evidence(config=CONFIG, record=RunRecord("20261120-000000-00000000", "test"), **{**values, **changed})


def overfitted():
    steps = np.arange(1.0, STEPS_IN_ALL + 1)
    dev = [(s, 4.0 - 0.002 * s if s <= 300 else 3.4 + 0.001 * (s - 300)) for s in range(40, STEPS_IN_ALL + 1, 40)]
    return course(loss=6.0 - 0.005 * steps, dev=dev, metrics={"train": {"epochs": 40.0}})


def diverged():
    steps = np.arange(1.0, STEPS_IN_ALL + 1)
    return course(loss=3.0 + 6.0 * steps**-0.35 + 0.01 * np.clip(steps - 500, 0, None))


TROUBLES = {
    "overfitting": (overfitted, "step 320"),
    "divergence": (diverged, "lowest"),
    "plateau": (lambda: course(floor=3.9, scale=3.0, exponent=2.0, noise=0.02, dev=[]), "fell by"),
    "rate_too_high": (lambda: course(ratio=0.08), "8 %"),
    "rate_too_low": (lambda: course(loss=8.0 - 0.002 * np.arange(800.0), ratio=3e-5), "0.003 %"),
    "data_stall": (lambda: course(waited=np.full(800, 0.4)), "40 %"),
    "duplicate_heavy": (lambda: course(metrics={"dedup": {"documents": 1000, "exact_duplicates": 450}}), "450 of 1,000"),
    "leaking_validation": (lambda: course(overlap=(9, 50)), "9 of 50"),
}  # fmt: skip


@pytest.mark.parametrize("name", TROUBLES)
def test_a_planted_trouble_is_named_with_its_evidence(name):
    make, evidence = TROUBLES[name]
    found = {finding.name: finding for finding in analyse(make()).troubles}
    assert list(found) == [name]
    assert evidence in found[name].evidence
    for setting in found[name].setting.split(", "):
        assert field_at(PipelineConfig, tuple(setting.split(".")))[0] is not None, setting


@pytest.mark.parametrize("seed", range(5))
def test_healthy_trainings_raise_no_alarm(seed):
    exponent = (0.2, 0.3, 0.35, 0.5, 0.25)[seed]
    assert analyse(course(seed, exponent=exponent, noise=0.02 + 0.03 * seed, ratio=4e-4 * (seed + 1))).troubles == []


@pytest.mark.parametrize(("factor", "name"), [(0.02, "rate_too_low"), (30.0, "rate_too_high")])
def test_a_rate_far_from_the_law_is_told_with_the_laws(factor, name):
    details = {"train": {"parameters": 2_557_632, "vocabulary_size": 4096, "tokens_seen": 2_600_000}}
    steady = 8.0 - 0.002 * np.arange(800.0)
    rate = np.full(800, 0.005 * factor)
    (found,) = analyse(course(loss=steady, rate=rate, details=details, dev=[])).troubles
    assert found.name == name
    assert "0.005" in found.evidence
    assert analyse(course(rate=np.full(800, 0.005), details=details)).troubles == []


def test_recoveries_that_lowered_the_rate_say_it_was_too_high():
    event = Event(120, "recovery", {"action": "roll_back", "signal": "divergence", "cost": {"steps": 40, "seconds": 4.0}})
    analysis = analyse(course(events=[event]))
    assert [finding.name for finding in analysis.troubles] == ["rate_too_high"]
    assert analysis.recoveries == ((120, "divergence", "roll back", "", "steps 40, seconds 4"),)


def test_the_fit_finds_what_the_course_was_made_of():
    steps = np.arange(1.0, 2001)
    found = fit(steps, 2.5 + 5.0 * steps**-0.4 + 0.01 * np.random.default_rng(1).standard_normal(2000))
    assert found.floor == pytest.approx(2.5, abs=0.1)
    assert found.exponent == pytest.approx(0.4, abs=0.05)
    assert found.explained > 0.98


def test_a_run_that_left_nothing_is_analysed_all_the_same():
    analysis = analyse(Evidence(config=CONFIG, record=RunRecord("20261120-000000-00000000", "test")))
    assert analysis.findings == ()
    assert analysis.to_json()["numbers"] == {}


def test_steps_made_again_are_counted_once_and_their_time_is_told():
    rows = [{"step": s, "loss": 9.0, "seconds": 2.0, "superseded": True} for s in (2, 3)]
    rows += [{"step": s, "loss": 1.0 * s, "seconds": 1.0, "superseded": False} for s in (1, 2, 3)]
    read = read_training({"steps": pa.Table.from_pylist(rows, schema=STEPS)})
    assert read["loss"].tolist() == [1.0, 2.0, 3.0]
    assert (read["again_steps"], read["again_seconds"]) == (2, 4.0)


def test_a_promise_not_kept_is_told_once_in_its_own_unit():
    def promise(value, actual, *, inside):
        told = {"value": value, "low": 0.9 * value, "high": 1.1 * value, "unit": "bytes"}
        return {**told, "actual": actual, "error": actual / value - 1, "inside": inside}

    graded = {
        "expected_end_seconds": promise(100.0, 150.0, inside=False), "energy_kwh": promise(1.0, 1.5, inside=False),
        "final_dev_loss": promise(3.0, 3.1, inside=True), "peak_memory_bytes": promise(2.0**30, 3.0 * 2**30, inside=False),
    }  # fmt: skip
    record = RunRecord("20261120-000000-00000000", "test", graded={"promises": graded})
    found = {one.name: one for one in analyse(replace(course(), record=record)).findings if one.name.startswith("promise_")}
    assert list(found) == ["promise_expected_end_seconds", "promise_peak_memory_bytes"]
    assert found["promise_peak_memory_bytes"].evidence == "promised 1 (0.9 to 1.1) GiB, came 3."
    assert "50 % off" in found["promise_expected_end_seconds"].says
