"""Records with the same id: the last one in file-name order is the document, the earlier ones are replaced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.tables.parquet import read_tables

NONE = pa.array([], pa.string())


def replaced_places(files: Sequence[Path]) -> list[pa.Array]:
    """Which records of each part a later record with the same id replaces: `places` (strings), sorted.

    The answer depends on names and positions in the files only, never on which files make up a part. Memory: 16 bytes a record
    and a hash table of the same order.

    Args:
        files: a table `ids` for each part.
    """
    if not files:
        return []
    ids = read_tables(files, ["doc_id"]).column("doc_id")
    if pc.count_distinct(ids).as_py() == len(ids):
        return [NONE] * len(files)
    counts = ids.value_counts()
    twice = pc.struct_field(counts, "values").filter(pc.greater(pc.struct_field(counts, "counts"), 1))
    tables = []
    for number, path in enumerate(files):
        table = pq.read_table(path)
        found = table.filter(pc.is_in(table.column("doc_id"), value_set=twice))
        tables.append(found.append_column("part", pa.repeat(pa.scalar(number), found.num_rows)))
    rows = pa.concat_tables(tables).sort_by([("file", "ascending"), ("record_index", "ascending")])
    rows = rows.append_column("row", pa.array(range(rows.num_rows), pa.int64()))
    last = rows.group_by("doc_id").aggregate([("row", "max")]).column("row_max")
    lost = rows.filter(pc.invert(pc.is_in(rows.column("row"), value_set=last)))
    told = [lost.filter(pc.equal(lost.column("part"), number)) for number in range(len(files))]
    return [
        places(part.column("file"), part.column("record_index")).combine_chunks().sort() if len(part) else NONE for part in told
    ]


def places(files: pa.Array | pa.ChunkedArray, indices: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """A record's place in its source as one string: file and number in the file."""
    return pc.binary_join_element_wise(files, pc.cast(indices, pa.string()), "\0")
