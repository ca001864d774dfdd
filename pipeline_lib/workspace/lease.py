"""One owner at a time for work in progress: a lock of the operating system, gone when its process dies."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline_lib.errors import BusyError

SAY_EVERY_SECONDS = 10.0


@contextlib.contextmanager
def lease(path: Path, *, wait: bool, log: Callable[[str], None]) -> Iterator[None]:
    """Own `path` while inside. The owner's process id is written beside for people; the lock itself is the system's.

    Raises:
        BusyError: somebody else owns it and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    owner = path.with_suffix(".owner")
    said = 0.0
    while True:
        try:
            lock.acquire(timeout=1.0 if wait else 0.0)
            break
        except Timeout:
            who = owner.read_text() if owner.exists() else "another process"
            if not wait:
                raise BusyError(f"{path.stem} is being made by {who}", fix="wait, or run without --no-wait") from None
            if time.monotonic() - said > SAY_EVERY_SECONDS:
                said = time.monotonic()
                log(f"waiting: {path.stem} is being made by {who}")
    try:
        owner.write_text(f"process {os.getpid()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
