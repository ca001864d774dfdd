"""How far a run is, while it runs: in a terminal a line that stays in place below what is finished, elsewhere plain lines."""

from __future__ import annotations

import atexit
import threading
import time
from typing import TYPE_CHECKING, Any

from flows.cli import show
from pipeline_lib.terminal import clean

if TYPE_CHECKING:
    from flows.listener import Listener
    from pipeline_lib.workspace.runs import RunRecord
    from pipeline_lib.workspace.services import Progress

EVERY_SECONDS = 5.0  # between plain lines of a stage
FRAMES_PER_SECOND = 4


class ProgressLines:
    """Prints a run's progress: a line for every finished stage, and what a long one is doing."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.live = LiveLine() if show.in_terminal() else None

    def listener(self) -> Listener:
        """What `flows.launch` tells."""
        from flows.listener import Listener

        return Listener(opened=self._opened, progress=self._progress)

    def _opened(self, record: RunRecord) -> None:
        show.say(f"run {record.run_id}")

    def _progress(self, progress: Progress) -> None:
        if progress.unit == "stage":  # the stage is finished
            if self.live:
                self.live.stop(progress.stage)
            show.say(f"  {progress.stage}: {progress.note}")
        elif self.live:
            self.live.update(progress)
        else:
            now = time.monotonic()
            if now - self.last.setdefault(progress.stage, now) >= EVERY_SECONDS:
                self.last[progress.stage] = now
                show.say(f"  {progress.stage}: {progress.line()}")


class LiveLine:
    """A bar and the latest line of the stage that is working, redrawn in place; what others print goes above it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # stages tell from worker threads
        self.stage = ""
        self.drawn: Any = None
        self.task: Any = None
        atexit.register(self._close)  # a run that fails leaves no hidden cursor

    def update(self, progress: Progress) -> None:
        """Show a stage's progress."""
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        with self.lock:
            if self.drawn is None or self.stage != progress.stage:
                self._close()
                self.stage = progress.stage
                words = (TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("stage", "line"))
                left, right = words
                self.drawn = Bar(
                    left, BarColumn(24), right, console=Console(highlight=False), transient=True,
                    refresh_per_second=FRAMES_PER_SECOND,
                )  # fmt: skip
                self.task = self.drawn.add_task("", total=None, stage=progress.stage, line="")
                self.drawn.start()
            line = clean(progress.line())
            self.drawn.update(self.task, completed=progress.done, total=progress.total or None, line=line)

    def stop(self, stage: str) -> None:
        """The stage is finished: its line goes."""
        with self.lock:
            if stage == self.stage:
                self._close()

    def _close(self) -> None:
        if self.drawn is not None:
            self.drawn.stop()
            self.drawn = None
