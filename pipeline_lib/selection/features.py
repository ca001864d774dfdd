"""What a document is about, as a vector: hashed words and word pairs under a random projection. No model, no download.

Each distinct word and word pair of a document's beginning adds a vector of 64 random signs, namely the bits of its hash (a sign
random projection of the n-gram counts: Achlioptas 2003). Two documents' cosine then estimates how much vocabulary they share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.dedup.kernels import first_words
from pipeline_lib.dedup.texts import read_texts
from pipeline_lib.selection import kernels
from pipeline_lib.tables.ids import id_column
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import DOC_ID

DIMENSIONS = 64  # the bits of a hash
FIRST_WORDS = 1000  # a document's beginning tells its topic; the cost of a document is bounded
UNIT = 1024.0  # length of a normalised vector: inner products fit 32 bits

FEATURES = pa.schema(
    [
        pa.field("doc_id", DOC_ID),
        pa.field("text_hash", DOC_ID),  # tells a later night whether the text changed under the same id
        pa.field("vector", pa.list_(pa.int16(), DIMENSIONS)),
    ]
)


def measure_file(item: tuple[str, str], folder: Path) -> dict[str, Any]:
    """Shard work: write `features.parquet` of one documents file (path, digest)."""
    tables = []
    for texts in read_texts(Path(item[0])):
        words = np.empty((len(texts), FIRST_WORDS), dtype=np.uint64)
        counts = np.empty(len(texts), dtype=np.int64)
        first_words(texts.data, texts.offsets, words, counts)
        vectors = np.empty((len(texts), DIMENSIONS), dtype=np.int16)
        kernels.project(words, counts, vectors)
        tables.append((id_column(texts.ids), pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), DIMENSIONS)))
    hashes = pq.read_table(item[0], columns=["text_hash"])["text_hash"]
    ids = pa.chunked_array([ids for ids, _ in tables], type=DOC_ID)
    vectors_column = pa.chunked_array([column for _, column in tables], type=FEATURES.field("vector").type)
    rows = write_table(pa.table([ids, hashes, vectors_column], schema=FEATURES), folder / "features.parquet")
    return {"documents": rows}


def vectors_of(column: pa.ChunkedArray) -> NDArray[np.int16]:
    """The vector column as [documents, 64]."""
    parts = [chunk.flatten().to_numpy() for chunk in column.chunks]
    flat = np.concatenate(parts) if parts else np.empty(0, dtype=np.int16)
    return np.asarray(flat, dtype=np.int16).reshape(-1, DIMENSIONS)


def normalised(vectors: NDArray[np.int16]) -> NDArray[np.int16]:
    """Vectors of length `UNIT`.

    The mean is not taken out: where one topic is most of a domain, the others would all point away from it and look alike. Only
    whole-number sums and single correctly rounded operations are used: the result is the same on every machine.
    """
    whole = vectors.astype(np.int64)
    norms = np.sqrt((whole * whole).sum(axis=1).astype(np.float64))
    scaled: NDArray[np.int16] = np.rint(whole / np.maximum(norms, 1.0)[:, None] * UNIT).astype(np.int16)
    return scaled
