"""Small file habits used everywhere: write beside, sync, rename."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any


def sync_file(path: Path) -> None:
    """Ask the system to put a file's bytes on disk."""
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Ask the system to put a folder's entries on disk (a no-op where folders cannot be opened)."""
    with contextlib.suppress(PermissionError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a small file so that readers see the old or the new bytes, never a part; a full disk keeps none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with beside.open("wb") as handle:
            handle.write(data.encode() if isinstance(data, str) else data)
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file (UTF-8)."""
    return json.loads(path.read_text("utf-8"))


def remove_tree(folder: Path) -> None:
    """Remove a folder; one that vanishes meanwhile is fine. Renamed first: a kill leaves no half folder under its name."""
    if not folder.exists():
        return
    doomed = folder.with_name(f".doomed-{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a finished file; a copy where the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def inside(root: Path, path: Path) -> bool:
    """Whether `path`, with links followed, lies in `root`."""
    return path.resolve().is_relative_to(root.resolve())
