"""Raw records: what readers give and `documents.refine` takes. A record that cannot be read is a row with its `problem`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.config.data import SourceConfig
from pipeline_lib.corpus.files import SourceFile
from pipeline_lib.corpus.instruct import COLUMNS, conversations
from pipeline_lib.corpus.redact import head
from pipeline_lib.corpus.strings import decoded, valid
from pipeline_lib.errors import StageFailedError
from pipeline_lib.tables.schemas import TURNS

RAW = pa.schema([
    ("text", pa.large_binary()),  # not yet known to be UTF-8; null where there is a problem
    ("problem", pa.string()),  # why the record cannot be read; null: it can
    ("head", pa.binary()),  # redacted beginning of a record with a problem
    ("file", pa.string()),
    ("file_digest", pa.string()),
    ("index", pa.int64()),  # record's number in the file, from 0 (JSONL: line number); -1: the file as a whole
    ("offset", pa.int64()),  # of the record in the decompressed file; -1: unknown
    ("length", pa.int64()),
    ("id", pa.string()),
    ("date", pa.string()),
    ("domain", pa.string()),
    ("licence", pa.string()),
    ("url", pa.string()),
    ("title", pa.string()),
    ("turns", TURNS),  # of instruction records
    ("edit", pa.string()),  # what made the text out of the record (`extract`); null: it is the record's own
])  # fmt: skip
NO_TEXT, NOT_TEXT, BROKEN_JSON, NOT_OBJECT = "no text", "text is not a string", "broken JSON", "not a JSON object"
BROKEN_ROW, BROKEN_FILE, CUT_FILE = "wrong number of columns", "file cannot be read", "compressed file is cut or damaged"
BROKEN_GROUP, OPEN_QUOTE = "part of the file cannot be read", "a quote is not closed"
NOT_UTF8, EMPTY, TOO_LONG = "not UTF-8", "empty text", "longer than max_document_mb"
EMPTY_FILE, BOMB = "empty file", "expands beyond max_expansion or max_file_gb"
LINK, NOT_A_PAGE, NO_PERMISSION = "link, not followed", "not a page of text", "no permission to read the file"
SET_ASIDE = (EMPTY_FILE, LINK, NOT_A_PAGE)  # rows of quarantine that say nothing against a source: not part of its share
BATCH_ROWS = 8192


def raw_batch(file: SourceFile, rows: int, **columns: Any) -> pa.RecordBatch:
    """A batch of `RAW` with these columns; the others are null, positions unknown."""
    defaults = {"file": file.name, "file_digest": file.digest, "offset": -1, "length": -1, "index": -1}
    arrays = []
    for field in RAW:
        value = columns.get(field.name)
        if value is None:
            default = pa.scalar(defaults.get(field.name), field.type)
            arrays.append(pa.repeat(default, rows))
        else:
            arrays.append(value if isinstance(value, pa.Array) and value.type == field.type else pa.array(value, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=RAW)


def problem_row(file: SourceFile, reason: str, data: bytes, index: int = -1, offset: int = -1) -> pa.RecordBatch:
    """One record that cannot be read."""
    return raw_batch(file, 1, problem=[reason], head=[head(data)], index=[index], offset=[offset])


def problem_rows(file: SourceFile, reason: str, data: bytes, index: int, count: int) -> Iterator[pa.RecordBatch]:
    """Records from number `index` on that cannot be read for the same reason; the first one tells it with `data`."""
    for start in range(index, index + count, BATCH_ROWS):
        rows = min(BATCH_ROWS, index + count - start)
        heads = [head(data) if start == index else b"", *[b""] * (rows - 1)]
        yield raw_batch(file, rows, problem=[reason] * rows, head=heads, index=range(start, start + rows))


def names_of(source: SourceConfig) -> dict[str, str]:
    """Column of a file → the name it is known by here: a column of `RAW`, or one of `instruct.COLUMNS`."""
    known = {"domain": "domain", "licence": "licence", "license": "licence", "url": "url", "title": "title"}
    if source.url_column:
        del known["url"]
    if source.domain:
        del known["domain"]
    if source.licence:
        del known["licence"], known["license"]
    own = source.kind == "module"  # its batches have these columns
    id_column, date_column = source.id_column or "id" * own, source.date_column or "created_at" * own
    asked = {id_column: "id", date_column: "date", source.url_column: "url", **text_columns(source)}
    return {**known, **{column: name for column, name in asked.items() if column}}


def text_columns(source: SourceConfig) -> dict[str, str]:
    """The columns that may hold text, each under the name that the readers know it by."""
    return dict(zip(COLUMNS, COLUMNS, strict=True)) if source.records == "instruct" else {source.text_column: "text"}


def need_text_column(file: SourceFile, source: SourceConfig, names: Sequence[str]) -> None:
    """Raise when a file has no column that may hold text.

    Raises:
        StageFailedError: names the columns there are.
    """
    if text_columns(source).keys() & set(names):
        return
    raise StageFailedError(
        f"there is no column {' or '.join(map(repr, text_columns(source)))}; there are {', '.join(map(repr, names[:20]))}",
        where=file.path,
        fix="rename the columns: instruction records are known by these names"
        if source.records == "instruct"
        else f"set text_column of source {source.name!r} to the column that holds the text",
    )


def named_columns(table: pa.Table | pa.RecordBatch, source: SourceConfig) -> dict[str, Any]:
    """A table's columns under the names of `RAW` (the first that says something wins): text as bytes, the others as strings.

    What has no plain form as a string (lists, bytes that are not UTF-8) is null.
    """
    columns: dict[str, Any] = {}
    for column, name in names_of(source).items():
        if column not in table.schema.names or (name in columns and columns[name].null_count == 0):
            continue
        values = table.column(column)
        if isinstance(values, pa.ChunkedArray):
            values = values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if name in COLUMNS:
            columns[name] = values
        elif name != "text":
            told = _as_string(values)
            columns[name] = pc.coalesce(columns[name], told) if name in columns else told
        elif pa.types.is_large_string(values.type):
            columns[name] = values.view(pa.large_binary())
        elif pa.types.is_string(values.type) or pa.types.is_binary(values.type) or values.type == pa.string_view():
            columns[name] = values.cast(pa.large_binary())
        elif pa.types.is_large_binary(values.type):
            columns[name] = values
        else:
            columns["problem"] = pa.repeat(pa.scalar(NOT_TEXT), len(values))
            columns[name] = pa.nulls(len(values), pa.large_binary())
    if source.records == "instruct":
        columns |= conversations(columns, table.num_rows)
    elif columns["text"].null_count and "problem" not in columns:
        columns["problem"] = pc.if_else(columns["text"].is_null(), NO_TEXT, None)
    return columns


def _as_string(values: pa.Array) -> pa.Array:
    if pa.types.is_nested(values.type):
        return pa.nulls(len(values), pa.string())
    try:
        return valid(values.cast(pa.string()))
    except pa.ArrowException:
        return pa.array([decoded(value) for value in values.to_pylist()], pa.string())


def one_batch(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """Rows as a batch; for documents that were read one file or page at a time."""
    return pa.RecordBatch.from_pydict({field.name: [row.get(field.name) for row in rows] for field in RAW}, schema=RAW)
