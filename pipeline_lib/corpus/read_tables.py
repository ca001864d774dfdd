"""Parquet and Arrow files, a few thousand rows at a time; a part that cannot be read is one problem, the next goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.config.data import SourceConfig
from pipeline_lib.corpus.files import SourceFile
from pipeline_lib.corpus.raw import (
    BATCH_ROWS,
    BOMB,
    BROKEN_FILE,
    BROKEN_GROUP,
    named_columns,
    names_of,
    need_text_column,
    problem_row,
    problem_rows,
    raw_batch,
)
from pipeline_lib.corpus.streams import HARMLESS, Caps

_BATCH_BYTES = 32 << 20
_BROKEN = (OSError, ValueError, pa.ArrowException)


def read_parquet(file: SourceFile, source: SourceConfig, caps: Caps, longest: int) -> Iterator[pa.RecordBatch]:
    """The row groups `start` to `stop` of a file; `first` is the number of the first row."""
    names = names_of(source)
    index = file.first
    with Path(file.path).open("rb") as raw:
        try:
            parquet = pq.ParquetFile(raw)
        except _BROKEN as error:
            yield problem_row(file, BROKEN_FILE, str(error).encode())
            return
        need_text_column(file, source, parquet.schema_arrow.names)
        here = [name for name in parquet.schema_arrow.names if name in names]
        stop = parquet.num_row_groups if file.stop < 0 else file.stop
        for group in range(file.start, stop):
            facts = parquet.metadata.row_group(group)
            columns = [facts.column(number) for number in range(facts.num_columns)]
            wide = [c.total_uncompressed_size for c in columns if c.path_in_schema.partition(".")[0] in here]
            packed = sum(c.total_compressed_size for c in columns)
            if sum(wide) > min(max(HARMLESS, caps.ratio * packed), caps.size):
                yield problem_row(file, BOMB, b"", index)
                index += facts.num_rows
                continue
            rows = max(1, min(BATCH_ROWS, int(_BATCH_BYTES * facts.num_rows / max(sum(wide), 1))))
            done = 0
            try:
                for batch in parquet.iter_batches(batch_size=rows, row_groups=[group], columns=here, use_threads=False):
                    if batch.num_rows:
                        yield _batch(file, source, batch, index + done)
                    done += batch.num_rows
            except _BROKEN as error:
                lost = min(facts.num_rows - done, max(packed, 1))  # a footer that lies: a row has a byte at least
                yield from problem_rows(file, BROKEN_GROUP, str(error).encode(), index + done, lost)
            index += facts.num_rows


def read_arrow(file: SourceFile, source: SourceConfig, caps: Caps, longest: int) -> Iterator[pa.RecordBatch]:
    """Arrow IPC, file or stream. Nothing in it is trusted: offsets are checked before they are followed."""
    index = 0
    with Path(file.path).open("rb") as raw:
        seekable = raw.read(6) == b"ARROW1"
        raw.seek(0)
        try:
            reader = pa.ipc.open_file(raw) if seekable else pa.ipc.open_stream(raw)
        except _BROKEN as error:
            yield problem_row(file, BROKEN_FILE, str(error).encode())
            return
        need_text_column(file, source, reader.schema.names)
        here = [name for name in dict.fromkeys(reader.schema.names) if name in names_of(source)]
        number = 0
        while not seekable or number < reader.num_record_batches:
            try:
                batch = reader.get_batch(number) if seekable else reader.read_next_batch()
                batch = batch.select(here)
                batch.validate(full=True)
            except StopIteration:
                return
            except _BROKEN as error:
                yield problem_row(file, BROKEN_GROUP, str(error).encode(), index)
                if not seekable:
                    return
            else:
                for at in range(0, batch.num_rows, BATCH_ROWS):
                    piece = batch.slice(at, BATCH_ROWS)
                    yield _batch(file, source, piece, index)
                    index += piece.num_rows
            number += 1


def _batch(file: SourceFile, source: SourceConfig, batch: pa.RecordBatch, index: int) -> pa.RecordBatch:
    rows = batch.num_rows
    return raw_batch(file, rows, index=np.arange(index, index + rows), **named_columns(batch, source))
