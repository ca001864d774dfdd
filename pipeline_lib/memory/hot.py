"""The hot end of memory: a view on what a running job writes just now. Nothing is copied; every look reads the live log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline_lib.errors import NotFoundError
from pipeline_lib.workspace.runs import RunBook, RunRecord

Log = Callable[[RunRecord, str], pa.Table]  # (run, table of its training's log) → the table as it is now


@dataclass(frozen=True)
class Hot:
    """A running job.

    Args of `__init__`:
        record: of the run.
        log: see `Log` (`metrics.training_log` of the workspace).
        rows: how many of the latest are shown.
    """

    record: RunRecord
    log: Log
    rows: int = 200

    def steps(self) -> list[dict[str, Any]]:
        """The latest steps, oldest first; [] before the training begins."""
        return self._latest("steps")

    def events(self) -> list[dict[str, Any]]:
        """The latest events of the run and its training, oldest first."""
        return [*self.record.events, *self._latest("events")][-self.rows :]

    def _latest(self, name: str) -> list[dict[str, Any]]:
        try:
            table = self.log(self.record, name)
        except NotFoundError:
            return []
        return table.slice(max(len(table) - self.rows, 0)).to_pylist()  # type: ignore[no-any-return]


def running(book: RunBook, log: Log, *, rows: int = 200) -> list[Hot]:
    """The jobs that go on at this moment, oldest first."""
    return [Hot(record, log, rows) for record in book.all() if record.outcome == "running" and book.alive(record)]
