"""The launcher's eye on its ranks, with real processes that die, fall silent, speak, or lose their parent."""

import json
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
from pipeline_lib.workspace.services import Services


@contextmanager
def ranks(tmp_path: Path, *scripts: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes in the place of ranks."""
    started = []
    for number, script in enumerate(scripts):
        with (tmp_path / f"rank-{number}.log").open("wb") as log:
            command = ["/bin/sh", "-c", script]
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, start_new_session=True))
    try:
        yield started
    finally:
        for process in started:
            launch._end(process)


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
        death = launch._watch(listener(), started, 60, tmp_path)
    assert (death.rank, death.how, death.log) == (1, "was ended by SIGKILL", "the reason")
    silent = 'while true; do echo \'{"say": "alive"}\'; sleep 0.1; done'
    with ranks(tmp_path, silent, "sleep 60 & wait") as started:
        death = launch._watch(listener(), started, 1.0, tmp_path)
        family = psutil.Process(started[1].pid).children()
    assert (death.rank, death.how) == (1, "gave no sign of life for 1 s")
    assert family
    assert not any(lives(child) for child in family)


def test_what_a_dead_rank_had_started_is_ended_too(tmp_path: Path) -> None:
    """Its children are nobody's by then: only their group tells whose they were."""
    with ranks(tmp_path, f"sleep 60 & echo $! > {tmp_path / 'child'}; kill -9 $$") as started:
        started[0].wait()
        child = psutil.Process(int((tmp_path / "child").read_text()))
        assert lives(child)
    end = time.monotonic() + 10
    while lives(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not lives(child)


def test_what_a_rank_says_reaches_the_run(tmp_path: Path) -> None:
    lines: list[str] = []
    run = listener(log=lines.append)
    event = json.dumps({"say": "event", "kind": "resumed", "detail": {"step": 3}})
    with ranks(tmp_path, f"echo '{event}'; echo hello") as started:
        assert launch._watch(run, started, 60, tmp_path) is None
    assert (run.events, lines) == ([("resumed", {"step": 3})], ["hello"])
    failed = json.dumps({"say": "failed", "kind": "RefusedError", "what": "no room", "where": "disk", "fix": "make some"})
    with ranks(tmp_path, f"echo '{failed}'; exit 5") as started, pytest.raises(RefusedError, match="no room"):
        launch._watch(run, started, 60, tmp_path)


def test_a_rank_ends_with_its_parent(tmp_path: Path) -> None:
    """Also when the parent is killed: nothing would be there to end it."""
    rank = (
        "import os, time; from pipeline_lib.training.rank import _follow; _follow(os.getppid()); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    child = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while lives(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not lives(child)
