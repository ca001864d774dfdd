"""The plan copies what memory says of runs like it, and says when this machine is not as fast as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from plan_toy import CALIBRATED, make_plan

from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.memory.keep import caught_up, store_of
from pipeline_lib.planning.memory import count_parameters
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
