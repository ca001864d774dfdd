"""Files become batches of raw records: every record is one row, a record that cannot be read is a row with its problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline_lib.config.data import SourceConfig
from pipeline_lib.corpus.files import SourceFile
from pipeline_lib.corpus.public_web import fetched
from pipeline_lib.corpus.raw import EMPTY_FILE, one_batch, problem_row
from pipeline_lib.corpus.read_csv import read_csv
from pipeline_lib.corpus.read_json import read_json, read_jsonl
from pipeline_lib.corpus.read_tables import read_arrow, read_parquet
from pipeline_lib.corpus.read_texts import NOT_READ, read_split, whole_file
from pipeline_lib.corpus.read_warc import read_warc
from pipeline_lib.corpus.records import BOM
from pipeline_lib.corpus.sources import Part
from pipeline_lib.corpus.streams import BrokenStreamError, blocks

_WHOLE_ROWS, _WHOLE_BYTES = 8192, 32 << 20  # of a batch of files that are a document each
_MAGIC = ((b"PAR1", "parquet"), (b"ARROW1", "arrow"), (b"\xff\xff\xff\xff", "arrow"), (b"WARC/1.", "warc"))

Reader = Callable[..., Iterator[pa.RecordBatch]]
"""(file, source, caps, longest text in bytes) → batches of `RAW`."""

READERS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "warc": read_warc,
    "split": read_split,
}
"""Form of a file → its reader. Any other form is one document a file."""


def read_files(part: Part, folder: Path) -> Iterator[pa.RecordBatch]:
    """All records of a part's files, in order, as batches of `RAW`.

    Args:
        part: what to read.
        folder: where remote files are copied to while they are read.

    Raises:
        StageFailedError: a file changes while it is read, cannot be fetched, or lacks the column of the text.
    """
    whole: list[dict[str, Any]] = []
    size = 0
    for file in part.files:
        with fetched(file, part.caps.size, folder) as here:
            form = _form(here, part.source)
            reader = READERS.get(form)
            if whole and (reader or len(whole) >= _WHOLE_ROWS or size > _WHOLE_BYTES):
                yield one_batch(whole)
                whole, size = [], 0
            if form not in NOT_READ and not Path(here.path).stat().st_size:
                yield problem_row(here, EMPTY_FILE, b"")
            elif reader:
                yield from reader(replace(here, form=form), part.source, part.caps, part.max_document_bytes)
            else:
                whole.append(whole_file(replace(here, form=form), part.caps, part.max_document_bytes))
                size += len(whole[-1]["text"] or b"")
            here.check()
    if whole:
        yield one_batch(whole)


def _form(file: SourceFile, source: SourceConfig) -> str:
    form = file.form
    if form in {"sniff", "json"}:
        form = _sniffed(file, form)
    return "split" if form == "text" and source.split_text != "no" else form


def _sniffed(file: SourceFile, form: str) -> str:
    """What the first bytes say. JSON lines are told from other JSON by lines that are objects."""
    try:
        start = next(blocks(file.path, 1 << 16), b"").removeprefix(BOM)
    except BrokenStreamError:
        return "text" if form == "sniff" else "jsonl"
    for magic, told in _MAGIC:
        if form == "sniff" and start.startswith(magic):
            return told
    stripped = start.lstrip()
    if stripped[:1] == b"[":
        return "json"
    if form == "json" or stripped[:1] == b"{":
        lines = [line.strip() for line in stripped.splitlines()[:20] if line.strip()]
        objects = sum(line.startswith(b"{") and line.endswith(b"}") for line in lines)
        return "jsonl" if 2 * objects >= len(lines) or len(lines) == 1 else "json"
    return "html" if stripped[:14].lower().startswith((b"<!doctype html", b"<html")) else "text"
