"""Runs without any server to be seen: an embedded one, whose database stays in the workspace."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import yaml
from prefect.client.orchestration import get_client

from flows.environment import prefect_for
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.workspace import Workspace
from tests.servers import MILLRACE, REPOSITORY, environment, millrace, toy_config, wait_for


def states(workspace: Workspace, flow_run_id: str) -> tuple[str, dict[str, str]]:
    """What Prefect remembers of a run: its state's name, and those of its tasks."""
    with prefect_for(workspace), get_client(sync_client=True) as api:
        run = api.read_flow_run(flow_run_id)
        body = {"flow_runs": {"id": {"any_": [flow_run_id]}}}
        tasks = api.request("POST", "/task_runs/filter", json=body).json()
    assert run.state is not None
    return str(run.state.name), {task["name"]: task["state"]["name"] for task in tasks}


def test_a_killed_run_is_closed_and_reported_by_the_next(tmp_path: Path) -> None:
    home = tmp_path / "workspace"
    config = home / "toy.yaml"
    home.mkdir()
    config.write_text(yaml.safe_dump(toy_config(home / "source")))
    (home / "source" / "hang").touch()
    arguments = ["run", "--config", str(config), "--until", "ingest"]
    process = subprocess.Popen([*MILLRACE, *arguments], env=environment(home), cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    wait_for((home / "source" / "child").exists, seconds=60)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    server = [p for p in family if "uvicorn" in " ".join(p.cmdline())]
    assert len(server) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(server, timeout=15)[1] == []  # the embedded server dies with its run
    psutil.Process(int((home / "source" / "child").read_text())).kill()
    (home / "source" / "hang").unlink()

    millrace(*arguments, home=home)
    workspace = Workspace.open(home)
    dead, alive = RunBook(workspace.runs_folder).all()
    assert (dead.outcome, alive.outcome) == ("killed", "completed")
    assert Path(dead.report).exists()
    assert alive.stages["suites"].state == "reused"
    assert states(workspace, dead.prefect["flow_run_id"])[0] == "Crashed"
    name, tasks = states(workspace, alive.prefect["flow_run_id"])
    assert name == "Completed"
    assert tasks == {"suites": "Reused", "ingest": "Completed"}


def test_stopping_leaves_a_run_that_can_be_retried(tmp_path: Path) -> None:
    home = tmp_path / "workspace"
    config = home / "toy.yaml"
    home.mkdir()
    config.write_text(yaml.safe_dump(toy_config(home / "source")))
    (home / "source" / "hang").touch()
    arguments = [*MILLRACE, "run", "--config", str(config), "--until", "ingest"]
    process = subprocess.Popen(arguments, env=environment(home), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    wait_for((home / "source" / "child").exists, seconds=60)
    child = psutil.Process(int((home / "source" / "child").read_text()))
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "retry" in told
    assert psutil.wait_procs([child], timeout=5)[1] == []
    (home / "source" / "hang").unlink()

    (stopped,) = RunBook(home / "runs").all()
    assert stopped.outcome == "cancelled"
    millrace("retry", stopped.run_id, home=home)
    (record,) = RunBook(home / "runs").all()
    assert (record.outcome, len(record.attempts)) == ("completed", 2)
    assert list(record.stages) == ["suites", "ingest"]  # it goes on with what was asked of it at first
