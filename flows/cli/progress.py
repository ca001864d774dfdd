"""How far a run is, while it runs: a line for every finished stage, and one every few seconds while a long one works."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flows.cli import show

if TYPE_CHECKING:
    from flows.listener import Listener
    from pipeline_lib.workspace.runs import RunRecord
    from pipeline_lib.workspace.services import Progress

EVERY_SECONDS = 5.0


class ProgressLines:
    """Prints a run's progress as plain lines, so that logs and progress do not tear each other."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def listener(self) -> Listener:
        """What `flows.launch` tells."""
        from flows.listener import Listener

        return Listener(opened=self._opened, progress=self._progress)

    def _opened(self, record: RunRecord) -> None:
        show.say(f"run {record.run_id}")

    def _progress(self, progress: Progress) -> None:
        if progress.unit == "stage":  # the stage is finished
            show.say(f"  {progress.stage}: {progress.note}")
            return
        now = time.monotonic()
        if now - self.last.setdefault(progress.stage, now) < EVERY_SECONDS:
            return
        self.last[progress.stage] = now
        of = f" of {progress.total:,.6g}" if progress.total else ""
        note = f" · {progress.note}" if progress.note else ""
        show.say(f"  {progress.stage}: {progress.done:,.6g}{of} {progress.unit}{note}")
