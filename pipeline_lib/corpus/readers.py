"""Read files into raw record batches: every record is one row, a record that cannot be read is a row with its `problem`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from pipeline_lib.config.data import SourceConfig
from pipeline_lib.corpus.files import SourceFile
from pipeline_lib.corpus.kernels import lines
from pipeline_lib.corpus.machine_text import EXTRACT
from pipeline_lib.corpus.redact import head
from pipeline_lib.corpus.streams import BrokenStreamError, blocks, open_raw
from pipeline_lib.errors import StageFailedError

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
])  # fmt: skip
NO_TEXT, NOT_TEXT, BROKEN_JSON, NOT_OBJECT = "no text", "text is not a string", "broken JSON", "not a JSON object"
BROKEN_ROW, BROKEN_FILE, CUT_FILE = "wrong number of columns", "file cannot be read", "compressed file is cut or damaged"
BATCH_ROWS = 8192


def read_files(files: Sequence[SourceFile], source: SourceConfig) -> Iterator[pa.RecordBatch]:
    """All records of some files, in order, as batches of `RAW`."""
    whole: list[SourceFile] = []
    for file in files:
        form = _sniffed(file) if file.form == "sniff" else file.form
        if form in READERS:
            if whole:
                yield read_whole(whole)
                whole = []
            yield from READERS[form](file, source)
            file.check()
        else:
            whole.append(file)
    if whole:
        yield read_whole(whole)


def _sniffed(file: SourceFile) -> str:
    with open_raw(file.path) as raw:
        if raw.read(4) == b"PAR1":
            return "parquet"
    try:
        start = next(blocks(file.path, 4096), b"")
    except BrokenStreamError:
        return "text"
    return "jsonl" if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else "text"


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


def _problem(file: SourceFile, reason: str, data: bytes, index: int = -1) -> pa.RecordBatch:
    return raw_batch(file, 1, problem=[reason], head=[head(data)], index=[index])


def read_whole(files: Sequence[SourceFile]) -> pa.RecordBatch:
    """Files that are one document each. A loop over files: opening and parsing a file costs more than the loop."""
    rows: dict[str, list[Any]] = {field.name: [] for field in RAW}
    for file in files:
        text: bytes | None = None
        problem, date, data = None, "", b""
        try:
            data = b"".join(blocks(file.path))
            text, date = EXTRACT[file.form](data) if file.form in EXTRACT else (data, "")
        except BrokenStreamError:
            problem = CUT_FILE
        except ValueError as error:
            problem = str(error)
        whole = text is data
        values = {
            "text": text, "problem": problem, "head": head(data) if problem else None, "file": file.name,
            "file_digest": file.digest, "index": 0, "offset": 0 if whole else -1, "length": len(data) if whole else -1,
            "date": date, "domain": file.domain, "licence": file.licence,
        }  # fmt: skip
        for name, column in rows.items():
            column.append(values.get(name))
    for file in files:
        file.check()
    return pa.RecordBatch.from_pydict(rows, schema=RAW)


def _names(source: SourceConfig) -> dict[str, str]:
    """Column of the file → column of `RAW`."""
    known = {"domain": "domain", "licence": "licence", "license": "licence", "url": "url", "title": "title"}
    if source.domain:
        del known["domain"]
    if source.licence:
        del known["licence"], known["license"]
    own = source.kind == "module"  # its batches have these columns
    id_column, date_column = source.id_column or "id" * own, source.date_column or "created_at" * own
    asked = {id_column: "id", date_column: "date", source.text_column: "text"}
    return {**known, **{column: name for column, name in asked.items() if column}}


def read_jsonl(file: SourceFile, source: SourceConfig) -> Iterator[pa.RecordBatch]:
    """JSON lines: by pyarrow a block at a time; a block with a line that is not plain goes through a slower tolerant reader."""
    pieces: list[bytes] = []
    number = offset = 0
    broken = False
    stream = blocks(file.path)
    while not broken:
        block = b""
        try:
            block = next(stream, b"")
        except BrokenStreamError:
            broken = True
        cut = block.rfind(b"\n") + 1
        if block and not cut:
            pieces.append(block)  # a line longer than a block
            continue
        whole = b"".join([*pieces, block[:cut]]) if block or not broken else b""
        if whole:
            yield from _json_block(file, source, whole, number, offset)
            number, offset = number + whole.count(b"\n"), offset + len(whole)
        if not block and not broken:
            return
        pieces = [block[cut:]] if block else pieces
    yield _problem(file, CUT_FILE, b"".join(pieces), number)


def _json_block(file: SourceFile, source: SourceConfig, block: bytes, number: int, offset: int) -> Iterator[pa.RecordBatch]:
    bom = 3 if offset == 0 and block.startswith(b"\xef\xbb\xbf") else 0
    data = np.frombuffer(block, np.uint8)[bom:]
    room = block.count(b"\n") + 1
    starts, ends, numbers = (np.empty(room, np.int64) for _ in range(3))
    shape = np.empty(room, np.uint8)
    rows = lines(data, starts, ends, numbers, shape)
    if not rows:
        return
    places = {"index": numbers[:rows] + number, "offset": starts[:rows] + bom + offset, "length": (ends - starts)[:rows]}
    columns = _json_columns(memoryview(block)[bom:], rows, source) if shape[:rows].all() else None
    if columns is None:
        columns = _json_lines([block[bom + a : bom + b] for a, b in zip(starts[:rows], ends[:rows], strict=True)], source)
    elif columns["text"].null_count:
        missing = np.flatnonzero(columns["text"].is_null())
        heads: list[bytes | None] = [None] * rows
        for row in missing:
            heads[row] = head(block[bom + starts[row] : bom + ends[row]])
        columns |= {"problem": pc.if_else(columns["text"].is_null(), NO_TEXT, None), "head": heads}
    yield raw_batch(file, rows, **places, **columns)


def _json_columns(block: memoryview, rows: int, source: SourceConfig) -> dict[str, Any] | None:
    """The columns of a block in which every line is one good object; None: read it line by line."""
    names = _names(source)
    for id_type in (pa.string(), pa.int64()):
        kinds = {"text": pa.large_string(), "id": id_type}
        schema = pa.schema([(column, kinds.get(name, pa.string())) for column, name in names.items()])
        try:
            table = pajson.read_json(
                pa.BufferReader(block),
                read_options=pajson.ReadOptions(use_threads=False, block_size=len(block) + 1),
                parse_options=pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
            table.validate(full=True)  # UTF-8
        except pa.ArrowException:
            continue
        return _named(table, names) if table.num_rows == rows else None
    return None


def _json_lines(found: list[bytes], source: SourceConfig) -> dict[str, Any]:
    """The tolerant reader: a Python loop, only for blocks that hold at least one line that is not plain."""
    names = _names(source)
    columns: dict[str, list[Any]] = {name: [] for name in {*names.values(), "problem", "head"}}
    for line in found:
        row: dict[str, Any] = {}
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                row["problem"] = NOT_OBJECT
            else:
                for column, name in names.items():
                    value = record.get(column)
                    if isinstance(value, str):
                        row[name] = value.encode() if name == "text" else value.encode().decode()
                    elif isinstance(value, int) and name != "text":
                        row[name] = str(value)
                    elif name == "text":
                        row["problem"] = NO_TEXT if value is None else NOT_TEXT
        except UnicodeEncodeError:
            row = {"problem": "lone surrogate in a string"}
        except UnicodeDecodeError:
            row = {"problem": "not UTF-8"}
        except (ValueError, RecursionError):
            row = {"problem": BROKEN_JSON}
        if "problem" in row:
            row = {"problem": row["problem"], "head": head(line)}
        for name, column_values in columns.items():
            column_values.append(row.get(name))
    return columns


def _named(table: pa.Table, names: dict[str, str]) -> dict[str, Any]:
    """A table's columns under the names of `RAW` (the first that is there wins), text as bytes."""
    columns: dict[str, Any] = {}
    for column, name in names.items():
        if column not in table.column_names or name in columns:
            continue
        values = table.column(column)
        values = values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
        if name == "text":
            if pa.types.is_string(values.type) or pa.types.is_binary(values.type):
                values = values.cast(pa.large_binary())
            elif pa.types.is_large_string(values.type):
                values = values.view(pa.large_binary())
            elif not pa.types.is_large_binary(values.type):
                columns |= {
                    "problem": pa.repeat(pa.scalar(NOT_TEXT), len(values)),
                    "text": pa.nulls(len(values), RAW.field("text").type),
                }
                continue
            columns[name] = values
        else:
            columns[name] = values if pa.types.is_string(values.type) else values.cast(pa.string())
    return columns


def read_parquet(file: SourceFile, source: SourceConfig) -> Iterator[pa.RecordBatch]:
    """Parquet, a few thousand rows at a time."""
    names = _names(source)
    index = 0
    with open_raw(file.path) as raw:
        try:
            parquet = pq.ParquetFile(raw)
            here = [name for name in parquet.schema_arrow.names if name in names]
            if source.text_column not in here:
                raise _no_column(file, source, parquet.schema_arrow.names)
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS, columns=here, use_threads=False):
                columns = _named(pa.Table.from_batches([batch]), names)
                text = columns["text"]
                if "problem" not in columns and text.null_count:
                    columns["problem"] = pc.if_else(text.is_null(), NO_TEXT, None)
                rows = batch.num_rows
                yield raw_batch(file, rows, index=np.arange(index, index + rows), **columns)
                index += rows
        except (OSError, pa.ArrowException) as error:
            yield _problem(file, BROKEN_FILE, str(error).encode(), index)


def read_csv(file: SourceFile, source: SourceConfig) -> Iterator[pa.RecordBatch]:
    """CSV or TSV with a header line; quoted fields may hold line ends. The whole file is in memory."""
    pieces: list[bytes] = []
    cut = False
    try:
        pieces.extend(blocks(file.path))
    except BrokenStreamError:
        cut = True
    data = b"".join(pieces).removeprefix(b"\xef\xbb\xbf")
    if cut:
        data = data[: data.rfind(b"\n") + 1]
    delimiter = "\t" if file.form == "tsv" else ","
    header = next(csv.reader(io.StringIO(data.partition(b"\n")[0].decode("utf-8", "replace")), delimiter=delimiter), [])
    names = {column: name for column, name in _names(source).items() if column in header}
    if data and source.text_column not in names:
        raise _no_column(file, source, header)
    bad: dict[int, bytes] = {}

    def skip(row: pacsv.InvalidRow) -> str:
        bad[row.number - 2] = row.text.encode()  # numbered from 1, the header included
        return "skip"

    rows = 0
    try:
        if data:
            table = pacsv.read_csv(
                pa.BufferReader(data),
                read_options=pacsv.ReadOptions(use_threads=False, block_size=min(len(data) + 1, 1 << 30)),
                parse_options=pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
                convert_options=pacsv.ConvertOptions(
                    include_columns=list(names),
                    column_types={column: pa.large_binary() if name == "text" else pa.string() for column, name in names.items()},
                ),
            )
            rows = table.num_rows
            good = np.setdiff1d(np.arange(rows + len(bad)), np.fromiter(bad, np.int64, len(bad)))
            for first in range(0, rows, BATCH_ROWS):
                piece = table.slice(first, BATCH_ROWS)
                yield raw_batch(file, piece.num_rows, index=good[first : first + piece.num_rows], **_named(piece, names))
    except pa.ArrowException as error:
        yield _problem(file, BROKEN_FILE, str(error).encode())
    for number in sorted(bad):
        yield _problem(file, BROKEN_ROW, bad[number], number)
    if cut:
        yield _problem(file, CUT_FILE, b"", rows + len(bad))


def _no_column(file: SourceFile, source: SourceConfig, names: Sequence[str]) -> StageFailedError:
    return StageFailedError(
        f"there is no column {source.text_column!r}; there are {', '.join(map(repr, names[:20]))}",
        where=file.path,
        fix=f"set text_column of source {source.name!r} to the column that holds the text",
    )


READERS: dict[str, Callable[[SourceFile, SourceConfig], Iterator[pa.RecordBatch]]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "tsv": read_csv,
    "parquet": read_parquet,
}
