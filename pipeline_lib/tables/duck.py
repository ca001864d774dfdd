"""Opens every DuckDB connection: limits set, external access off, files named by us only."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from pipeline_lib.errors import ConfigError


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@contextlib.contextmanager
def connect(
    tables: Mapping[str, Sequence[Path]] | None = None,
    *,
    loaded: Mapping[str, pa.Table] | None = None,
    threads: int = 1,
    memory_gib: float = 1.0,
    spill: Path | None = None,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory connection with Parquet files as views; nothing else on the machine can be read or written.

    Args:
        tables: view name → Parquet files; a name without files gets no view.
        loaded: view name → Arrow table.
        threads: DuckDB threads.
        memory_gib: memory limit; beyond it DuckDB spills.
        spill: folder to spill into; a temporary one when not given.

    Raises:
        ConfigError: a name is not a plain identifier.
    """
    for name in [*(tables or {}), *(loaded or {})]:
        if not name.isidentifier():
            raise ConfigError(f"{name!r} is not a table name", fix="letters, digits and `_`")
    with contextlib.ExitStack() as stack:
        folder = spill or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millrace-duckdb-")))
        connection = stack.enter_context(contextlib.closing(duckdb.connect(":memory:")))
        files = [str(path) for paths in (tables or {}).values() for path in paths]
        connection.execute(f"SET threads = {int(threads)}")
        connection.execute(f"SET memory_limit = '{int(memory_gib * 1024)}MiB'")
        connection.execute(f"SET temp_directory = {_quoted(str(folder))}")
        connection.execute("SET preserve_insertion_order = true")
        connection.execute("SET python_enable_replacements = false")  # a table name must never find a Python variable
        connection.execute("SET autoinstall_known_extensions = false")
        connection.execute("SET autoload_known_extensions = false")
        connection.execute(f"SET allowed_paths = [{', '.join(_quoted(f) for f in files)}]")
        connection.execute(f"SET allowed_directories = [{_quoted(str(folder))}]")
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        for name, paths in (tables or {}).items():
            if paths:
                listed = ", ".join(_quoted(str(path)) for path in paths)
                connection.execute(f'CREATE VIEW "{name}" AS SELECT * FROM read_parquet([{listed}])')  # noqa: S608 - quoted
        for name, table in (loaded or {}).items():
            connection.register(name, table)
        yield connection
