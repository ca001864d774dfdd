"""The log of a training: append-only lines an attempt, published as tables. Rows cut off by a resume stay, superseded.

A line is `{"begin": step}`, or `{"table": name, "rows": […]}` of one of `TABLES`. Every row has its step; `attempt` and
`superseded` are added when the log is read, which may be while it is being written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import EVENTS, LAYERS, LOSSES, SAMPLES, STEPS, WORST

TABLES = {"steps": STEPS, "events": EVENTS, "losses": LOSSES, "layers": LAYERS, "samples": SAMPLES, "worst": WORST}
FLUSH_SECONDS = 1.0  # a kill costs rows of the last second, which the next attempt makes again


class Journal:
    """One attempt's lines."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / f"attempt-{len(_attempts(folder)) + 1:04d}.jsonl"
        self._lines: list[str] = []
        self._written = 0.0
        self._append({"begin": step})

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of `steps`."""
        self.add("steps", rows)

    def add(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of a table, with the columns of its schema but attempt and superseded; ids in hexadecimal digits."""
        self._append({"table": table, "rows": list(rows)})

    def event(self, time: str, step: int, kind: str, detail: Mapping[str, Any]) -> None:
        """Something that happened; on disk when this returns."""
        self.add("events", [{"time": time, "step": step, "kind": kind, "detail": json.dumps(detail, default=str)}])
        self.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *problem: object) -> None:
        self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        lines, self._lines = self._lines, []
        self._written = time.monotonic()
        if lines:
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write("".join(lines))

    def _append(self, value: Mapping[str, Any]) -> None:
        self._lines.append(json.dumps(value) + "\n")
        if time.monotonic() - self._written >= FLUSH_SECONDS:
            self.flush()


def read(folder: Path, table: str) -> pa.Table:
    """A table over all attempts, in order; a row is superseded when a later attempt began before its step."""
    schema = TABLES[table]
    binary = [field.name for field in schema if pa.types.is_binary(field.type) or pa.types.is_fixed_size_binary(field.type)]
    attempts = [list(_lines(path)) for path in _attempts(folder)]
    begins = [next((line["begin"] for line in lines if "begin" in line), 0) for lines in attempts]
    found = []
    for number, lines in enumerate(attempts):
        cut = min(begins[number + 1 :], default=None)
        for line in lines:
            for row in line["rows"] if line.get("table") == table else ():
                told = {**row, "attempt": number + 1, "superseded": cut is not None and row["step"] > cut}
                found.append({**told, **{name: bytes.fromhex(row[name]) for name in binary}})
    return pa.Table.from_pylist(found, schema=schema)


def publish(folder: Path, place: Callable[[str], Path]) -> None:
    """Write every table where `place(file name)` says."""
    for name in TABLES:
        write_table(read(folder, name), place(f"{name}.parquet"))


def _attempts(folder: Path) -> list[Path]:
    return sorted(folder.glob("attempt-*.jsonl"))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines that were written whole; a kill may have cut the last one."""
    for line in path.read_text("utf-8", "replace").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
