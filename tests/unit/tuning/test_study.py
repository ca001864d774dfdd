"""The study's file after a kill."""

import time

import pytest

from pipeline_lib.tuning.space import Dimension
from pipeline_lib.tuning.study import Study

SPACE = {"learning_rate": Dimension("learning_rate", 0.1, 10.0)}


@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_what_was_recorded_is_there_again(tmp_path, storage):
    study = Study(tmp_path, "one", SPACE, storage=storage)
    first = study.ask(note="kept")
    study.end(first["number"], "complete", [2.5], dev_loss=2.5)
    study.ask("warm", {"learning_rate": 3.0})
    again = Study(tmp_path, "one", SPACE, storage=storage)
    assert again.entries() == study.entries()
    assert again.entry(0)["notes"] == {"note": "kept"}
    assert again.ask()["number"] == 2


def test_a_torn_line_and_a_lock_of_the_dead_hold_nobody_up(tmp_path):
    study = Study(tmp_path, "one", SPACE)
    study.ask()
    study.ask()
    file = tmp_path / "study.journal"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op_code": 8, "worker_id": "a-0", "trial')
    (tmp_path / "study.journal.lock").touch()
    begin = time.monotonic()
    again = Study(tmp_path, "one", SPACE)
    assert again.entries() == study.entries()
    assert again.ask()["number"] == 2
    assert Study(tmp_path, "one", SPACE).entries() == again.entries()
    assert time.monotonic() - begin < 5, "Optuna itself waits half a minute for such a lock"
