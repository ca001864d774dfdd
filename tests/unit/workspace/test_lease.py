import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline_lib.errors import BusyError
from pipeline_lib.workspace.lease import is_free, lease, lease_if_free
from pipeline_lib.workspace.process import born, host, is_alive
from pipeline_lib.workspace.workspace import Workspace

HOLD = "import sys, time; from pipeline_lib.workspace.lease import lease\nfrom pathlib import Path\n"
HOLD += "with lease(Path(sys.argv[1]), wait=True, log=print):\n    print('held', flush=True); time.sleep(60)\n"
ROOT = Path(__file__).parents[3]


@pytest.fixture
def holder(tmp_path):
    path = tmp_path / "a.lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout.readline() == "held\n"
    yield path, process
    process.kill()
    process.wait()
    process.stdout.close()


def test_without_waiting_the_owner_is_named(holder):
    path, process = holder
    with pytest.raises(BusyError, match=f"process {process.pid}") as caught, lease(path, wait=False, log=print):
        pass
    assert caught.value.exit_code == 3
    assert not is_free(path)


def test_a_lease_dies_with_its_process(holder):
    path, process = holder
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with lease(path, wait=False, log=print):
        assert not is_free(path)
    assert is_free(path)


def test_a_waiter_says_so_and_gets_it(holder):
    path, process = holder
    said = []

    def log(line):
        said.append(line)
        process.kill()

    begin = time.monotonic()
    with lease(path, wait=True, log=log):
        pass
    assert f"process {process.pid}" in said[0]
    assert time.monotonic() - begin < 10


def _sleep():
    time.sleep(30)


def test_a_forked_child_does_not_keep_it(tmp_path):
    path = tmp_path / "a.lock"
    with lease(path, wait=True, log=print):
        child = multiprocessing.get_context("fork").Process(target=_sleep)
        child.start()
    try:
        with lease_if_free(path) as free:
            assert free
        assert child.is_alive()
    finally:
        child.kill()
        child.join()


def test_a_process_is_known_by_its_start():
    assert is_alive(os.getpid(), born(), host())
    assert not is_alive(os.getpid(), born() - 100, host())  # the id was reused
    assert is_alive(1, 0.0, "another-machine")
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    started = born(child.pid)
    child.wait()
    assert not is_alive(child.pid, started, host())


def test_uses_end_with_their_process(tmp_path):
    workspace = Workspace.open(tmp_path)
    key = "words/" + "0" * 32 + ".0"
    code = f"import sys, time; from pipeline_lib.workspace.workspace import Workspace\nWorkspace.open(sys.argv[1]).use({key!r})\n"
    code += "print('used', flush=True); time.sleep(60)\n"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout.readline() == "used\n"
        with workspace.catalogue():
            assert workspace.in_use() == {key}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with workspace.catalogue():
        assert workspace.in_use() == set()
