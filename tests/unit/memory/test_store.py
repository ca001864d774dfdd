"""The store: one view over warm and cold, kills, older and damaged records, two processes, a full disk, handing on."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from memory_toy import memory, store

from pipeline_lib.errors import ConfigError, DamagedError, NotFoundError
from pipeline_lib.memory.keep import caught_up, remember
from pipeline_lib.memory.store import NOTHING_YET
from pipeline_lib.workspace.runs import RunBook, RunRecord, StageRecord
from pipeline_lib.workspace.workspace import Workspace

ASKED = {"family": "llama", "cpu": "EPYC", "gpu": "", "parameters": 3e6}


def child(folder, *words, fault=""):
    environment = {**os.environ, "MILLRACE_FAULT": fault}
    script = Path(__file__).with_name("memory_toy.py")
    return subprocess.Popen([sys.executable, str(script), str(folder), *map(str, words)], env=environment, cwd=Path.cwd())


def rows(folder):
    return store(folder).table().to_pylist()


def test_a_run_moves_through_the_tiers_and_stays_in_the_one_view(tmp_path):
    made = store(tmp_path, warm_memory_size=10)
    for index in range(40):
        made.add(memory(index))
    before = made.table().to_pylist()
    assert made.tidy() == 30
    assert len(list(made.warm.glob("*.json"))) == 10
    assert {path.name[:7] for path in made.cold.glob("*.parquet")} == {f"2025-{month:02d}" for month in range(1, 10)}
    assert made.table().to_pylist() == before == rows(tmp_path)
    assert made.get(memory(0).run_id) == memory(0)  # cold
    assert made.get(memory(11).run_id) == memory(11)  # warm


def test_age_moves_too_and_the_oldest_months_go_when_cold_is_full(tmp_path):
    made = store(tmp_path, warm_days=1, cold_memory_size=6)
    for index in range(24):
        made.add(memory(index))
    assert made.tidy() == 24
    kept = made.table()["run_id"].to_pylist()
    assert len(kept) == 6
    assert kept == sorted(memory(index).run_id for index in range(24))[-6:]


def test_any_number_of_days_is_a_setting(tmp_path):
    made = store(tmp_path, warm_days=1e9, warm_memory_size=1)
    for index in range(3):
        made.add(memory(index))
    assert made.tidy() == 2


def test_many_files_of_a_month_become_one(tmp_path):
    made = store(tmp_path)
    for index in range(9):
        made.add_all([replace(memory(0), run_id=f"20250101-{index:06d}-bb")])
    assert len(list(made.cold.glob("*.parquet"))) == 9
    made.add(memory(1))
    made.tidy()
    assert len(list(made.cold.glob("*.parquet"))) == 1
    assert len(made) == 10


@pytest.mark.parametrize(
    ("words", "fault", "left"),
    [
        (("add", 20, 3), "memory.before_save:2", 21),
        (("tidy", 4), "memory.before_cold:2", 20),
        (("tidy", 4), "memory.after_cold:2", 20),
    ],
)
def test_a_kill_loses_nothing_and_doubles_nothing(tmp_path, words, fault, left):
    made = store(tmp_path)
    for index in range(20):
        made.add(memory(index))
    assert child(tmp_path, *words, fault=fault).wait(60) == -signal.SIGKILL
    seen = rows(tmp_path)
    assert [row["run_id"] for row in seen] == sorted(memory(index).run_id for index in range(left))
    after = store(tmp_path, warm_memory_size=4)
    after.tidy()
    assert len(list(after.warm.glob("*.json"))) == 4
    assert rows(tmp_path) == seen


def test_processes_write_and_move_at_once_and_nobody_waits_or_loses(tmp_path):
    writers = [child(tmp_path, "add", first, 60) for first in (0, 60)]
    movers = [child(tmp_path, "tidy", 1) for _ in range(2)]
    assert [process.wait(60) for process in [*writers, *movers]] == [0, 0, 0, 0]
    assert [row["run_id"] for row in rows(tmp_path)] == sorted(memory(index).run_id for index in range(120))


def test_what_cannot_be_read_is_set_aside_and_a_newer_record_is_left_alone(tmp_path):
    made = store(tmp_path)
    good = made.add(memory(0))
    (made.warm / "20260101-000001-xx.json").write_text(good.read_text()[:100])
    (made.warm / "20260101-000002-xx.json").write_text('{"format": 2, "run_id": "../../x"}')
    newer = made.warm / "20260101-000003-xx.json"
    newer.write_text(json.dumps({**memory(3).to_json(), "format": 99}))
    made.cold.mkdir()
    (made.cold / "2026-01.aa.parquet").write_bytes(b"PAR1 no")
    assert made.table()["run_id"].to_pylist() == [memory(0).run_id]
    assert len(list(made.aside.iterdir())) == 3
    assert newer.exists()
    assert made.table()["run_id"].to_pylist() == [memory(0).run_id]


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        ({"ended": 5}, None),
        ({"goal": 5}, None),
        ({"goal": "\ud800"}, None),
        ({"run_id": 7}, None),
        ({"failures": [{"signal": 5, "action": "x", "cured": True, "detail": ""}]}, None),
        ({"failures": [{"signal": "a", "action": "x", "cured": "yes", "detail": ""}]}, None),
        ({"features": {"parameters": 10**400}}, "parameters = inf is not a number"),
        ({"features": {"parameters": [1]}}, "parameters is neither number nor word"),
        ({"features": {"family": 3}}, "family = 3 is not a word"),
    ],
)
def test_a_record_of_wrong_kinds_spoils_no_other(tmp_path, change, doubt):
    """What cannot be a row is set aside; a feature that makes no sense is kept out, and doubted."""
    made = store(tmp_path)
    made.add(memory(1))
    told = {**memory(0).to_json(), "run_id": "20260101-000009-zz", **change}
    (made.warm / "20260101-000009-zz.json").write_text(json.dumps(told))
    assert len(made.recall({"parameters": 2e6}, goal="mails")) == (1 if doubt is None else 2)
    assert made.guess(ASKED).runs == (memory(1).run_id,)
    assert len(made.unreadable()) == (doubt is None)
    assert [row["doubts"] for row in made.table().to_pylist()[1:]] == ([] if doubt is None else [[doubt]])


def test_a_cold_file_of_an_older_version_lacks_columns_and_is_read_all_the_same(tmp_path):
    made = store(tmp_path)
    made.add_all([memory(0)])
    (part,) = made.cold.glob("*.parquet")
    pq.write_table(pq.read_table(part).drop_columns(["doubts", "more", "failures", "tuned", "scores", "format"]), part)
    again = store(tmp_path)
    assert again.get(memory(0).run_id).features["parameters"] == 1e6
    assert again.guess(ASKED).runs == (memory(0).run_id,)
    assert again.cures("loss_spike") == []


def test_absurd_values_are_kept_and_marked_and_back_no_guess(tmp_path):
    made = store(tmp_path)
    made.add(memory(0, tokens_per_second=1e15))
    made.add(memory(1, parameters=-5.0))
    made.add(replace(memory(2), features={"family": "llama", "dev_loss": float("nan")}))
    assert [len(row["doubts"]) for row in rows(tmp_path)] == [1, 1, 1]
    assert made.guess(ASKED) is None
    made.add(memory(3))  # 4 million parameters
    guess = made.guess(ASKED)
    assert guess is not None
    assert guess.runs == (memory(3).run_id,)
    assert guess.value == pytest.approx(2e10 / 3e6)


def test_run_records_of_before_the_memory_are_caught_up_with(tmp_path):
    workspace = Workspace.open(tmp_path)
    book = RunBook(workspace.runs_folder)
    old = RunRecord("20250101-000000-aa", "p", goal="mails", outcome="completed", features={"parameters": 2e6})
    book.save(old)
    book.save(RunRecord("20250102-000000-aa", "p"))  # still running
    made = caught_up(workspace)
    assert made.table()["run_id"].to_pylist() == [old.run_id]
    assert made.get(old.run_id).features["parameters"] == 2e6
    exported = tmp_path / "one.json"
    exported.write_text(json.dumps({**old.to_json(), "run_id": "20240101-000000-aa", "format": 1}))
    assert made.bring_in(exported) == (1, 0)
    assert made.get("20240101-000000-aa").goal == "mails"


def test_a_failed_run_teaches_and_is_told_what_cured_its_trouble_before(tmp_path):
    workspace = Workspace.open(tmp_path)
    event = {"kind": "recovery", "detail": {"signal": "loss_spike", "action": "roll_back", "policy": "spike_again"}}
    cured = RunRecord("20260101-000000-aa", "p", outcome="completed", events=[event])
    remember(workspace, cured)
    failing = [{"kind": "training_failed", "detail": {"signal": "loss_spike"}}]
    failed = RunRecord("20260102-000000-aa", "p", outcome="failed", events=failing, stages={"train": StageRecord("failed")})
    remember(workspace, failed)
    assert caught_up(workspace).cures("loss_spike") == [("roll_back", 1)]
    assert failed.events[-1]["kind"] == "cured_before"
    assert failed.events[-1]["detail"] == {"trouble": "loss_spike", "by": ["roll_back (1×)"]}
    assert [f["signal"] for f in caught_up(workspace).get(failed.run_id).failures] == ["loss_spike", "train_failed"]


def test_a_full_disk_is_an_event_and_the_memory_is_made_up_for_later(tmp_path):
    workspace = Workspace.open(tmp_path)
    (tmp_path / "memory").write_text("no folder: nothing can be written below")
    record = RunRecord("20260101-000000-aa", "p", outcome="completed")
    remember(workspace, record)
    assert [event["kind"] for event in record.events] == ["memory_failed"]
    RunBook(workspace.runs_folder).save(record)
    (tmp_path / "memory").unlink()
    assert caught_up(workspace).table()["run_id"].to_pylist() == [record.run_id]


def test_export_and_import_hand_on_everything_once(tmp_path):
    one, other = store(tmp_path / "one", warm_memory_size=3), store(tmp_path / "other")
    for index in range(8):
        one.add(memory(index))
    one.tidy()
    assert one.export(tmp_path / "all.parquet") == 8
    assert other.bring_in(tmp_path / "all.parquet") == (8, 0)
    assert other.bring_in(tmp_path / "all.parquet") == (0, 0)
    assert other.table().to_pylist() == one.table().to_pylist()
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    with pytest.raises(DamagedError):
        other.bring_in(tmp_path / "bad.parquet")
    with pytest.raises(ConfigError, match="cannot be written"):
        one.export(tmp_path)
    assert [path for path in tmp_path.parent.glob(".*") if tmp_path.name in path.name] == []


def test_an_empty_store_says_what_will_be_there_and_an_unknown_run_names_the_nearest(tmp_path):
    made = store(tmp_path)
    assert made.recall({"parameters": 1.0}, goal="x") == []
    with pytest.raises(NotFoundError, match="nothing is remembered yet"):
        made.get("20260101-000000-aa")
    assert "every run that ends" in NOTHING_YET
    made.add(memory(5))
    with pytest.raises(NotFoundError, match=memory(5).run_id):
        made.get("20250601-000005-ab")
