"""CSV and TSV with a header line, block by block; quoted fields may hold line ends."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from pipeline_lib.config.data import SourceConfig
from pipeline_lib.corpus import bounds
from pipeline_lib.corpus.files import SourceFile
from pipeline_lib.corpus.instruct import COLUMNS
from pipeline_lib.corpus.raw import (
    BROKEN_FILE,
    BROKEN_ROW,
    OPEN_QUOTE,
    named_columns,
    names_of,
    need_text_column,
    problem_row,
    raw_batch,
)
from pipeline_lib.corpus.records import Found, records
from pipeline_lib.corpus.redact import head
from pipeline_lib.corpus.streams import Caps, blocks


def read_csv(file: SourceFile, source: SourceConfig, caps: Caps, longest: int) -> Iterator[pa.RecordBatch]:
    """Rows as records; their numbers do not count the header."""
    delimiter = "\t" if file.form == "tsv" else ","
    header: list[str] | None = None
    number = 0
    for found in records(file, blocks(file.path, caps=caps), bounds.rows, longest=2 * longest + (1 << 20), mode=ord(delimiter)):
        if isinstance(found, pa.RecordBatch):
            yield found
            continue
        if header is None:
            header, *more = _rows(found.record(0), delimiter)
            if more:  # with CR alone as line end the whole file would be its header
                yield problem_row(file, BROKEN_FILE, found.record(0), 0, 0)
                return
            need_text_column(file, source, header)
            found = found.rows(np.arange(len(found)) > 0)  # noqa: PLW2901
        fields = found.shape == min(len(header), bounds.MOST_FIELDS)
        index = np.arange(number, number + len(found))
        number += len(found)
        for rows, batch in ((fields, _good), (~fields, _bad)):
            if rows.any():
                yield batch(file, source, Found(**{**vars(found.rows(rows)), "index": index[rows]}), header, delimiter)


def _rows(record: bytes, delimiter: str) -> list[list[str]]:
    """What Python sees in a record: one row, unless line ends differ from those that the search knows."""
    csv.field_size_limit(1 << 31)  # the default of 128 KiB is less than a document
    return list(csv.reader(io.StringIO(record.decode("utf-8", "surrogateescape"), newline=""), delimiter=delimiter)) or [[]]


def _bad(file: SourceFile, source: SourceConfig, found: Found, header: list[str], delimiter: str) -> pa.RecordBatch:
    """Rows that do not have the header's columns."""
    reasons = [OPEN_QUOTE if count == 0 else BROKEN_ROW for count in found.shape]
    return raw_batch(
        file, len(found), problem=reasons, head=[head(found.record(row)) for row in range(len(found))], **found.places()
    )


def _good(file: SourceFile, source: SourceConfig, found: Found, header: list[str], delimiter: str) -> pa.RecordBatch:
    names = {column: name for column, name in names_of(source).items() if column in header}
    data = found.joined(b"\n")[0]
    types = {column: pa.large_binary() if name == "text" else pa.binary() for column, name in names.items()}
    try:
        table = pacsv.read_csv(
            pa.BufferReader(pa.py_buffer(data)),
            read_options=pacsv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=header),
            parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(include_columns=list(names), column_types=types),
        )
        if table.num_rows != len(found):
            table = _row_by_row(found, header, names, delimiter)
    except pa.ArrowException:
        table = _row_by_row(found, header, names, delimiter)
    table = pa.table({column: _typed(table.column(column), name) for column, name in names.items()})
    return raw_batch(file, len(found), **found.places(), **named_columns(table, source))


def _typed(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Columns of instruction records as text where they are UTF-8."""
    if name not in COLUMNS:
        return column
    try:
        return column.cast(pa.large_string())
    except pa.ArrowException:
        return pa.chunked_array([pa.array([value.decode("utf-8", "replace") for value in column.to_pylist()], pa.large_string())])


def _row_by_row(found: Found, header: list[str], names: dict[str, str], delimiter: str) -> pa.Table:
    """What pyarrow and the search see differently (a quote in the middle of a field): a Python loop."""
    columns: dict[str, list[Any]] = {column: [] for column in names}
    for row in range(len(found)):
        fields = dict(zip(header, _rows(found.record(row), delimiter)[0], strict=False))
        for column, values in columns.items():
            values.append(fields.get(column, "").encode("utf-8", "surrogateescape"))
    return pa.table({column: pa.array(values, pa.large_binary()) for column, values in columns.items()})
