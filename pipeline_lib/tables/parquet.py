"""Parquet as every table is stored: zstd-1, row groups of 50,000, the same bytes for the same rows; synced by the commit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.tables.schemas import ROW_GROUP


def write_table(table: pa.Table, path: Path) -> int:
    """Write a table, return its rows. The same rows give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", compression_level=1, row_group_size=ROW_GROUP)
    return int(table.num_rows)


def write_batches(batches: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> int:
    """Stream record batches into a Parquet file (a row group a batch), return the rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd", compression_level=1) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


class TableWriter:
    """Writes rows that come a few at a time in row groups of 50,000: the same rows give the same bytes however they come."""

    def __init__(self, schema: pa.Schema, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = 0
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=1)
        self._waiting = [schema.empty_table()]

    def add(self, table: pa.Table) -> None:
        """Write some rows."""
        if not table.num_rows:
            return
        self.rows += table.num_rows
        self._waiting.append(table)
        if sum(part.num_rows for part in self._waiting) >= ROW_GROUP:
            whole = pa.concat_tables(self._waiting)
            full = whole.num_rows // ROW_GROUP * ROW_GROUP
            self._writer.write_table(whole.slice(0, full), row_group_size=ROW_GROUP)
            self._waiting = [whole.slice(full)]

    def close(self) -> None:
        """Write what is left and end the file."""
        with self._writer:
            self._writer.write_table(pa.concat_tables(self._waiting))

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_tables(paths: Sequence[Path], columns: Sequence[str] | None = None) -> pa.Table:
    """Concatenate Parquet files into one table."""
    return pa.concat_tables([pq.read_table(path, columns=list(columns) if columns else None) for path in paths])
