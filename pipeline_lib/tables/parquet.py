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


def read_tables(paths: Sequence[Path], columns: Sequence[str] | None = None) -> pa.Table:
    """Concatenate Parquet files into one table."""
    return pa.concat_tables([pq.read_table(path, columns=list(columns) if columns else None) for path in paths])
