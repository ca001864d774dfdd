"""Sources of kind module: an extension's Python function yields record batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from blake3 import blake3

from pipeline_lib.config.data import SourceConfig
from pipeline_lib.corpus.files import PART_BYTES, SourceFile, local_file
from pipeline_lib.errors import MillraceError, StageFailedError
from pipeline_lib.extensions import extension
from pipeline_lib.tables.parquet import write_table


def batches(source: SourceConfig) -> Iterator[pa.RecordBatch]:
    """What the function registered under the source's name yields.

    Raises:
        StageFailedError: it raises, or yields something else. Its own `MillraceError`s are passed on.
    """
    function = extension("source", source.name)
    try:
        for batch in function(source):
            if not isinstance(batch, pa.RecordBatch):
                raise TypeError(f"yielded a {type(batch).__name__}, not a pyarrow.RecordBatch")
            yield batch
    except MillraceError:
        raise
    except Exception as error:
        raise StageFailedError(
            f"the extension raised {type(error).__name__}: {error}", where=f"source {source.name}", fix="mend the module"
        ) from error


def module_digest(source: SourceConfig) -> str:
    """Digest of everything the function yields."""
    hasher = blake3()
    for batch in batches(source):
        hasher.update(batch.serialize())
    return str(hasher.hexdigest())


def module_files(source: SourceConfig, folder: Path) -> list[SourceFile]:
    """Write what `batches` yields into Parquet files of some megabytes, in order, and list them."""
    files: list[SourceFile] = []
    waiting: list[pa.RecordBatch] = []

    def flush() -> None:
        name = f"{source.name}-{len(files):06d}.parquet"
        write_table(pa.Table.from_batches(waiting), folder / name)
        files.append(local_file(folder / name, name))
        waiting.clear()

    for batch in batches(source):
        if waiting and (batch.schema != waiting[0].schema or sum(b.nbytes for b in waiting) >= PART_BYTES):
            flush()
        waiting.append(batch)
    if waiting:
        flush()
    return files
