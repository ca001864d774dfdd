"""Progress of a stage, as log lines and a progress bar in Prefect, both slow enough to stay readable."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import copy_context
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from pipeline_lib.secrets import told
from pipeline_lib.workspace.services import Progress

LINE_SECONDS = 10.0
BAR_SECONDS = 5.0


class Announcer:
    """Passes progress on: every line of it to `listener` (a terminal), a line every ten seconds to the log, a bar to Prefect."""

    def __init__(self, log: Callable[[str], None], listener: Callable[[Progress], None]) -> None:
        self.log, self.listener = log, listener
        self.lined = self.barred = time.monotonic()
        self.bar: UUID | None = None
        self.context = copy_context()  # of the task run: progress is told from worker threads, too

    def __call__(self, progress: Progress) -> None:
        """One step of progress."""
        self.listener(progress)
        now = time.monotonic()
        if now - self.lined >= LINE_SECONDS:
            self.lined = now
            self.log(progress.line())
        if now - self.barred >= BAR_SECONDS and progress.total > 0:
            self.barred = now
            self._show(min(100.0, 100.0 * progress.done / progress.total), progress.stage)

    def finish(self) -> None:
        """The stage is done."""
        if self.bar is not None:
            self._show(100.0, "")

    def _show(self, percent: float, stage: str) -> None:
        self.context.copy().run(self._draw, percent, stage)

    def _draw(self, percent: float, stage: str) -> None:
        try:
            if self.bar is None:
                made = create_progress_artifact(percent, key=f"millrace-{stage.replace('_', '-')}-progress", description=stage)
                self.bar = made if isinstance(made, UUID) else None
            else:
                update_progress_artifact(self.bar, progress=percent)
        except Exception as error:  # a bar that cannot be drawn must not stop the work
            self.log(f"the progress bar could not be drawn: {told(error)}")
            self.barred = float("inf")
