"""The plan copies what memory says of runs like it, and says when this machine is not as fast as it was."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from plan_toy import CALIBRATED, GIB, make_plan

from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.config.recovery import BY_NAME, RecoveryConfig
from pipeline_lib.memory.keep import caught_up, store_of
from pipeline_lib.planning.memory import count_parameters
from pipeline_lib.planning.peak import Share, remembered_share
from pipeline_lib.planning.recalled import features_asked
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace

DATA = {"vocabulary_size": 4096, "sequence_length": 256}


def remember(root: Path, rates: list[float], outcome: str = "completed", **features: float | str) -> None:
    asked = features_asked(ModelConfig(), TrainConfig(), DATA, count_parameters(ModelConfig(), 4096).total)
    book = RunBook(Workspace.open(root).runs_folder)
    for day, rate in enumerate(rates, 1):
        known = {**asked, "tokens_per_second": rate, **features}
        book.save(RunRecord(f"2026010{day}-000000-aaaaaaaa", "p", features=known, outcome=outcome))


def test_nothing_is_recalled_in_a_new_workspace(tmp_path: Path) -> None:
    made = make_plan(tmp_path)
    assert (made.details["recalled"]["runs"], made.details["recalled"]["tokens_per_second"]) == ([], {})
    assert "past runs" not in made.manifest.summary.title


def test_runs_like_it_tell_their_speed(tmp_path: Path) -> None:
    remember(tmp_path, [9_000.0, 11_000.0, 12_000.0])
    made = make_plan(tmp_path)
    rate = made.details["recalled"]["tokens_per_second"]
    assert (rate["value"], rate["low"], rate["high"]) == (11_000, 9_000, 12_000)
    assert made.details["recalled"]["calibrated_share"] == pytest.approx(10 / 11, abs=1e-4)
    assert [found["distance"] for found in made.details["recalled"]["runs"]] == [0, 0, 0]
    assert "3 past runs like it let expect 11,000 tokens/s" in made.manifest.summary.title
    assert not [event for event in made.manifest.events if event["kind"] == "speed_differs"]


def test_a_machine_slower_than_remembered_is_an_event(tmp_path: Path) -> None:
    remember(tmp_path, [20_000.0, 21_000.0])
    made = make_plan(tmp_path)
    (event,) = [event for event in made.manifest.events if event["kind"] == "speed_differs"]
    assert (event["detail"]["calibrated"], event["detail"]["recalled"]) == (10_000, 20_500)
    assert "busy" in event["detail"]["why"]


def test_other_machines_and_running_runs_tell_no_speed(tmp_path: Path) -> None:
    remember(tmp_path / "a", [20_000.0], cpu="another")
    assert make_plan(tmp_path / "a").details["recalled"]["tokens_per_second"] == {}
    remember(tmp_path / "b", [20_000.0], outcome="running")
    assert make_plan(tmp_path / "b").details["recalled"]["runs"] == []


def test_runs_that_were_imported_tell_as_well(tmp_path: Path) -> None:
    """Of another workspace, its records gone: speed, and how trainings of this model ended."""
    remember(tmp_path / "a", [11_000.0], trained_tokens=4e6, dev_loss=3.0)
    file = tmp_path / "memory.parquet"
    assert caught_up(Workspace.open(tmp_path / "a")).export(file) == 1
    assert store_of(Workspace.open(tmp_path / "b")).bring_in(file) == (1, 0)
    made = make_plan(tmp_path / "b")
    assert made.details["recalled"]["tokens_per_second"]["value"] == 11_000
    promise = made.details["promises"]["final_dev_loss"]
    assert "1 earlier run of this model on other data" in promise["basis"]
    assert promise["low"] < 3.0 * (4e6 / made.details["tokens"]) ** 0.12 < promise["high"]


def test_memory_is_never_part_of_the_key(tmp_path: Path) -> None:
    before = make_plan(tmp_path / "a", calibrated=CALIBRATED)
    remember(tmp_path / "b", [20_000.0])
    assert make_plan(tmp_path / "b", calibrated=CALIBRATED).key == before.key


SHARE_ASKED = features_asked(ModelConfig(), TrainConfig(), DATA, count_parameters(ModelConfig(), 4096).total)


def test_the_memory_estimate_is_corrected_by_what_runs_like_it_measured(tmp_path: Path) -> None:
    """Shares 1.2, 1.25 and 1.3: their median, and Student's interval of one more with the usual spread pooled in."""
    for day, share in enumerate((1.2, 1.25, 1.3), 1):
        known = {**SHARE_ASKED, "memory_share": share}
        RunBook(Workspace.open(tmp_path).runs_folder).save(
            RunRecord(f"2026010{day}-000000-aaaaaaaa", "p", features=known, outcome="completed")
        )
    found = remembered_share(caught_up(Workspace.open(tmp_path)), SHARE_ASKED)
    logs = [math.log(share) for share in (1.2, 1.25, 1.3)]
    middle = sum(logs) / 3
    spread = math.sqrt((4 * 0.1**2 + sum((log - middle) ** 2 for log in logs)) / 6)
    half = 1.943 * spread * math.sqrt(4 / 3)  # Student's 95 % point of 6 degrees of freedom
    assert found.value == pytest.approx(math.exp(middle))
    assert (found.low, found.high) == pytest.approx((math.exp(middle - half), math.exp(middle + half)), rel=1e-3)
    unmeasured = {
        "micro_batch": 4,
        "precision": "bf16",
        "tokens_per_second": 8_000.0,
        "estimated_bytes": int(1.25 * GIB),
        "error": "",
    }
    told = {**CALIBRATED, "guessed_memory_share": found.to_json()}
    made = make_plan(tmp_path / "new", calibrated={**told, "profiles": [unmeasured]}).details
    memory, promise = made["memory"], made["promises"]["peak_memory_bytes"]
    assert memory["estimated_bytes"] == sum(made["memory_terms"].values())
    assert memory["foreseen_bytes"]["value"] == pytest.approx(1.25 * memory["estimated_bytes"], rel=1e-3)
    assert memory["share"]["runs"] == [f"2026010{day}-000000-aaaaaaaa" for day in (3, 2, 1)]
    assert (promise["value"], memory["measured_bytes"]) == (pytest.approx(1.25 * GIB, rel=1e-4), None)
    assert promise["low"] == pytest.approx(1.25 * GIB * found.low / found.value, rel=1e-3)
    assert promise["basis"] == "estimated, × 1.25 as 3 runs like this one measured"
    measured = make_plan(tmp_path / "measured", calibrated=told)
    assert measured.details["promises"]["peak_memory_bytes"]["basis"] == "measured in calibration"
    assert measured.details["memory"]["measured_bytes"] == 2 * GIB
    assert "by the formula × 1.25 of 20260103-000000-aaaaaaaa" in measured.manifest.summary.title
    assert "2.00 measured now" in measured.manifest.summary.title


def test_memory_of_other_machines_unlike_models_and_absurd_shares_corrects_nothing(tmp_path: Path) -> None:
    unlike = [
        {"cpu": "another"},
        {"memory_share": 50.0},
        {"parameters": 1e11, "width": 8192, "depth": 96, "vocabulary_size": 2e5},
    ]
    book = RunBook(Workspace.open(tmp_path).runs_folder)
    for day, features in enumerate(unlike, 1):
        known = {**SHARE_ASKED, "memory_share": 1.5, **features}
        book.save(RunRecord(f"2026010{day}-000000-aaaaaaaa", "p", features=known, outcome="completed"))
    assert remembered_share(caught_up(Workspace.open(tmp_path)), SHARE_ASKED) == Share()
    book.save(RunRecord("20260109-000000-aaaaaaaa", "p", features={**SHARE_ASKED, "memory_share": 5.0}, outcome="completed"))
    assert remembered_share(caught_up(Workspace.open(tmp_path)), SHARE_ASKED).value == pytest.approx(2.0)  # bounded


def cured(run_id: str, policy: str, **features: float | str) -> RunRecord:
    events = [{"kind": "recovery", "detail": {"step": 9, "policy": policy, "action": BY_NAME[policy].action,
                                              "signal": BY_NAME[policy].signal}}]  # fmt: skip
    return RunRecord(run_id, "p", features={**SHARE_ASKED, **features}, outcome="completed", events=events)


def test_the_plan_names_what_cured_a_trouble_in_runs_like_it(tmp_path: Path) -> None:
    """The mildest of what was enough in the nearest three; a first rung that was enough changes nothing."""
    book = RunBook(Workspace.open(tmp_path).runs_folder)
    book.save(cured("20260101-000000-aaaaaaaa", "divergence_again"))
    book.save(cured("20260102-000000-aaaaaaaa", "non_finite_often"))
    book.save(cured("20260103-000000-aaaaaaaa", "non_finite_again", width=224))
    book.save(cured("20260104-000000-aaaaaaaa", "spike_again"))
    book.save(cured("20260105-000000-aaaaaaaa", "spike"))
    assert make_plan(tmp_path).details["cures"] == {
        "divergence": {"begin": "divergence_again", "passed_over": ["divergence"], "run": "20260101-000000-aaaaaaaa"},
        "non_finite": {"begin": "non_finite_again", "passed_over": ["non_finite"], "run": "20260103-000000-aaaaaaaa"},
    }


def test_cures_of_unlike_runs_and_of_rows_that_are_switched_off_are_not_taken_over(tmp_path: Path) -> None:
    book = RunBook(Workspace.open(tmp_path).runs_folder)
    book.save(cured("20260101-000000-aaaaaaaa", "divergence_again", family="mamba", parameters=1e11, optimizer="lars", depth=200))
    book.save(cured("20260102-000000-aaaaaaaa", "spike_again"))
    off = TrainConfig(recovery=RecoveryConfig.model_validate({"policies": {"spike_again": {"at_most": 0}}}))
    assert make_plan(tmp_path, train=off).details["cures"] == {}
