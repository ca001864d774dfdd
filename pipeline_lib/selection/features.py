"""What a document is about, as a vector: hashed words and word pairs under a random projection. No model, no download.

Each distinct word and word pair of a document's beginning adds a vector of 64 random signs, namely the bits of its hash (a sign
random projection of the n-gram set: Achlioptas 2003). Two documents' cosine then estimates how much vocabulary they share; its
error is about 1/8. The mean is not taken out: where one topic is most of a domain, the others would all point away from it and
look alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.dedup.texts import buffers_of
from pipeline_lib.selection import kernels
from pipeline_lib.tables.parquet import read_tables, write_table
from pipeline_lib.tables.schemas import DOC_ID

DIMENSIONS = 64  # the bits of a hash
FIRST_WORDS = 1000  # a document's beginning tells its topic; the cost of a document is bounded
UNIT = 256.0  # length of a vector: its components, at most 127, are rounded to an error of a thousandth
PIECE_ROWS = 4096  # documents read at once

FEATURES = pa.schema(
    [
        pa.field("doc_id", DOC_ID),
        pa.field("text_hash", DOC_ID),  # tells a later night whether the text changed under the same id
        pa.field("vector", pa.binary(DIMENSIONS)),  # 64 int8, of length 256; zeros without a word
    ]
)


def measure_file(item: tuple[str, str], folder: Path) -> dict[str, Any]:
    """Shard work: write `features.parquet` of one documents file (path, digest)."""
    batches = []
    with pq.ParquetFile(item[0]) as file:  # one thread: the workers are the parallel ones
        for batch in file.iter_batches(batch_size=PIECE_ROWS, columns=["doc_id", "text_hash", "text"], use_threads=False):
            data, offsets = buffers_of(batch.column("text"))
            vectors = np.empty((batch.num_rows, DIMENSIONS), dtype=np.int8)
            kernels.project(data, offsets, FIRST_WORDS, UNIT, vectors)
            column = pa.Array.from_buffers(pa.binary(DIMENSIONS), batch.num_rows, [None, pa.py_buffer(vectors)])
            batches.append(pa.record_batch([batch.column("doc_id"), batch.column("text_hash"), column], schema=FEATURES))
    rows = write_table(pa.Table.from_batches(batches, schema=FEATURES), folder / "features.parquet")
    return {"documents": rows}


def read_vectors(files: list[Path]) -> NDArray[np.int8]:
    """The vectors of features files, one file after the other: [documents, 64] int8."""
    chunks = read_tables(files, ["vector"])["vector"].chunks if files else []
    parts = [
        np.frombuffer(chunk.buffers()[1], dtype=np.int8, count=len(chunk) * DIMENSIONS, offset=chunk.offset * DIMENSIONS)
        for chunk in chunks
        if len(chunk)
    ]
    flat = np.concatenate(parts) if parts else np.empty(0, dtype=np.int8)
    return flat.reshape(-1, DIMENSIONS)
