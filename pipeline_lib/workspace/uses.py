"""Which artifacts living processes work with.

Every process writes the keys it finds, makes or reads into one file of its own; it holds the lock until it ends, however it ends.
Keys are added, and read by garbage collection, only under the workspace's catalogue lock.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.lease import lease_if_free, lock_of


@dataclass
class _Mark:
    lock: FileLock  # held until the process ends
    path: Path
    keys: set[str]


_marks: dict[tuple[str, int], _Mark] = {}  # by folder and process: a forked child makes its own


def add_uses(folder: Path, keys: Iterable[str]) -> None:
    """Say that this process works with `keys` until it ends. The caller holds the catalogue lock."""
    mark = _marks.get((str(folder), os.getpid()))
    if mark is None or not mark.path.parent.exists():
        name = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        lock = lock_of(folder / f"{name}.lock")
        lock.acquire()
        mark = _marks[str(folder), os.getpid()] = _Mark(lock, folder / f"{name}.json", set())
    if new := set(keys) - mark.keys:
        mark.keys |= new
        write_json(mark.path, sorted(mark.keys))


def living_uses(folder: Path) -> set[str]:
    """Keys that living processes work with; what dead ones left is cleared. The caller holds the catalogue lock."""
    own = {mark.path for (_, pid), mark in _marks.items() if pid == os.getpid()}
    found: set[str] = set()
    for path in sorted(folder.glob("*.json")):
        if path not in own:
            with lease_if_free(path.with_suffix(".lock")) as dead:
                if dead:
                    path.unlink(missing_ok=True)
                    path.with_suffix(".lock").unlink(missing_ok=True)
                    continue
        found.update(read_json(path))
    return found
