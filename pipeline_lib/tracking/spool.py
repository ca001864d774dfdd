"""The spool: every tracking operation of a run as a line in a local file, so that MLflow being down never loses anything.

One file a pipeline run (`spool/<run_id>.jsonl`), appended to by the run and its courier, delivered by whoever holds its lock,
with the delivered length beside it. Delivering a line twice (killed between sending and noting) is harmless: metrics are keyed by
name, step, time and value, everything else is "set".
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline_lib.workspace.files import write_atomic


class Spool:
    """Append operations and read those not yet delivered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mark = path.with_suffix(".delivered")
        self.lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, operation: str, run: str, **values: Any) -> None:
        """Add one line; flushed to the system, so a killed process loses nothing it has said."""
        line = json.dumps({"op": operation, "run": run, "time": int(time.time() * 1000), **values}) + "\n"
        with self.lock, self.path.open("ab", buffering=0) as handle:
            handle.write(line.encode())  # in one write: the courier, another process, appends too

    def delivered(self) -> int:
        """Bytes that were delivered."""
        try:
            return int(self.mark.read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def pending(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """(end offset, operation) of the complete lines not yet delivered. A killed process's torn last line is passed over."""
        if not self.path.exists():
            return
        with self.path.open("rb") as handle:
            offset = self.delivered()
            handle.seek(offset)
            for line in handle:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                try:
                    yield offset, json.loads(line)
                except ValueError:
                    continue

    def note(self, offset: int) -> None:
        """Everything up to this offset is delivered."""
        write_atomic(self.mark, str(offset))

    def done(self) -> bool:
        """Nothing is left to deliver."""
        return next(self.pending(), None) is None

    def all(self) -> list[dict[str, Any]]:
        """Every operation, delivered or not."""
        found = []
        for line in self.path.read_text("utf-8", "replace").splitlines() if self.path.exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found
