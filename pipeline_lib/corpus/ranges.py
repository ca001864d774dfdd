"""Large files in ranges that are read as shards of their own: JSON lines cut at line ends, Parquet at row groups.

A range of lines is known by its own bytes, so what is appended to a file leaves the ranges before it as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from blake3 import blake3

from pipeline_lib.corpus.files import SourceFile
from pipeline_lib.corpus.streams import is_compressed, is_remote
from pipeline_lib.workspace.identity import bytes_digest

RANGE_BYTES = 64 << 20
_BLOCK = 1 << 20


def ranges(file: SourceFile) -> list[SourceFile]:
    """A file as the ranges it is read in; itself where it is small, compressed, remote or of another form."""
    if file.size < 2 * RANGE_BYTES or is_remote(file.path):
        return [file]
    if file.form == "jsonl" and not is_compressed(file.path):
        return list(_lines(file))
    if file.form == "parquet":
        return _row_groups(file)
    return [file]


def _lines(file: SourceFile) -> Iterator[SourceFile]:
    """Ranges that end with the first line end from a multiple of `RANGE_BYTES` on; read in blocks, so that memory stays small."""
    with Path(file.path).open("rb") as raw:
        start = first = 0
        while block := raw.read(_BLOCK):
            hasher, lines, at = blake3(), 0, start
            while block:
                if at + len(block) >= start + RANGE_BYTES:
                    end = block.find(b"\n", max(start + RANGE_BYTES - at - 1, 0)) + 1
                    block = block[: end or len(block)]
                hasher.update(block)
                lines += block.count(b"\n")
                at += len(block)
                if at - start >= RANGE_BYTES and block.endswith(b"\n"):
                    break
                block = raw.read(_BLOCK)
            raw.seek(at)
            digest = str(hasher.hexdigest())
            yield replace(file, digest=digest, size=at - start, start=start, stop=at, first=first)
            start, first = at, first + lines


def _row_groups(file: SourceFile) -> list[SourceFile]:
    """Ranges of row groups; their digest names the file's and the groups, so any change of the file reads all of them again."""
    try:
        metadata = pq.ParquetFile(file.path).metadata
    except (OSError, pa.ArrowException):
        return [file]  # the reader says what is wrong
    found: list[SourceFile] = []
    start = first = rows = size = 0
    for group in range(metadata.num_row_groups):
        facts = metadata.row_group(group)
        rows, size = rows + facts.num_rows, size + facts.total_byte_size
        if size >= RANGE_BYTES or group == metadata.num_row_groups - 1:
            digest = bytes_digest(f"{file.digest} {start} {group + 1}".encode())
            found.append(replace(file, digest=digest, size=size, start=start, stop=group + 1, first=first))
            start, first, size = group + 1, rows, 0
    return found or [file]
