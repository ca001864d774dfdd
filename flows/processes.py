"""Child processes: started from fixed argument lists, gone when their parent is, stopped with everything they started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from pipeline_lib.errors import ServiceError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")  # of Python, one of each a process


def free_port(preferred: int = 0, *, host: str = "127.0.0.1") -> int:
    """The preferred port where it is free, else any free one (0: any)."""
    for port in (preferred, 0):
        with contextlib.closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: TIME_WAIT is free
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServiceError(f"no free port on {host}", fix="is the address one of this machine?")


def start(
    arguments: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own (a Ctrl-C reaches only its parent, which then stops it in order).

    On Linux the kernel ends it when the parent dies, even by SIGKILL; elsewhere the next `millrace up` does.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            list(arguments),
            env={**os.environ, **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - one system call, no locks
        )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def stop(pids: Collection[int], *, seconds: float = 10.0) -> None:
    """End processes and everything they started: asked first, killed after `seconds`."""
    roots = [process for pid in pids if (process := _process(pid))]
    family = {p for root in roots for p in [root, *_children(root)]}
    for process in roots:  # an orderly parent ends its own children
        with contextlib.suppress(psutil.Error):
            process.terminate()
    alive = _wait(family, seconds)
    for process in {p for left in alive for p in [left, *_children(left)]}:
        with contextlib.suppress(psutil.Error):
            process.kill()
    _wait(alive, 5.0)


def _wait(processes: Collection[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that live on after `seconds`. What has ended and waits for its parent to notice (a zombie) does not live."""
    end, alive = time.monotonic() + seconds, list(processes)
    while True:
        _, alive = psutil.wait_procs(alive, timeout=0)  # collects children of ours
        alive = [process for process in alive if not _is_zombie(process)]
        if not alive or time.monotonic() > end:
            return alive
        time.sleep(0.05)


def _is_zombie(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


def _process(pid: int) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid)
    return None


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return process.children(recursive=True)
    return []


@contextlib.contextmanager
def no_children_left() -> Iterator[None]:
    """What was started inside and still runs at the end is ended (ranks, trials, pools), however the block is left.

    Python's own helpers stay: they end with this process, do not listen to SIGTERM, and are needed again by the next search.
    """
    before = {child.pid for child in _children(psutil.Process())}
    try:
        yield
    finally:
        if left := [child.pid for child in psutil.Process().children() if child.pid not in before and not _is_helper(child)]:
            stop(left)


def _is_helper(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(name in word for word in process.cmdline() for name in HELPERS)
    return False


def answers(url: str, *, seconds: float = 2.0) -> bool:
    """Whether something healthy answers at an http(s) URL."""
    if not url.startswith(("http://", "https://")):
        return False
    try:
        with urllib.request.urlopen(url, timeout=seconds) as reply:  # noqa: S310 - the scheme is checked above
            return bool(reply.status == 200)
    except (OSError, ValueError):
        return False


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], *, log: Path, seconds: float = 180.0) -> None:
    """Wait for a server's health page: long, because on a busy machine one that is alive took more than a minute.

    Raises:
        ServiceError: it ended, or did not answer in time; the end of its log is told.
    """
    end = time.monotonic() + seconds
    while not answers(url):
        if process.poll() is not None or time.monotonic() > end:
            said = log.read_text(errors="replace").strip()[-800:] if log.exists() else ""
            end_of_log = f"…{said}" if said else "it wrote nothing; is the machine very busy?"
            how = f"ended with code {process.returncode}" if process.returncode is not None else f"silent for {seconds:.0f} s"
            raise ServiceError(f"the server for {url} did not start ({how}): {end_of_log}", fix=f"the whole log is {log}")
        time.sleep(0.05)
