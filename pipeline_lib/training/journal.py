"""The log of a training: append-only lines an attempt, published as two tables. Rows cut off by a resume stay, superseded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import EVENTS, STEPS


class Journal:
    """One attempt's lines: `{"begin": step}`, then `{"rows": […]}` and `{"event": {…}}`."""

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self.attempt = len(_attempts(folder)) + 1
        self.path = folder / f"attempt-{self.attempt:04d}.jsonl"
        self._append({"begin": step})

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Steps, with the columns of `STEPS` but attempt and superseded."""
        self._append({"rows": list(rows)})

    def event(self, time: str, step: int, kind: str, detail: Mapping[str, Any]) -> None:
        """Something that happened."""
        self._append({"event": {"time": time, "step": step, "kind": kind, "detail": json.dumps(detail, default=str)}})

    def _append(self, value: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(value) + "\n")


def steps_table(folder: Path) -> pa.Table:
    """All steps of all attempts, in order; a row is superseded when a later attempt began at or before it."""
    attempts = [list(_lines(path)) for path in _attempts(folder)]
    begins = [next((line["begin"] for line in lines if "begin" in line), 0) for lines in attempts]
    found = []
    for number, lines in enumerate(attempts):
        cut = min(begins[number + 1 :], default=None)
        for line in lines:
            for row in line.get("rows", []):
                superseded = cut is not None and row["step"] > cut
                found.append({**row, "attempt": number + 1, "superseded": superseded})
    return pa.Table.from_pylist(found, schema=STEPS)


def events_table(folder: Path) -> pa.Table:
    """All events of all attempts, in order."""
    found = [line["event"] for path in _attempts(folder) for line in _lines(path) if "event" in line]
    return pa.Table.from_pylist(found, schema=EVENTS)


def publish(folder: Path, steps: Path, events: Path) -> None:
    """Write both tables."""
    write_table(steps_table(folder), steps)
    write_table(events_table(folder), events)


def _attempts(folder: Path) -> list[Path]:
    return sorted(folder.glob("attempt-*.jsonl"))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that were written whole; a kill may have cut the last one."""
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
