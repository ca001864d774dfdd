"""Runs over a toy table of stages: selection, retry, supply, failure, and what killed runs leave."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import run_toys

from pipeline_lib import run, status
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.config.resources import TrackingConfig
from pipeline_lib.errors import BusyError, ConfigError, DamagedError, NotFoundError, StageFailedError
from pipeline_lib.run import open_run, reconcile, resume_run, run_plain, selection, step
from pipeline_lib.status import difference
from pipeline_lib.tracking.run import start_run
from pipeline_lib.workspace.recorded import export_recorded
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.workspace import Workspace

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def toy_table(monkeypatch):
    for module, name in [(run, "STAGES"), (run, "BY_NAME"), (run, "RECORDED"), (status, "STAGES")]:
        monkeypatch.setattr(module, name, getattr(module, name))
    run_toys.install()


@pytest.fixture
def workspace(tmp_path):
    return Workspace.open(tmp_path / "w")


def config(**changes):
    return PipelineConfig.model_validate({"name": "toy", **changes})


def states(record):
    return {name: entry.state for name, entry in record.stages.items()}


ALL_MADE = {"letters": "made", "clock": "made", "train": "made"}
ALL_REUSED = dict.fromkeys(ALL_MADE, "reused")


def test_the_second_run_reuses_and_a_changed_parameter_starts_where_it_counts(workspace):
    assert states(run_plain(workspace, config())) == ALL_MADE
    second = run_plain(workspace, config())
    assert (states(second), second.outcome) == (ALL_REUSED, "completed")
    third = run_plain(workspace, config(select={"temperature": 0.5}))
    assert states(third) == {"letters": "reused", "clock": "reused", "train": "made"}


def test_features_are_noted_for_memory(workspace):
    record = run_plain(workspace, config())
    features = RunBook(workspace.runs_folder).load(record.run_id).features
    expected = {"parameters": 12, "dev_loss": 3.5, "tokens_per_second": 100.0, "sequence_length": 256, "family": "llama"}
    assert expected.items() <= features.items()
    assert features["peak_memory_bytes"] > 10 * 2**20
    assert {"train_seconds", "run_seconds", "cpu"} <= features.keys()
    assert "tokens" not in features  # nobody reported it


def test_selection_in_words():
    everything = ("letters", "clock", "train")
    assert selection().stages == everything
    assert selection(until="clock").stages == ("letters", "clock")
    assert selection(from_stage="clock") == run.Selection(("clock", "train"), ("letters",), frozenset())
    assert selection(from_stage="clock", force=True).force == {"clock", "train"}
    assert selection(only="clock") == run.Selection(("clock",), ("letters",), frozenset())
    assert selection(recorded=True).stages == ("letters", "train")
    assert selection(force=["train"]).force == {"train"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"from_stage": "trian"}, "did you mean train"),
        ({"force": ["lettres"]}, "did you mean letters"),
        ({"only": "clock", "until": "train"}, "one or the other"),
        ({"from_stage": "train", "until": "letters"}, "the order is"),
        ({"until": "letters", "force": ["train"]}, "these run"),
        ({"only": "clock", "recorded": True}, "nothing is left"),
    ],
)
def test_contradictions_are_refused(options, words):
    with pytest.raises(ConfigError) as caught:
        selection(**options)
    assert words in str(caught.value)


def test_from_takes_the_newest_intact_inputs(workspace):
    first = run_plain(workspace, config())
    second = run_plain(workspace, config(split={"dev_share": 0.02}))
    third = run_plain(workspace, config(), from_stage="train")
    assert states(third) == {"letters": "supplied", "clock": "supplied", "train": "reused"}
    assert third.ref("train").key == second.ref("train").key
    lender = workspace.store.artifact(second.ref("letters").key)
    lender.file("letters").write_text("spoilt")
    fourth = run_plain(workspace, config(), only="train")
    assert fourth.ref("letters").key == first.ref("letters").key  # the newest run whose inputs are intact
    assert run_plain(workspace, config(), only="train", parent=first.run_id).parent == first.run_id


def test_from_without_any_run_says_what_to_do(workspace):
    with pytest.raises(NotFoundError, match="no earlier run"):
        run_plain(workspace, config(), from_stage="train")
    assert RunBook(workspace.runs_folder).load("latest").outcome == "failed"


def test_force_from_a_stage_on(workspace):
    first = run_plain(workspace, config())
    second = run_plain(workspace, config(), from_stage="clock", force=True)
    assert states(second) == {"letters": "supplied", "clock": "made", "train": "made"}
    assert second.ref("clock").digest != first.ref("clock").digest


def test_recorded_follows_an_earlier_run(workspace):
    first = run_plain(workspace, config())
    run_plain(workspace, config(), force=["clock"])
    third = run_plain(workspace, config(), recorded=first.run_id)
    assert states(third) == {"letters": "reused", "clock": "supplied", "train": "reused"}
    assert third.ref("train").key == first.ref("train").key


def test_recorded_travels_to_another_workspace_as_a_file(workspace, tmp_path):
    first = run_plain(workspace, config())
    path = tmp_path / "recorded.json"
    exported = export_recorded(workspace, first, ["clock"])
    path.write_text(json.dumps(exported))
    other = Workspace.open(tmp_path / "other")
    second = run_plain(other, config(), recorded=str(path))
    assert second.ref("train").digest == first.ref("train").digest
    assert second.ref("train").fingerprint == first.ref("train").fingerprint
    exported["stages"]["clock"]["manifest"]["details"]["now"] += 1
    path.write_text(json.dumps(exported))
    with pytest.raises(DamagedError):
        run_plain(Workspace.open(tmp_path / "third"), config(), recorded=str(path))


def test_an_export_cannot_write_outside(workspace, tmp_path):
    first = run_plain(workspace, config())
    exported = export_recorded(workspace, first, ["clock"])
    (entry,) = exported["stages"]["clock"]["manifest"]["files"]
    exported["stages"]["clock"]["files"]["../../../evil.txt"] = exported["stages"]["clock"]["files"].pop(entry["path"])
    entry["path"] = "../../../evil.txt"
    (tmp_path / "recorded.json").write_text(json.dumps(exported))
    other = Workspace.open(tmp_path / "other")
    with pytest.raises(DamagedError, match="not a path inside"):
        run_plain(other, config(), recorded=str(tmp_path / "recorded.json"))
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_failed_stage_is_recorded_and_retried(workspace, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "1")
    with pytest.raises(StageFailedError, match="asked to fail"):
        run_plain(workspace, config())
    failed = RunBook(workspace.runs_folder).load("latest")
    assert (failed.outcome, states(failed)["train"], failed.stages["train"].error) == ("failed", "failed", "asked to fail: 1")
    monkeypatch.delenv("TOY_FAIL")
    again = run_plain(workspace, config(), resume=failed.run_id)
    assert again.run_id == failed.run_id
    assert (len(again.attempts), again.outcome, again.error) == (2, "completed", "")
    assert [attempt.state for attempt in again.attempts] == ["failed", "completed"]
    assert states(again) == {"letters": "reused", "clock": "reused", "train": "made"}
    assert again.stages["train"].attempt == 2


def test_a_stop_is_no_failure(workspace):
    def stop(line):
        raise KeyboardInterrupt

    record = open_run(workspace, config())
    with pytest.raises(KeyboardInterrupt):
        step(workspace, record, "letters", services=Services(clock=lambda: stop("now")))
    assert RunBook(workspace.runs_folder).load(record.run_id).stages["letters"].state == "cancelled"


def test_a_failing_stage_s_passwords_are_written_and_shown_nowhere(workspace, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "no answer from https://anna:geheim@shop.example/x?api_key=schluessel&page=2")
    lines = []
    tracking = TrackingConfig(uri=f"sqlite:///{workspace.db_folder / 'mlflow.db'}")
    opened = open_run(workspace, config())
    tracker = start_run(workspace, tracking, opened, log=lines.append)
    services = Services(tracker=tracker, log=lines.append)
    with pytest.raises(StageFailedError, match="page=2") as raised:
        run_plain(workspace, config(), resume=opened.run_id, services=services)
    tracker.tags({"error": RunBook(workspace.runs_folder).load(opened.run_id).error})
    tracker.end("FAILED")
    tracker.close()
    lines += traceback.format_exception(raised.value)  # what Prefect and loggers get
    record = RunBook(workspace.runs_folder).load(opened.run_id)
    assert "https://***@shop.example/x?api_key=***&page=2" in record.error
    assert record.error == record.stages["train"].error
    texts = ["".join(lines), *(path.read_bytes().decode("latin-1") for path in workspace.root.rglob("*") if path.is_file())]
    assert not [text for text in texts if "geheim" in text or "schluessel" in text]


def child(workspace, mark):
    code = "import run_toys; run_toys.install()\nfrom test_run import config\nfrom pipeline_lib.run import run_plain\n"
    code += (
        "from pipeline_lib.workspace.workspace import Workspace\nimport sys; run_plain(Workspace.open(sys.argv[1]), config())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "TOY_MARK": str(mark)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(workspace.root)], env=environment, cwd=ROOT, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 60
    while not mark.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end
        time.sleep(0.02)
    return process


def test_sigterm_cancels_and_says_so(workspace, tmp_path):
    process = child(workspace, tmp_path / "mark")
    process.terminate()
    assert process.wait(30) != 0
    process.stderr.close()
    record = RunBook(workspace.runs_folder).load("latest")
    assert (record.outcome, states(record)) == ("cancelled", {"letters": "made", "clock": "made", "train": "cancelled"})


def test_a_killed_run_is_closed_by_the_next_and_can_go_on(workspace, tmp_path):
    process = child(workspace, tmp_path / "mark")
    record = RunBook(workspace.runs_folder).load("latest")
    record.attempts[0].host = "a-container-that-is-gone"  # names of machines change; the lock tells
    RunBook(workspace.runs_folder).save(record)
    assert reconcile(workspace) == []  # it lives
    with pytest.raises(BusyError, match=str(process.pid)):
        resume_run(workspace, record.run_id)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    (closed,) = reconcile(workspace)
    assert (closed.run_id, closed.outcome, closed.attempts[0].state) == (record.run_id, "killed", "killed")
    assert states(closed) == {"letters": "made", "clock": "made", "train": "killed"}
    assert closed.ended
    assert reconcile(workspace) == []
    again = run_plain(workspace, config(), resume=record.run_id)
    assert states(again) == {"letters": "reused", "clock": "reused", "train": "made"}


def test_a_person_s_retry_after_the_window_opens_a_new_one_and_an_automatic_does_not(workspace):
    record = run_plain(workspace, config(resources={"max_hours": 2, "margin_minutes": 1}))
    long_ago = datetime.now(UTC) - timedelta(hours=30)
    record.started, record.deadline = long_ago.isoformat(), (long_ago + timedelta(hours=2)).isoformat()
    RunBook(workspace.runs_folder).save(record)
    automatic = resume_run(workspace, record.run_id, automatic=True)
    assert automatic.deadline == record.deadline
    person = resume_run(workspace, record.run_id)
    window = datetime.fromisoformat(person.deadline) - datetime.now(UTC)
    assert timedelta(hours=1, minutes=59) < window <= timedelta(hours=2)
    assert [event["kind"] for event in person.events] == ["new_window"]
    assert person.started == record.started
    assert len(person.attempts) == 3


def by_stage(workspace, given):
    return {one.stage: (one.state, one.why) for one in status.status(workspace, given)}


def test_status_says_what_would_run_and_why(workspace):
    fresh = by_stage(workspace, config())
    assert fresh["letters"] == ("would run", "never made in this workspace")
    assert fresh["train"][0] == "unknown"
    record = run_plain(workspace, config())
    assert {state for state, _ in by_stage(workspace, config()).values()} == {"reused"}
    changed = by_stage(workspace, config(select={"temperature": 0.5}))
    assert changed["train"] == ("stale", "select.temperature 0.7 → 0.5")
    assert changed["clock"][0] == "reused"
    earlier = by_stage(workspace, config(split={"dev_share": 0.02}))
    assert earlier["letters"] == ("stale", "split.dev_share 0.01 → 0.02")
    assert earlier["clock"] == ("unknown", "depends on letters, which would run")
    path = workspace.store.artifact(record.ref("letters").key).file("letters")
    path.write_text("spoilt")
    state, why = by_stage(workspace, config())["letters"]
    assert state == "damaged"
    assert "letters/a.txt" in why
    assert workspace.store.has(record.ref("letters").key)  # only looked at


def test_status_names_changed_inputs(workspace):
    run_plain(workspace, config())
    run_plain(workspace, config(), force=["clock"], until="clock")
    assert by_stage(workspace, config())["train"] == ("stale", "clock has other details")


def test_differences_in_words():
    assert difference({"train": {"lr": 1}}, {"train": {"lr": 1}}) == ""
    assert difference({"train": {"lr": 1, "b": 2}}, {"train": {"lr": 3, "b": 4}}) == "train.lr 1 → 3 and 1 more"
    sources = [{"ingest": {"sources": [{"name": name}]}} for name in ("a", "b")]
    assert difference(*sources) == "ingest.sources.0.name a → b"
    assert "outside" in difference({"outside": {"x.py": "1"}}, {"outside": {"x.py": "2"}})
