"""The hot end of memory: a view on what a running job writes just now. Nothing is copied; every look reads the live log."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.errors import NotFoundError
from pipeline_lib.workspace.runs import RunRecord

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
        """The latest events of the run and its training: time, kind, detail; of the training, step, too. Oldest first."""
        training = [{**row, "detail": json.loads(row["detail"])} for row in self._latest("events")]
        return sorted([*self.record.events, *training], key=lambda event: str(event["time"]))[-self.rows :]

    def last(self, kind: str) -> dict[str, Any]:
        """The detail of the latest event of a kind in the training; {} where there was none."""
        table = self._table("events")
        found = table.filter(pc.equal(table["kind"], kind)) if table else None
        return dict(json.loads(found["detail"][-1].as_py())) if found else {}

    def _latest(self, name: str) -> list[dict[str, Any]]:
        table = self._table(name)
        return table.slice(max(len(table) - self.rows, 0)).to_pylist() if table else []

    def _table(self, name: str) -> pa.Table | None:
        try:
            return self.log(self.record, name)
        except NotFoundError:
            return None
