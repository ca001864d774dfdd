"""The launcher's eye on its ranks, with real processes that die, fall silent, speak, or lose their parent."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from pipeline_lib.errors import RefusedError
from pipeline_lib.training import launch
from pipeline_lib.training.rank import LAUNCHER, STOP, said_by, take_from_mpi
from pipeline_lib.workspace.services import Services
from tests.servers import wait_for

DONE = """echo '{"say": "done"}' >> $said"""


@contextmanager
def ranks(tmp_path: Path, *scripts: str) -> Iterator[list[launch._Child]]:
    """Processes in the place of ranks; `$said` is where one speaks."""
    started = []
    for number, script in enumerate(scripts):
        path = tmp_path / f"rank-{number}.log"
        with path.open("wb") as log:
            command, env = ["/bin/sh", "-c", script], {**os.environ, "said": str(said_by(tmp_path, number))}
            process = subprocess.Popen(command, env=env, stderr=log, start_new_session=True)
            started.append(launch._Child(f"rank {number}", process, path))
    try:
        yield started
    finally:
        for child in started:
            launch._end(child.process)


def lives(process: psutil.Process) -> bool:
    """Whether it does something still; one that waits for its parent to notice does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def listener(**services: Any) -> Any:
    """What a launcher uses of a stage's run."""
    events: list[tuple[str, dict[str, Any]]] = []
    return SimpleNamespace(
        services=Services(**services), events=events, event=lambda kind, **detail: events.append((kind, detail))
    )


def test_a_rank_that_dies_and_one_that_is_silent_end_the_launch(tmp_path: Path) -> None:
    with ranks(tmp_path, "sleep 60", "echo the reason >&2; kill -9 $$") as started:
        death = launch._watch(listener(), started, 2, 60, tmp_path)
    assert death == launch._Death("rank 1", "was ended by SIGKILL", "the reason")
    alive = 'while true; do echo \'{"say": "alive"}\' >> $said; sleep 0.1; done'
    with ranks(tmp_path, alive, "sleep 60 & wait") as started:
        death = launch._watch(listener(), started, 2, 1.0, tmp_path)
        family = psutil.Process(started[1].process.pid).children()
    assert death == launch._Death("rank 1", "gave no sign of life for 1 s", "")
    assert family
    assert wait_for(lambda: not any(lives(child) for child in family))  # on a busy machine a process takes its time to die


def test_of_several_that_ended_the_killed_one_is_told(tmp_path: Path) -> None:
    with ranks(tmp_path, "exit 1", "kill -9 $$") as started:
        for child in started:
            child.process.wait()
        death = launch._watch(listener(), started, 2, 60, tmp_path)
    assert death == launch._Death("rank 1", "was ended by SIGKILL", "")


def test_a_rank_that_leaves_without_a_word_has_not_done_its_work(tmp_path: Path) -> None:
    with ranks(tmp_path, f"{DONE}; exit 0", "exit 0") as started:
        death = launch._watch(listener(), started, 2, 60, tmp_path)
    assert death == launch._Death("rank 1", "ended before its work was done", "")


def test_what_a_dead_rank_had_started_is_ended_too(tmp_path: Path) -> None:
    """Its children are nobody's by then: only their group tells whose they were."""
    with ranks(tmp_path, f"sleep 60 & echo $! > {tmp_path / 'child'}; kill -9 $$") as started:
        started[0].process.wait()
        child = psutil.Process(int((tmp_path / "child").read_text()))
        assert lives(child)
    assert gone(child)


def test_what_a_rank_says_reaches_the_run(tmp_path: Path) -> None:
    run = listener()
    event = json.dumps({"say": "event", "kind": "resumed", "detail": {"step": 3}})
    with ranks(tmp_path, f"echo '{event}' >> $said; {DONE}") as started:
        assert launch._watch(run, started, 1, 60, tmp_path) is None
    assert run.events == [("resumed", {"step": 3})]
    said_by(tmp_path, 0).unlink()
    failed = json.dumps({"say": "failed", "kind": "RefusedError", "what": "no room", "where": "disk", "fix": "make some"})
    with ranks(tmp_path, f"echo '{failed}' >> $said; exit 5") as started, pytest.raises(RefusedError, match="no room"):
        launch._watch(run, started, 1, 60, tmp_path)


def test_a_stop_is_asked_for_in_a_file(tmp_path: Path) -> None:
    """It reaches ranks on other machines, too."""
    leaves = f"while [ ! -e {tmp_path / STOP} ]; do sleep 0.05; done; {DONE}"
    with ranks(tmp_path, leaves) as started:
        assert launch._watch(listener(should_stop=lambda: True), started, 1, 60, tmp_path) is None


def test_a_rank_ends_with_its_parent_and_with_its_launch(tmp_path: Path) -> None:
    """Also when the parent is killed, or the launcher of ranks that somebody else started: nothing would be there to end them."""
    (tmp_path / LAUNCHER).write_text("0")
    rank = (
        "import os, sys, time; from pathlib import Path; from pipeline_lib.training.rank import follow; "
        "follow(Path(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}, sys.argv[1]])"
    families = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for script in (parent, rank)
    ]
    orphan, alone = (psutil.Process(int(family.stdout.readline())) for family in families if family.stdout)
    families[0].kill()
    assert families[0].wait()
    assert gone(orphan)
    assert lives(alone)
    (tmp_path / LAUNCHER).unlink()
    assert gone(alone)
    families[1].wait()


def test_a_process_that_nobody_gave_a_rank_says_so(tmp_path: Path) -> None:
    """As `accelerate launch --cpu --num_processes 2` starts it: alone."""
    bare = {name: value for name, value in os.environ.items() if not name.endswith(("RANK", "WORLD_SIZE"))}
    command = [sys.executable, "-m", "pipeline_lib.training.rank", str(tmp_path)]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "torchrun starts as many as it is told" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_mpirun_tells_stands_where_torchrun_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And only there: accelerate would make a world of its own of it."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not take_from_mpi()
    for name, value in {"RANK": "3", "SIZE": "8", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    monkeypatch.setenv("PMI_RANK", "3")
    assert take_from_mpi()
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["3", "8", "1"]
    assert not [name for name in os.environ if name.startswith(("OMPI_COMM", "PMI_"))]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        del os.environ[name]  # other tests are in no world


def gone(process: psutil.Process) -> bool:
    """Whether it ends within ten seconds."""
    end = time.monotonic() + 10
    while lives(process) and time.monotonic() < end:
        time.sleep(0.05)
    return not lives(process)
