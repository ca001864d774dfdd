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


def test_stopped_then_retried_then_killed_then_run_again(tmp_path: Path) -> None:
    home = tmp_path / "workspace"
    config, source = home / "toy.yaml", home / "source"
    home.mkdir()
    config.write_text(yaml.safe_dump(toy_config(source)))
    (source / "hang").touch()
    run = ["run", "--config", str(config), "--until", "ingest"]

    def start(*arguments: str) -> tuple[subprocess.Popen[bytes], psutil.Process]:
        """Start and wait until the source hangs in a child process."""
        (source / "child").unlink(missing_ok=True)
        command = [*MILLRACE, *arguments]
        with (tmp_path / "told").open("wb") as told:  # no pipe: a child that outlives a kill would hold it open
            process = subprocess.Popen(command, env=environment(home), cwd=REPOSITORY, stderr=told)
        wait_for((source / "child").exists, seconds=180)
        return process, psutil.Process(int((source / "child").read_text()))

    process, child = start(*run)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert "retry" in (tmp_path / "told").read_text()
    assert psutil.wait_procs([child], timeout=5)[1] == []
    (stopped,) = RunBook(home / "runs").all()
    assert stopped.outcome == "cancelled"

    process, child = start("retry", stopped.run_id)
    server = [p for p in psutil.Process(process.pid).children() if "uvicorn" in " ".join(p.cmdline())]
    assert len(server) == 1
    process.kill()
    process.wait()
    assert psutil.wait_procs(server, timeout=15)[1] == []  # the embedded server dies with its run
    child.kill()
    (source / "hang").unlink()

    millrace(*run, home=home)
    workspace = Workspace.open(home)
    dead, alive = RunBook(workspace.runs_folder).all()
    assert (dead.run_id, dead.outcome, [a.state for a in dead.attempts]) == (stopped.run_id, "killed", ["cancelled", "killed"])
    assert list(dead.stages) == ["suites", "ingest"]  # the retry went on with what was asked at first
    assert Path(dead.report).exists()
    assert {name: stage.state for name, stage in alive.stages.items()} == {"suites": "reused", "ingest": "made"}
    assert states(workspace, dead.prefect["flow_run_id"])[0] == "Crashed"
    assert states(workspace, alive.prefect["flow_run_id"]) == ("Completed", {"suites": "Reused", "ingest": "Completed"})
