"""JSON lines and JSON values: by pyarrow a block at a time; a block that holds a record that is not plain by a tolerant loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from pipeline_lib.config.data import SourceConfig
from pipeline_lib.corpus import bounds
from pipeline_lib.corpus.files import SourceFile
from pipeline_lib.corpus.instruct import COLUMNS, conversations, plain
from pipeline_lib.corpus.raw import BROKEN_JSON, NO_TEXT, NOT_OBJECT, NOT_TEXT, NOT_UTF8, named_columns, names_of, raw_batch
from pipeline_lib.corpus.records import Found, records
from pipeline_lib.corpus.redact import head
from pipeline_lib.corpus.streams import Caps, blocks

LONE_SURROGATE = "lone surrogate in a string"


def read_jsonl(file: SourceFile, source: SourceConfig, caps: Caps, longest: int) -> Iterator[pa.RecordBatch]:
    """JSON lines: an object a line."""
    stream = blocks(file.path, caps=caps, start=file.start, stop=file.stop)
    for found in records(file, stream, bounds.lines, longest=_with_escapes(longest)):
        yield found if isinstance(found, pa.RecordBatch) else _batch(file, source, found, lines=True)


def read_json(file: SourceFile, source: SourceConfig, caps: Caps, longest: int) -> Iterator[pa.RecordBatch]:
    """An array of objects, or objects one after the other; after a record that is never closed nothing can be told apart."""
    stream = blocks(file.path, caps=caps)
    for found in records(file, stream, bounds.values, longest=_with_escapes(longest), lines=False):
        yield found if isinstance(found, pa.RecordBatch) else _batch(file, source, found, lines=False)


def _with_escapes(longest: int) -> int:
    """Bytes of JSON that may hold a text of `longest` bytes: a byte is six in `\\u0041`; and a megabyte for other columns."""
    return 6 * longest + (1 << 20)


def _batch(file: SourceFile, source: SourceConfig, found: Found, *, lines: bool) -> pa.RecordBatch:
    columns = None
    if found.shape.all():
        if lines:
            block = pa.py_buffer(found.data).slice(found.starts[0], found.ends[-1] - found.starts[0])
        else:
            block = pa.py_buffer(found.joined(b"\n")[0])
        columns = _plain(block, len(found), source, lines)
    if columns is None:
        columns = _tolerant([found.record(row) for row in range(len(found))], source)
    elif columns["text"].null_count:
        missing = np.flatnonzero(columns["text"].is_null())
        heads: list[bytes | None] = [None] * len(found)
        for row in missing:
            heads[row] = head(found.record(row))
        columns |= {"problem": pc.if_else(columns["text"].is_null(), columns["problem"], None), "head": heads}
    return raw_batch(file, len(found), **found.places(), **columns)


def _plain(block: pa.Buffer, rows: int, source: SourceConfig, lines: bool) -> dict[str, Any] | None:
    """The columns of a block in which every record is one good object; None: read it record by record."""
    names = names_of(source)
    for id_type in (pa.string(), pa.int64()):
        kinds = {"text": pa.large_string(), "id": id_type, **COLUMNS}
        schema = pa.schema([(column, kinds.get(name, pa.string())) for column, name in names.items()])
        try:
            table = pajson.read_json(
                pa.BufferReader(block),
                read_options=pajson.ReadOptions(use_threads=False, block_size=block.size + 1),
                parse_options=pajson.ParseOptions(
                    explicit_schema=schema, unexpected_field_behavior="ignore", newlines_in_values=not lines
                ),
            )
            table.validate(full=True)  # UTF-8
        except pa.ArrowException:
            continue
        return named_columns(table, source) if table.num_rows == rows else None
    return None


def _tolerant(found: list[bytes], source: SourceConfig) -> dict[str, Any]:
    """A Python loop, only for blocks that hold at least one record that is not plain."""
    names = names_of(source)
    columns: dict[str, list[Any]] = {name: [] for name in {*names.values(), "problem", "head"}}
    for line in found:
        row: dict[str, Any] = {}
        said, lost = _decoded(line)
        try:
            record = json.loads(said)
            if not isinstance(record, dict):
                row["problem"] = NOT_OBJECT
            else:
                for column, name in names.items():
                    _put(row, name, record.get(column))
        except UnicodeEncodeError:
            row = {"problem": lost or LONE_SURROGATE}
        except (ValueError, RecursionError):
            row = {"problem": lost or BROKEN_JSON}
        if "problem" in row:
            row = {"problem": row["problem"], "head": head(line)}
        for name, column_values in columns.items():
            column_values.append(row.get(name))
    return _spoken(columns, found) if source.records == "instruct" else columns


def _decoded(line: bytes) -> tuple[str, str]:
    """A record as a string, and what is wrong with its bytes: it only matters in columns that are read."""
    try:
        return line.decode(), ""
    except UnicodeDecodeError:
        return line.decode("utf-8", "surrogateescape"), NOT_UTF8


def _put(row: dict[str, Any], name: str, value: Any) -> None:
    if name in COLUMNS:
        row[name] = plain(name, value)
    elif name == "text":
        if isinstance(value, str):
            row[name] = value.encode()
        else:
            row["problem"] = NO_TEXT if value is None else NOT_TEXT
    elif row.get(name) is None:  # the first column of several that is there wins
        if isinstance(value, str):
            row[name] = value.encode().decode()
        elif isinstance(value, int):
            row[name] = str(value)


def _spoken(columns: dict[str, list[Any]], found: list[bytes]) -> dict[str, Any]:
    """Instruction records from the tolerant reader."""
    spoken = conversations({name: pa.array(columns.pop(name), kind) for name, kind in COLUMNS.items()}, len(found))
    problem = pc.coalesce(pa.array(columns["problem"], pa.string()), spoken["problem"])
    heads = [head(line) if bad else None for line, bad in zip(found, problem.is_valid().to_pylist(), strict=True)]
    return {**columns, **spoken, "text": pc.if_else(problem.is_null(), spoken["text"], None), "problem": problem, "head": heads}
