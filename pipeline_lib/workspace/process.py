"""Who a process is, so that a later one can tell whether it still lives: process ids are reused, start times are not."""

from __future__ import annotations

import os
import socket
from functools import cache

import psutil

SAME_SECONDS = 1.0  # psutil derives the start from jiffies and boot time; two readings may differ a little


@cache
def host() -> str:
    """This machine's name."""
    return socket.gethostname()


def born(pid: int | None = None) -> float:
    """When a process started, in seconds since the epoch; 0.0 when there is none."""
    try:
        return float(psutil.Process(pid or os.getpid()).create_time())
    except psutil.Error:
        return 0.0


def is_alive(pid: int, started: float, where: str) -> bool:
    """Whether the process with this id and start lives. Of another machine nothing can be known: it is believed to live
    (a run is therefore known by its lock, see `runs.RunBook.alive`).

    Args:
        pid: process id.
        started: its start (`born`); 0.0 when it was not recorded, then the id alone decides.
        where: the machine it ran on (`host`).
    """
    if where != host():
        return True
    found = born(pid)
    if not found:
        return False
    try:
        zombie = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
    return not zombie and (not started or abs(found - started) < SAME_SECONDS)
