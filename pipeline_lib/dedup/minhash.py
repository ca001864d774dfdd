"""The near-duplicate index (table `bands`): a row a document and band, made file by file: a new file costs only itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.config.data import DedupConfig
from pipeline_lib.dedup import kernels
from pipeline_lib.dedup.texts import Texts, read_texts
from pipeline_lib.tables.ids import Ids, id_column
from pipeline_lib.tables.parquet import write_batches
from pipeline_lib.tables.schemas import BANDS

CONSTANTS_SEED = 128  # of the MinHash functions: part of the index format, never of a run


def constants(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Multipliers (odd) and addends of the first `count` MinHash functions; every prefix is the same."""
    drawn = np.random.PCG64(CONSTANTS_SEED).random_raw(2 * count).reshape(-1, 2)
    multipliers, addends = np.ascontiguousarray(drawn.T)
    return multipliers | np.uint64(1), addends


def proposal_probability(similarity: float, bands: int, rows: int) -> float:
    """P(a pair of this Jaccard similarity shares a band) = 1 − (1 − s^rows)^bands (Leskovec, Rajaraman & Ullman, ch. 3)."""
    return float(1.0 - (1.0 - similarity**rows) ** bands)


def band_table(texts: Texts, config: DedupConfig) -> tuple[NDArray[np.uint64], Ids]:
    """Band hashes [bands, documents with a word] and these documents' ids."""
    hashes = np.empty((config.bands, len(texts)), dtype=np.uint64)
    shingles = np.empty(len(texts), dtype=np.int64)
    a, b = constants(config.bands * config.rows)
    kernels.band_hashes(texts.data, texts.offsets, config.shingle_words, config.bands, config.rows, a, b, hashes, shingles)
    worded = shingles > 0
    return hashes[:, worded], texts.ids[worded]


def index_file(item: tuple[str, str], folder: Path, *, config: DedupConfig) -> dict[str, Any]:
    """Shard work: write `bands.parquet` of one documents file (path, digest), ordered by band. Returns documents and bytes."""
    parts, counted = [], {"documents": 0, "bytes": 0}
    for texts in read_texts(Path(item[0])):
        parts.append(band_table(texts, config))
        counted["documents"] += len(texts)
        counted["bytes"] += int(texts.offsets[-1] - texts.offsets[0])

    def batches() -> Iterator[pa.RecordBatch]:
        if not parts:
            return
        ids = id_column(np.concatenate([part[1] for part in parts]))
        for band in range(config.bands):  # a row group a band: a join over one band reads nothing else
            hashes = pa.array(np.concatenate([part[0][band] for part in parts]))
            number = pa.array(np.full(len(ids), band, dtype=np.int32))
            yield pa.record_batch([number, hashes, ids], schema=BANDS)

    write_batches(batches(), BANDS, folder / "bands.parquet")
    return counted
