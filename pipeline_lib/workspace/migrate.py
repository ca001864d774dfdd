"""Formats of the workspace: the previous one is migrated with a backup, a newer one is refused.

Format 1 kept `.seen.json` (time and inode of every checked file) inside the artifact's folder, which so changed after its commit;
run records knew a process by its id alone, and ids are reused; a pin was a field of the record, which a live run could overwrite.
Format 2 keeps `seen/<stage>/<artifact>.json` outside, so that a published folder never changes, notes when a process was born,
keeps a pin as a file beside the record, and gives every workspace an id.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline_lib.errors import ConfigError, DamagedError
from pipeline_lib.workspace.files import read_json, write_json

FORMAT = 2
WRITTEN_BY = {1: "0.0", 2: "0.1.0"}  # the first version of millrace that wrote a format


def migrate(root: Path) -> Path | None:
    """Bring a workspace to the current format; returns the backup's folder when something was done.

    Only small files change (`workspace.json`, run records, memories of checked files); they are copied to
    `backup/format-<n>-<time>/` first. A kill in between is harmless: the number changes last and every step can be repeated.

    Raises:
        ConfigError: a newer version wrote it.
        DamagedError: `workspace.json` cannot be read.
    """
    if _format(root) == FORMAT:
        return None
    with FileLock(root / ".migrate.lock"):
        if _format(root) == FORMAT:  # another process did it meanwhile
            return None
        backup = root / "backup" / f"format-1-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:4]}"
        memories = sorted(root.glob("artifacts/*/*/.seen.json"))
        for path in [root / "workspace.json", *sorted(root.glob("runs/*.json")), *memories]:
            target = backup / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
        for path in memories:
            with contextlib.suppress(ValueError):  # an unreadable memory is no loss: its files are digested again
                target = root / "seen" / path.parent.parent.name / f"{path.parent.name}.json"
                write_json(target, {"facts": read_json(path), "turn": 0})
            path.unlink()
        for path in sorted(root.glob("runs/*.json")):
            with contextlib.suppress(ValueError):  # an unreadable record stays as it is; verify reports it
                record = record_from_1(read_json(path))
                if record.get("pinned"):
                    path.with_suffix(".pinned").touch()
                write_json(path, record)
        write_json(root / "workspace.json", {"format": FORMAT, "id": uuid.uuid4().hex})
        return backup


def _format(root: Path) -> int:
    mark = root / "workspace.json"
    try:
        found = int(read_json(mark)["format"])
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"cannot be read ({error})", where=str(mark), fix=f'write {{"format": {FORMAT}}} into it') from error
    if found > FORMAT:
        raise ConfigError(
            f"this workspace has format {found}; this version of millrace knows formats up to {FORMAT}",
            where=str(mark),
            fix=f"install the version of millrace that wrote it (newer than {WRITTEN_BY[FORMAT]})",
        )
    if found < 1:
        raise DamagedError(f"{found} is not a format", where=str(mark), fix="restore the file from a backup")
    return found


def record_from_1(value: dict[str, Any]) -> dict[str, Any]:
    """A run record of format 1 as one of format 2."""
    attempts = [{**attempt, "born": attempt.get("born", 0.0)} for attempt in value.get("attempts", [])]
    return {**value, "attempts": attempts, "window_from": value.get("started", ""), "format": FORMAT}
