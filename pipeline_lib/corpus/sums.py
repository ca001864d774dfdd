"""What ingest tells of its documents by source and domain, summed a batch at a time and merged over parts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.corpus.rights import known

TOTALS = {
    "documents": "sum", "bytes": "sum", "dated": "sum", "licensed": "sum",
    "first": "min", "last": "max",  # years
}  # fmt: skip
SUMS = pa.schema([("source", pa.string()), ("domain", pa.string()), *((name, pa.int64()) for name in TOTALS)])


def sums_of(documents: pa.RecordBatch | pa.Table) -> pa.Table:
    """Documents, bytes, dated and licensed documents, first and last year, schema `SUMS`: a row for each source and domain."""
    years = pc.year(documents.column("created_at"))
    rows = [
        documents.column("source"),
        documents.column("domain"),
        pa.repeat(pa.scalar(1), documents.num_rows),
        pc.binary_length(documents.column("text")),
        pc.is_valid(years).cast(pa.int64()),
        known(documents.column("licence")).cast(pa.int64()),
        years,
        years,
    ]
    return _grouped(pa.table(rows, names=SUMS.names))


def merged(tables: Iterable[pa.Table]) -> list[dict[str, Any]]:
    """Several sums as one, sorted by source and domain, as plain JSON values."""
    return _grouped(pa.concat_tables([SUMS.empty_table(), *tables])).to_pylist()  # type: ignore[no-any-return]


def from_json(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """What `merged` gave, as a table again."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=SUMS)


def _grouped(rows: pa.Table) -> pa.Table:
    grouped = rows.group_by(["source", "domain"], use_threads=False).aggregate(list(TOTALS.items()))
    named = grouped.rename_columns(
        [name.removesuffix(f"_{TOTALS.get(name.rpartition('_')[0], '')}") for name in grouped.column_names]
    )
    return named.select(SUMS.names).cast(SUMS).sort_by([("source", "ascending"), ("domain", "ascending")])
