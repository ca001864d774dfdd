"""A training whose schedule moved by the clock is made again from its events: in another workspace, byte by byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_toy import Scripted, run_train

from pipeline_lib.errors import ConfigError
from pipeline_lib.planning.replay import course_of, exported_course
from pipeline_lib.training.hooks import Decision
from pipeline_lib.workspace.runs import RunRecord, StageRecord
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.workspace import Workspace

SCRIPT = {
    4: Decision(kind="replan", total_steps=30, decay_start=22), 9: Decision(kind="replan", total_steps=16, decay_start=13),
    11: Decision(kind="start_decay", decay_steps=4), 13: Decision(kind="replan", total_steps=17, decay_start=11),
}  # fmt: skip


def test_a_replanned_training_is_repeated_from_its_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scripted, "script", SCRIPT)
    first = run_train(tmp_path / "a", controller="training_toy:Scripted")
    workspace = Workspace.open(tmp_path / "a")
    record = RunRecord("20260101-000000-aaaaaaaa", "p", stages={"train": StageRecord(state="made", ref=first.ref().to_json())})
    course = course_of(workspace, record)
    assert [(one["step"], one["decision"]) for one in course or ()] == [(step, said.kind) for step, said in SCRIPT.items()]
    exported = tmp_path / "recorded.json"
    exported.write_text(json.dumps({"course": course}))
    assert exported_course(exported) == course

    again = run_train(tmp_path / "b", services=Services(adaptive=False, follow=tuple(course or ())))
    assert (again.details["steps"], again.manifest.digest) == (17, first.manifest.digest)


def test_a_course_that_is_none_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "recorded.json"
    for course in ([{"step": 1, "decision": "jump", "total_steps": 2, "decay_start": 1}], [3], {"a": 1}):
        wrong.write_text(json.dumps({"course": course}))
        with pytest.raises(ConfigError, match="not an export"):
            exported_course(wrong)
    wrong.write_text("{}")
    assert exported_course(wrong) is None
    assert course_of(Workspace.open(tmp_path), RunRecord("20260101-000000-aaaaaaaa", "p")) is None
