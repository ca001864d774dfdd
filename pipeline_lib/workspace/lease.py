"""One owner at a time for work in progress: a lock of the operating system, gone when its process dies.

A forked child does not keep its parent's lease (filelock closes inherited descriptors), a started program neither (it inherits no
descriptors), so a lease ends with the process that took it, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline_lib.errors import BusyError

SAY_EVERY_SECONDS = 10.0
POLL_SECONDS = 0.02
GLANCE_SECONDS = 0.2  # garbage collection holds a lease for a moment to see whether it is free; that is not "busy"


def lock_of(path: Path) -> FileLock:
    """The lock of the operating system behind a lease; its file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, thread_local=False, poll_interval=POLL_SECONDS)


@contextlib.contextmanager
def lease(path: Path, *, wait: bool, log: Callable[[str], None]) -> Iterator[None]:
    """Own `path` while inside. The owner's process id is written beside for people; the lock itself is the system's.

    Raises:
        BusyError: somebody else owns it and `wait` is false.
    """
    lock = lock_of(path)
    owner = path.with_suffix(".owner")
    said = -SAY_EVERY_SECONDS
    while True:
        try:
            lock.acquire(timeout=1.0 if wait else GLANCE_SECONDS)
            break
        except Timeout:
            try:
                who = owner.read_text()
            except FileNotFoundError:
                who = "another process"
            if not wait:
                raise BusyError(f"{path.stem} is being made by {who}", fix="wait, or run without --no-wait") from None
            if time.monotonic() - said >= SAY_EVERY_SECONDS:
                said = time.monotonic()
                log(f"waiting: {path.stem} is being made by {who}")
    try:
        owner.write_text(f"process {os.getpid()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def lease_if_free(path: Path) -> Iterator[bool]:
    """Own `path` while inside if nobody else does; says whether it worked, waits for nothing."""
    lock = lock_of(path)
    try:
        lock.acquire(timeout=0.0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_free(path: Path) -> bool:
    """Whether nobody owns `path` at this moment."""
    if not path.exists():
        return True
    with lease_if_free(path) as free:
        return free
