"""Runs and the workspace from the command line, on a real (short) run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from flows.cli.command import RUN, command, run_with
from flows.cli.main import make_app
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.run import open_run, run_plain
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path / "ws"))
    return Workspace.open()


@pytest.fixture
def record(workspace: Workspace) -> RunRecord:
    """A run of the first stage, with a goal that plays with terminals."""
    return run_plain(workspace, PipelineConfig(goal="see \x1b[31mred"), until="suites")


def millrace(*arguments: str) -> Result:
    return CliRunner().invoke(make_app(), list(arguments))


def read(*arguments: str) -> object:
    done = millrace(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_runs_and_show(record: RunRecord) -> None:
    listed = millrace("runs").stdout.splitlines()
    assert len(listed) == 2
    assert listed[1].split()[:3] == [record.run_id, "pipeline", "completed"]
    shown = millrace("show", record.run_id[:17]).stdout
    assert f"run {record.run_id} · pipeline · completed" in shown
    assert "goal: see \\x1b[31mred" in shown
    assert "\x1b" not in shown
    assert [row["run_id"] for row in read("runs")] == [record.run_id]  # type: ignore[attr-defined]
    assert read("show", "latest")["stages"]["suites"]["state"] == "made"  # type: ignore[index]


def test_pin_and_unpin(workspace: Workspace, record: RunRecord) -> None:
    book = RunBook(workspace.runs_folder)
    assert millrace("pin", "latest").exit_code == 0
    assert book.load(record.run_id).pinned
    assert "pinned" in millrace("runs").stdout
    assert millrace("unpin", record.run_id).exit_code == 0
    assert not book.load(record.run_id).pinned


def test_sql_reads_and_only_reads(record: RunRecord, tmp_path: Path) -> None:
    rows = read("sql", "select count(*) as n from suite_items")
    assert rows[0]["n"] >= 1000  # type: ignore[index]
    cut = millrace("sql", "select * from range(500)", "--limit", "3")
    assert "only the first 3 rows" in cut.stderr
    assert len(cut.stdout.splitlines()) == 4
    assert "\\x1b" in millrace("sql", "select chr(27) || '[31m' as x").stdout
    for wrong in (f"copy (select 1) to '{tmp_path}/x.csv'", "select * from read_text('/etc/hostname')", "attach 'x.db'"):
        assert millrace("sql", wrong).exit_code == 2
    assert not (tmp_path / "x.csv").exists()


def test_sql_cuts_long_texts_shows_bytes_that_are_text_and_says_how_ids_are_compared(record: RunRecord) -> None:
    long = "select 1 as n, repeat('x', 500) as text"
    shown = millrace("sql", long)
    assert len(shown.stdout.splitlines()[1]) < 200
    assert "--json, is whole" in shown.stderr
    assert "x" * 500 in millrace("sql", "select repeat('x', 500) as text").stdout
    assert read("sql", long)[0]["text"] == "x" * 500  # type: ignore[index]
    assert "broken {" in millrace("sql", "select encode('broken {') as head").stdout
    wrong = millrace("sql", f"select 1 where encode('a') = '{'0' * 32}'")
    assert f"unhex('{'0' * 32}')" in wrong.stderr
    assert f"tables of run {record.run_id}: " in millrace("sql", "select * from documents").stderr


def test_rules_list_names_what_decides_about_conversations(record: RunRecord) -> None:
    rows = read("rules", "list")
    assert {row["domains"] for row in rows if row["set"] == "instruct"} == {"(conversations)"}  # type: ignore[attr-defined]


def test_latest_is_the_newest_run_that_came_so_far(
    workspace: Workspace, record: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    RunBook(workspace.runs_folder).save(RunRecord("29991231-235959-00000000", "toy", outcome="failed"))
    assert run_with(workspace, "latest", "suites").run_id == record.run_id
    assert f"29991231-235959-00000000 (failed), has no suites; this is {record.run_id}" in capsys.readouterr().err
    assert run_with(workspace, "2999", "suites").outcome == "failed"  # what is named is taken
    assert run_with(workspace, "latest", "score").outcome == "failed"


def test_config_check_reads_rules(workspace: Workspace) -> None:
    wrong = millrace("config", "check", "--set", "score.extra_rules={long: wrods > 3}")
    assert wrong.exit_code == 2
    assert "did you mean words?" in wrong.stderr


def test_verify_finds_damage_and_ends_with_its_code(workspace: Workspace, record: RunRecord) -> None:
    assert read("verify", "--full") == []
    ref = record.ref("suites")
    assert ref is not None
    file = next((workspace.root / "artifacts" / ref.key).rglob("*.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    done = millrace("verify", "--json")
    assert done.exit_code == 4
    assert file.name in json.loads(done.stdout)[0]["where"]


def test_gc_is_a_dry_run_until_told(workspace: Workspace) -> None:
    """The runs are made by another process: what a living one has used stays."""
    code = (
        "from pipeline_lib.run import *; from pipeline_lib.config.pipeline import *\n"
        "from pipeline_lib.workspace.workspace import *\n"
        "for seed in (0, 1): run_plain(Workspace.open(), PipelineConfig(seed=seed), until='suites')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    record = next(RunBook(workspace.runs_folder).all())
    old = workspace.root / "artifacts" / record.stages["suites"].ref["key"]  # type: ignore[index]
    options = ["--runs", "1", "--days", "0"]
    assert "millrace gc --yes" in millrace("gc", *options).stdout
    millrace("pin", record.run_id)
    assert millrace("gc", *options, "--yes").exit_code == 0
    assert old.exists()
    millrace("unpin", record.run_id)
    assert [thing["name"] for thing in read("gc", *options, "--yes")["things"] if thing["kind"] == "artifact"] == [  # type: ignore[index]
        record.stages["suites"].ref["key"]  # type: ignore[index]
    ]
    assert not old.exists()


def test_du_adds_up(record: RunRecord) -> None:
    rows = {row["what"]: row["bytes"] for row in read("du")}  # type: ignore[attr-defined]
    parts = sum(size for name, size in rows.items() if name not in {"total", "free"})
    assert rows["total"] == parts > rows["artifacts/suites"] > 10_000


def test_status_and_dry_run_say_what_would_happen_and_do_nothing(workspace: Workspace, record: RunRecord) -> None:
    before = sorted(path for path in workspace.root.rglob("*") if path.is_file())
    states = {stage["stage"]: stage for stage in read("status")}  # type: ignore[attr-defined]
    assert states["suites"]["state"] == "reused"
    assert states["ingest"]["state"] != "reused"
    assert states["ingest"]["why"]
    assert read("run", "--dry-run") == list(states.values())
    chosen = {stage["stage"]: stage["state"] for stage in read("run", "--dry-run", "--until", "ingest", "--force")}
    assert chosen == {**dict.fromkeys(chosen, "not asked"), "suites": "would run", "ingest": "would run"}
    assert read("rerun", "latest", "--dry-run")[0]["state"] == "reused"  # type: ignore[index]
    again = {stage["stage"]: stage for stage in read("rerun", "latest", "--stage", "suites", "--force", "--dry-run")}
    assert (again["suites"]["state"], again["suites"]["why"]) == ("would run", "forced")
    assert read("rerun", "latest", "--dry-run", "--set", "seed=9")[0]["state"] == "stale"  # type: ignore[index]
    assert sorted(path for path in workspace.root.rglob("*") if path.is_file()) == before
    assert len(RunBook(workspace.runs_folder).ids()) == 1


def test_ctrl_c_says_how_to_go_on(workspace: Workspace) -> None:
    app = typer.Typer()
    opened: list[str] = []

    def stopped() -> None:
        """Open a run and be stopped."""
        opened.append(open_run(workspace, PipelineConfig()).run_id)
        raise KeyboardInterrupt

    def looking() -> None:
        """Be stopped without a run."""
        raise KeyboardInterrupt

    command(app, "look", example="millrace look", panel=RUN)(looking)
    command(app, "run", example="millrace run", panel=RUN)(stopped)
    done = CliRunner().invoke(app, ["look"])
    assert (done.exit_code, "same command again" in done.stderr) == (130, True)
    done = CliRunner().invoke(app, ["run"])
    assert (done.exit_code, f"millrace retry {opened[0]}" in done.stderr) == (130, True)


def test_too_small_a_disk_is_refused_before_any_work(workspace: Workspace) -> None:
    done = millrace("run", "--set", "ingest.sources.0.max_mb=1e12")
    assert done.exit_code == 5
    assert "GB are free" in done.stderr
    assert RunBook(workspace.runs_folder).ids() == []


def test_a_champion_that_lacks_something_is_shown_all_the_same(workspace: Workspace) -> None:
    (workspace.root / "champion.json").write_text('{"champion": {"train": "train/0123.0"}}')
    shown = millrace("champion")
    assert (shown.exit_code, "train/0123.0" in shown.stdout) == (0, True)


def test_what_cannot_supply_recorded_stages_is_refused_before_any_run(workspace: Workspace, record: RunRecord) -> None:
    for arguments in (["show", "latest", "--recorded"], ["run", "--dry-run", "--recorded", "latest"]):
        refused = millrace(*arguments)
        assert (refused.exit_code, "no finished calibrate" in refused.stderr) == (6, True)
    for more in ([], ["--dry-run"]):
        refused = millrace("run", "--recorded", "20200101-nobody", *more)
        assert (refused.exit_code, "no run '20200101-nobody'" in refused.stderr) == (6, True)
    assert RunBook(workspace.runs_folder).ids() == [record.run_id]
