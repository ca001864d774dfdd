"""The memory of past runs: one small file a run (warm), Parquet by month (cold), seen as one table.

```
warm/<run_id>.json             written when a run ends, atomically; never changed (a run that goes on later writes it anew)
cold/<month>.<digest>.parquet  where old ones move; never changed either
aside/                         what could not be read, with the reason in its name
```
No lock guards reading or writing. Every step leaves files that hold the whole truth: a row that is in several files counts once
(the one that ended last, warm before cold), and a file is removed only after another one with its rows is committed. So a kill
anywhere costs nothing, and two processes that move the same runs write the same rows twice, which the view does not show.
"""

from __future__ import annotations

import contextlib
import math
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.errors import ConfigError, DamagedError, MillraceError, NotFoundError
from pipeline_lib.memory.frame import Features, TableFrame
from pipeline_lib.memory.recall import Guess, Neighbour, guess_in, nearest_in
from pipeline_lib.memory.record import SCHEMA, Remembered, from_row
from pipeline_lib.memory.text import Goals
from pipeline_lib.secrets import told
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.files import read_json, sync_file, sync_folder, write_json
from pipeline_lib.workspace.lease import lease_if_free

MOVED_AT_ONCE = 512  # runs that one call of `tidy` moves at most: a fraction of a second
SECONDS_A_DAY = 86400.0
PARTS_OF_A_MONTH = 8  # more files of one month are put together
NOTHING_YET = (
    "nothing is remembered yet: every run that ends from now on leaves its data, model, hardware, settings, speed, memory, "
    "losses, scores and failures here"
)


@dataclass(frozen=True)
class Config:
    """Where the memory lies, and how much of it is kept.

    Args of `__init__`:
        storage_path: its folder.
        hot_memory_size: latest steps and events of a running job that are shown.
        warm_memory_size: runs that stay single files.
        cold_memory_size: runs that are kept in Parquet beyond these; the oldest go.
        warm_days: an older run moves to cold whatever the number.
        embedding_model: folder of a sentence-embedding model; empty: hashed n-grams.
    """

    storage_path: Path | str
    hot_memory_size: int = 200
    warm_memory_size: int = 1000
    cold_memory_size: int = 100_000
    warm_days: float = 180.0
    embedding_model: str = ""

    def __post_init__(self) -> None:
        for name in ("hot_memory_size", "warm_memory_size", "cold_memory_size", "warm_days"):
            if not isinstance(value := getattr(self, name), int | float) or not 1 <= value < math.inf:
                raise ConfigError(f"{name} = {value!r} keeps nothing", where="memory", fix="a number from 1")


class MemoryStore:
    """See the module. Cheap to make; what was read stays in the process while its files are the same."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = Path(config.storage_path).expanduser().absolute()
        self.warm, self.cold, self.aside = self.root / "warm", self.root / "cold", self.root / "aside"
        self._rows: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}  # by name of a warm file: its time and size, its row
        self._parts: dict[Path, pa.Table] = {}
        self._cold_rows: tuple[list[Path], pa.Table] = ([], SCHEMA.empty_table())  # files, their rows
        self._warm_rows: tuple[dict[str, tuple[int, int]], pa.Table] = ({}, SCHEMA.empty_table())  # files, their rows
        self._view: tuple[object, pa.Table] | None = None
        self._texts: tuple[object, Goals] | None = None  # of the view

    # writing

    def add(self, memory: Remembered) -> Path:
        """Remember a run; on disk when this returns."""
        fault_point("memory.before_save")
        path = self.warm / f"{memory.run_id}.json"
        write_json(path, memory.to_json())
        return path

    def add_all(self, memories: Iterable[Remembered]) -> int:
        """Remember many runs at once, in Parquet; the number of those that were not known as they are."""
        known = dict(zip(*(self.table()[name].to_pylist() for name in ("run_id", "ended")), strict=True))
        new = [memory for memory in memories if known.get(memory.run_id) is None or known[memory.run_id] < memory.ended]
        self._to_cold([memory.row | {"month": memory.month} for memory in new])
        return len(new)

    def tidy(self, now: datetime | None = None) -> int:
        """Move what is old or too much from warm to cold, put small files together, let the oldest go; how many runs moved.

        At most `MOVED_AT_ONCE` runs a call. Nobody waits for this: where another process is at it, nothing is done.
        """
        if not self.warm.is_dir():
            return 0
        with lease_if_free(self.root / "tidy.lock") as mine:
            return self._tidy(now or datetime.now(UTC)) if mine else 0

    def _tidy(self, now: datetime) -> int:
        self._sweep()
        rows = self._read_warm()
        oldest_first = sorted(rows.values(), key=lambda row: (row["ended"] or row["started"], row["run_id"]))
        too_many = len(oldest_first) - int(self.config.warm_memory_size)
        before = max(now.timestamp() - self.config.warm_days * SECONDS_A_DAY, 0.0)  # any number of days is a setting
        too_old = datetime.fromtimestamp(before, UTC).isoformat()
        moving = [row for i, row in enumerate(oldest_first) if i < too_many or (row["ended"] and row["ended"] < too_old)]
        moving = moving[:MOVED_AT_ONCE]
        if moving:
            self._to_cold(moving)
            moved = {row["run_id"] for row in moving}
            for name in [name for name, row in rows.items() if row["run_id"] in moved]:
                if self._rows.get(name, (None,))[0] == _state(self.warm / name):  # not written anew meanwhile
                    (self.warm / name).unlink(missing_ok=True)
            sync_folder(self.warm)
        self._merge()
        self._forget()
        return len(moving)

    def _to_cold(self, rows: list[dict[str, Any]]) -> None:
        """A new file for each month."""
        for month in sorted({row["month"] for row in rows}):
            self._write_part(month, pa.Table.from_pylist([_without_month(r) for r in rows if r["month"] == month], SCHEMA))

    def _write_part(self, month: str, table: pa.Table) -> Path:
        path = self.cold / f"{month}.{uuid.uuid4().hex[:12]}.parquet"
        beside = path.with_name(f".{path.name}")
        write_table(table.sort_by("run_id"), beside)
        sync_file(beside)
        fault_point("memory.before_cold")
        beside.replace(path)
        sync_folder(self.cold)
        fault_point("memory.after_cold")
        return path

    def _merge(self) -> None:
        """Put the files of a month together where there are many."""
        by_month: dict[str, list[Path]] = {}
        for path in self._cold_files():
            by_month.setdefault(path.name.partition(".")[0], []).append(path)
        for month, parts in by_month.items():
            if len(parts) > PARTS_OF_A_MONTH:
                self._write_part(month, _latest(pa.concat_tables([self._part(path) for path in parts])))
                for path in parts:
                    path.unlink(missing_ok=True)

    def _forget(self) -> None:
        """Let the files of the oldest months go when more than `cold_memory_size` runs are in the others."""
        kept = 0
        for path in reversed(self._cold_files()):
            if kept >= self.config.cold_memory_size:
                path.unlink(missing_ok=True)
            kept += len(self._part(path)) if path.exists() else 0

    def _sweep(self) -> None:
        """Remove what a kill left half written, an hour later: nobody is writing it any more."""
        before = datetime.now(UTC).timestamp() - 3600
        for folder in (self.warm, self.cold):
            for path in folder.glob(".*"):
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_mtime < before:
                        path.unlink()

    # reading

    def table(self) -> pa.Table:
        """Warm and cold as one table (`record.SCHEMA`), in the order of run ids."""
        for _ in range(5):  # a file that moves while we look is found in its new place the next time
            with contextlib.suppress(FileNotFoundError):
                return self._table()
        return self._table()

    def _table(self) -> pa.Table:
        states, files = {name: self._rows[name][0] for name in self._read_warm()}, self._cold_files()
        if self._view is None or self._view[0] != (states, files):
            if self._cold_rows[0] != files:
                self._parts = {path: self._part(path) for path in files}
                self._cold_rows = files, _latest(pa.concat_tables([SCHEMA.empty_table(), *self._parts.values()]))
            self._warm_rows = states, self._warm_table(states)
            self._view = (states, files), _latest(pa.concat_tables([self._cold_rows[1], self._warm_rows[1]]))
        return self._view[1]

    def _warm_table(self, states: dict[str, tuple[int, int]]) -> pa.Table:
        """The rows of warm files; where some only came to those of the last time, those alone are made."""
        known, table = self._warm_rows
        if not known.items() <= states.items():
            known, table = {}, SCHEMA.empty_table()
        new = [_without_month(self._rows[name][1]) for name in sorted(states.keys() - known.keys())]
        return pa.concat_tables([table, pa.Table.from_pylist(new, SCHEMA)])

    def frame(self) -> TableFrame:
        """The table, ready to be compared."""
        return TableFrame(self.table())

    def __len__(self) -> int:
        return len(self.table())

    def recall(self, features: Features | None = None, *, goal: str = "", k: int = 5) -> list[Neighbour]:
        """The k runs most like what is asked, nearest first, with the reasons.

        Args:
            features: under the names of `workspace.features`.
            goal: in words, compared with goal, pipeline, task, family and preset of past runs.
            k: how many.
        """
        frame = self.frame()
        likeness = self._goals(frame.table).likeness(goal) if goal else None
        return nearest_in(frame, features or {}, k, likeness=likeness)

    def _goals(self, table: pa.Table) -> Goals:
        if self._texts is None or self._texts[0] is not self._view:
            model = Path(self.config.embedding_model) if self.config.embedding_model else None
            self._texts = self._view, Goals(_texts(table), embedding_model=model)
        return self._texts[1]

    def guess(self, features: Features, *, of: str = "tokens_per_second", k: int = 5, far: float = math.inf) -> Guess | None:
        """What to expect of such a training on this machine; see `recall.guess_in`."""
        return guess_in(self.frame(), features, of=of, k=k, far=far)

    def cures(self, signal: str) -> list[tuple[str, int]]:
        """What was enough in past runs when this went wrong: (action, how often), most often first."""
        from pipeline_lib.tables.duck import connect  # the one question that needs it

        with connect(loaded={"memory": self.table()}) as connection:
            rows = connection.execute(
                "SELECT f.action, count(*) FROM (SELECT unnest(failures) AS f FROM memory) WHERE f.signal = ? AND f.cured "
                "GROUP BY 1 ORDER BY 2 DESC, 1",
                [signal],
            ).fetchall()
        return [(str(action), int(times)) for action, times in rows]

    def get(self, run_id: str) -> Remembered:
        """What is remembered of a run.

        Raises:
            NotFoundError: nothing; names the most similar id.
        """
        table = self.table()
        found = table.filter(pc.equal(table["run_id"], run_id))
        if found.num_rows:
            return from_row(found.to_pylist()[0])
        from pipeline_lib.config.explain import nearest

        near = nearest(run_id, table["run_id"].to_pylist())
        fix = f"did you mean {near}?" if near else NOTHING_YET if not len(table) else "`millrace recall` lists what is there"
        raise NotFoundError(f"run {run_id!r} is not remembered", where=str(self.root), fix=fix)

    def _read_warm(self) -> dict[str, dict[str, Any]]:
        """Name of a warm file → row; only those that are new or have changed are read."""
        found: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.warm):
                if not entry.name.endswith(".json") or entry.name.startswith("."):
                    continue
                state = entry.stat().st_mtime_ns, entry.stat().st_size
                if self._rows.get(entry.name, (None,))[0] != state and not self._read(entry.name, state):
                    continue
                found[entry.name] = self._rows[entry.name][1]
        self._rows = {name: self._rows[name] for name in found}
        return found

    def _read(self, name: str, state: tuple[int, int]) -> bool:
        """Read a warm file; one that cannot be is set aside, one of a newer version is passed over."""
        path = self.warm / name
        try:
            memory = Remembered.from_json(read_json(path))
        except (ValueError, DamagedError):
            self._set_aside(path, "unreadable")
            return False
        except (FileNotFoundError, ConfigError):
            return False
        self._rows[name] = state, memory.row | {"month": memory.month}
        return True

    def _part(self, path: Path) -> pa.Table:
        """A cold file; columns that it lacks (an older version wrote it) are empty, a damaged one is set aside."""
        if path not in self._parts:
            try:
                with pq.ParquetFile(path) as file:  # small ones: a data set and threads cost more than they give
                    table = file.read(use_threads=False)
                columns = [
                    table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
                    for field in SCHEMA
                ]
                self._parts[path] = pa.table(columns, schema=SCHEMA)
            except FileNotFoundError:
                raise
            except (pa.ArrowException, OSError):
                self._set_aside(path, "unreadable")
                return SCHEMA.empty_table()
        return self._parts[path]

    def _set_aside(self, path: Path, why: str) -> None:
        with contextlib.suppress(OSError):  # a full disk, another process was first: it is passed over all the same
            self.aside.mkdir(parents=True, exist_ok=True)
            path.replace(self.aside / f"{path.name}.{why}-{uuid.uuid4().hex[:6]}")

    def unreadable(self) -> list[Path]:
        """Files that were set aside; the reason is in the name."""
        return sorted(self.aside.glob("*"))

    def _cold_files(self) -> list[Path]:
        return sorted(path for path in self.cold.glob("*.parquet") if not path.name.startswith("."))

    # handing on

    def export(self, path: Path) -> int:
        """Write everything as one Parquet file; how many runs it holds.

        Raises:
            ConfigError: it cannot be written there.
        """
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            rows = write_table(self.table(), beside)
            sync_file(beside)
            beside.replace(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise ConfigError(
                f"it cannot be written ({told(error)})", where=str(path), fix="name a file, where there is room"
            ) from None
        return rows

    def bring_in(self, path: Path) -> tuple[int, int]:
        """Take over an exported file, or a JSON file of one run (a memory, or a run record): (taken, set aside or passed over).

        Raises:
            NotFoundError: there is no such file.
            DamagedError: nothing of it can be read.
        """
        if not path.is_file():
            raise NotFoundError("there is no such file", where=str(path), fix="`millrace recall --export FILE` writes one")
        try:
            rows = pq.read_table(path).to_pylist() if path.suffix == ".parquet" else [read_json(path)]
        except (ValueError, pa.ArrowException, OSError) as error:
            raise DamagedError(f"it cannot be read ({error})", where=str(path), fix="export it again") from None
        taken, lost = [], 0
        for row in rows:
            try:
                value = row if path.suffix != ".parquet" else from_row({name: row.get(name) for name in SCHEMA.names}).to_json()
                taken.append(Remembered.from_json(value))
            except (MillraceError, ValueError, TypeError, KeyError):
                lost += 1
        if lost and not taken:
            raise DamagedError("nothing in it is a memory of a run", where=str(path), fix="export it again")
        return self.add_all(taken), lost


def _state(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_mtime_ns, path.stat().st_size
    return None


def _without_month(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in SCHEMA.names}


def _latest(table: pa.Table) -> pa.Table:
    """One row a run, the one that ended last (of equal ones the later in the table), in the order of run ids."""
    ids = table["run_id"].combine_chunks()
    if len(ids) < 2 or pc.all(pc.less(ids[:-1], ids[1:])).as_py():  # as it nearly always is: later runs have later ids
        return table.combine_chunks()
    order = pc.sort_indices(
        pa.table({"run_id": table["run_id"], "ended": pc.fill_null(table["ended"], ""), "at": pa.array(range(len(table)))}),
        sort_keys=[("run_id", "ascending"), ("ended", "ascending"), ("at", "ascending")],
    )
    table = table.take(order)
    ids = table["run_id"].combine_chunks()
    last = pc.not_equal(ids[:-1], ids[1:])
    return table.filter(pa.concat_arrays([last, pa.array([True])])).combine_chunks()


def _texts(table: pa.Table) -> list[str]:
    columns = [pc.fill_null(table[name], "") for name in ("goal", "pipeline", "task", "family", "preset")]
    return pc.binary_join_element_wise(*columns, " ").to_pylist()  # type: ignore[no-any-return]
