"""SQL over what a run made: read-only, nothing else on the machine can be read or written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from pipeline_lib.errors import ConfigError, MillraceError, NotFoundError
from pipeline_lib.tables.duck import connect
from pipeline_lib.tables.schemas import TABLES
from pipeline_lib.workspace.runs import RunBook, RunRecord

if TYPE_CHECKING:
    from pipeline_lib.workspace.artifact import Artifact
    from pipeline_lib.workspace.workspace import Workspace

RUNS = pa.schema(
    [
        ("run_id", pa.string()), ("pipeline", pa.string()), ("goal", pa.string()), ("outcome", pa.string()), ("error",
        pa.string()), ("started", pa.string()), ("ended", pa.string()), ("seconds", pa.float64()), ("attempts", pa.int64()),
        ("parent", pa.string()), ("pinned", pa.bool_()), ("verdict", pa.string()), ("features", pa.string()),  # JSON
    ]
)  # fmt: skip
ARTIFACTS = pa.schema(
    [
        ("key", pa.string()), ("stage", pa.string()), ("digest", pa.string()), ("state", pa.string()), ("seconds", pa.float64()),
        ("made_in_seconds", pa.float64()), ("peak_memory_bytes", pa.int64()), ("files", pa.int64()), ("bytes", pa.int64()),
        ("started", pa.string()), ("metrics", pa.string()),  # JSON
    ]
)  # fmt: skip


BATCH = 10_000  # rows


@dataclass(frozen=True)
class View:
    """A table of a run and the Parquet files that hold it."""

    name: str
    files: list[Path]
    stages: list[str]


def query(workspace: Workspace, sql: str, *, run_id: str = "latest", limit: int = 0) -> pa.Table:
    """Ask the tables of a run.

    Every Parquet table of the run's artifacts is a view of its name. Where several stages have one, rows that say their stage
    (`decisions`, `edits`) are put together, of the others the last stage's count. `runs` are all run records, `artifacts` this
    run's.

    Args:
        workspace: where the run lies.
        sql: one SELECT, WITH, VALUES, DESCRIBE, SUMMARIZE or SHOW.
        run_id: the run; `latest`, or a unique beginning.
        limit: give at most this many rows; 0: all.

    Raises:
        ConfigError: it is anything else, or DuckDB refuses it; the words are DuckDB's.
        NotFoundError: there is no such run.
        DamagedError: a file is not what was committed.
    """
    statement = check(sql)
    book = RunBook(workspace.runs_folder)
    nothing_yet = run_id == "latest" and not book.ids()
    record = RunRecord("none", "none") if nothing_yet else book.load(run_id)
    views = {view.name: view.files for view in views_of(workspace, record)}
    with connect(views, loaded={"runs": _runs(book), "artifacts": _artifacts(workspace, record)}) as connection:
        try:
            return _first(connection.sql(statement).to_arrow_reader(limit or BATCH), limit)
        except duckdb.Error as error:
            raise ConfigError(
                str(error),
                where="sql",
                fix=f"tables of run {record.run_id}: "
                + ", ".join(sorted([*views, "runs", "artifacts"]))
                + "; `--run` asks another",
            ) from None


def _first(reader: Any, limit: int) -> pa.Table:
    """The first rows of a result (all when `limit` is 0), without reading more."""
    batches: list[pa.RecordBatch] = []
    rows = 0
    for batch in reader:
        batches.append(batch.slice(0, limit - rows) if limit else batch)
        rows += batches[-1].num_rows
        if limit and rows >= limit:
            break
    return pa.Table.from_batches(batches, reader.schema)


def check(sql: str) -> str:
    """The one reading statement in `sql`.

    Raises:
        ConfigError: it is none, or more than one, or would change something.
    """
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise ConfigError(str(error), where="sql") from None
    if len(statements) != 1:
        raise ConfigError(f"{len(statements)} statements; exactly one is wanted", where="sql", fix="ask one question at a time")
    (statement,) = statements
    if statement.type != duckdb.StatementType.SELECT:
        raise ConfigError(
            f"{statement.type.name} is not allowed: this door only reads",
            where="sql",
            fix="SELECT, WITH, VALUES, DESCRIBE, SUMMARIZE and SHOW are",
        )
    return str(statement.query)


def views_of(workspace: Workspace, record: RunRecord) -> list[View]:
    """The Parquet tables of a run, in stage order; artifacts that are gone are passed over."""
    views: dict[str, View] = {}
    for name in record.stages:
        artifact = _artifact(workspace, record, name)
        if artifact is None:
            continue
        for table, files in _parquet(artifact):
            if table in views and "stage" in (TABLES[table].names if table in TABLES else ()):
                views[table].files.extend(files)
                views[table].stages.append(name)
            else:
                views[table] = View(table, files, [name])
    return list(views.values())


def _parquet(artifact: Artifact) -> Iterator[tuple[str, list[Path]]]:
    """Content tables by name; observed files by their own name."""
    tables: dict[str, str] = {}  # table as queried -> table in the manifest
    for entry in artifact.manifest.files:
        if entry.path.endswith(".parquet"):
            tables[entry.table if entry.content else Path(entry.path).stem] = entry.table
    for name, table in tables.items():
        if name.isidentifier():
            files = [path for path in artifact.files(table) if path.suffix == ".parquet"]
            yield name, files if name == table else [path for path in files if path.stem == name]


def _artifact(workspace: Workspace, record: RunRecord, stage: str) -> Artifact | None:
    if ref := record.ref(stage):
        try:
            return workspace.artifact(ref.key)
        except NotFoundError:
            return None
    return None


def _runs(book: RunBook) -> pa.Table:
    rows = [
        {
            **{
                name: getattr(record, name)
                for name in ("run_id", "pipeline", "goal", "outcome", "error", "started", "ended", "parent")
            },
            "seconds": sum(entry.seconds for entry in record.stages.values()),
            "attempts": len(record.attempts),
            "pinned": record.pinned,
            "verdict": str(record.verdict.get("outcome", "")),
            "features": json.dumps(record.features),
        }
        for record in book.all()
    ]
    return pa.Table.from_pylist(rows, RUNS)


def _artifacts(workspace: Workspace, record: RunRecord) -> pa.Table:
    rows: list[dict[str, Any]] = []
    for stage, entry in record.stages.items():
        if ref := record.ref(stage):
            row = {"key": ref.key, "stage": stage, "digest": ref.digest, "state": entry.state, "seconds": entry.seconds}
            try:
                manifest = workspace.store.manifest(ref.key)
            except MillraceError:
                rows.append({**row, "state": "gone"})
                continue
            sizes = [file.size for file in manifest.files]
            rows.append(
                row
                | {
                    "made_in_seconds": manifest.seconds,
                    "peak_memory_bytes": manifest.peak_memory_bytes,
                    "files": len(sizes),
                    "bytes": sum(sizes),
                    "started": manifest.started,
                    "metrics": json.dumps(manifest.metrics),
                }
            )
    return pa.Table.from_pylist(rows, ARTIFACTS)
