"""The near-duplicate index (table `bands`): a row a document and a column a band, made file by file.

A file of documents is a segment: row `i` of it is row `i` of the documents file, with its id. A new file costs only itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.config.data import DedupConfig
from pipeline_lib.dedup import kernels
from pipeline_lib.dedup.shingles import Shingles
from pipeline_lib.dedup.texts import Texts, read_texts
from pipeline_lib.tables.ids import Ids, id_column, ids_of
from pipeline_lib.tables.schemas import BANDS

CONSTANTS_SEED = 128  # of the MinHash functions: part of the index format, never of a run
Columns = Sequence[NDArray[np.uint64]]
ROW_GROUP = 65_536  # documents whose hashes are held while they are made: 11 MB at 21 bands


def constants(count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Multipliers (odd) and addends of the first `count` MinHash functions; every prefix is the same."""
    drawn = np.random.PCG64(CONSTANTS_SEED).random_raw(2 * count).reshape(-1, 2)
    multipliers, addends = np.ascontiguousarray(drawn.T)
    return multipliers | np.uint64(1), addends


def proposal_probability(similarity: float, bands: int, rows: int) -> float:
    """P(a pair of this Jaccard similarity shares a band) = 1 − (1 − s^rows)^bands (Leskovec, Rajaraman & Ullman, ch. 3)."""
    return float(1.0 - (1.0 - similarity**rows) ** bands)


def suggested_bands(threshold: float, least: float, values: int = 128) -> tuple[int, int]:
    """(bands, rows) with the most rows, so the fewest needless proposals, that propose `least` of the pairs at the threshold."""
    for rows in range(min(values, 32), 0, -1):
        bands = values // rows
        if proposal_probability(threshold, bands, rows) >= least:
            return bands, rows
    return values, 1


def band_hashes(texts: Texts, config: DedupConfig) -> NDArray[np.uint64]:
    """Band hashes [bands, documents]; 0 where a document has no shingle."""
    hashes = np.empty((config.bands, len(texts)), dtype=np.uint64)
    shingles = Shingles.of(config)
    a, b = constants(config.bands * config.rows)
    kernels.band_hashes(texts.data, texts.offsets, shingles.width, shingles.characters, config.bands, config.rows, a, b, hashes)
    return hashes


def bands_schema(bands: int) -> pa.Schema:
    """The table `bands`: doc_id and a column a band."""
    return pa.schema([*BANDS, *(pa.field(_column(band), pa.uint64()) for band in range(bands))])


def _column(band: int) -> str:
    return f"band_{band:03}"


def index_file(item: tuple[str, str], folder: Path, *, config: DedupConfig) -> dict[str, Any]:
    """Shard work: write `bands.parquet` of one documents file (path, digest). Returns documents and bytes of text."""
    schema = bands_schema(config.bands)
    counted = {"documents": 0, "bytes": 0}
    ids: list[Ids] = []
    hashes: list[NDArray[np.uint64]] = []
    # random numbers: a dictionary or a compressor would only cost time
    with pq.ParquetWriter(folder / "bands.parquet", schema, compression="none", use_dictionary=False) as writer:

        def flush() -> None:
            columns = np.concatenate(hashes, axis=1)
            writer.write_batch(pa.record_batch([id_column(np.concatenate(ids)), *map(pa.array, columns)], schema=schema))
            ids.clear()
            hashes.clear()

        for texts in read_texts(Path(item[0])):
            ids.append(texts.ids)
            hashes.append(band_hashes(texts, config))
            counted["documents"] += len(texts)
            counted["bytes"] += int(texts.offsets[-1] - texts.offsets[0])
            if sum(map(len, ids)) >= ROW_GROUP:
                flush()
        if ids:
            flush()
    return counted


@dataclass(frozen=True)
class Index:
    """A chain of segments; documents are numbered through them, in order."""

    files: Sequence[Path]
    bands: int

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Number of the first document of each segment, and at the end the number of documents."""
        return np.concatenate([[0], np.cumsum([metadata.num_rows for metadata in self._metadata])]).astype(np.int64)

    @cached_property
    def _metadata(self) -> list[pq.FileMetaData]:
        return [pq.read_metadata(path) for path in self.files]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def pieces(self, bands: Sequence[int], numbers: NDArray[np.int64] | None = None) -> Iterator[tuple[int, Columns]]:
        """Hashes in pieces of some ten thousand documents: number of the first document, a column a band.

        Args:
            bands: which ones.
            numbers: ascending; pieces without any of these documents are left out.
        """
        columns = [_column(band) for band in bands]
        for path, metadata, start in zip(self.files, self._metadata, self.starts, strict=False):
            first = int(start)
            with pq.ParquetFile(path, metadata=metadata, memory_map=True) as file:
                for group in range(metadata.num_row_groups):
                    after = first + metadata.row_group(group).num_rows
                    if numbers is None or np.searchsorted(numbers, first) < np.searchsorted(numbers, after):
                        table = file.read_row_group(group, columns=columns, use_threads=False)
                        yield first, [column.to_numpy() for column in table.columns]
                    first = after

    def ids(self) -> Ids:
        """Ids of all documents, 16 bytes each."""
        parts = [ids_of(pq.read_table(path, columns=["doc_id"], use_threads=False)["doc_id"]) for path in self.files]
        return np.concatenate(parts) if parts else np.empty(0, dtype="S16")


@dataclass(frozen=True)
class Hashes:
    """An index of hashes in memory, [bands, documents]."""

    hashes: NDArray[np.uint64]

    @property
    def bands(self) -> int:
        """Number of bands."""
        return int(self.hashes.shape[0])

    def __len__(self) -> int:
        return int(self.hashes.shape[1])

    def pieces(self, bands: Sequence[int], numbers: NDArray[np.int64] | None = None) -> Iterator[tuple[int, Columns]]:
        """One piece: see `Index.pieces`."""
        yield 0, [self.hashes[band] for band in bands]
