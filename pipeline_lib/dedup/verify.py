"""Exact similarity of candidate pairs. MinHash only proposes: what is a duplicate is decided on the shingles of the texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.dedup import kernels
from pipeline_lib.dedup.texts import buffers_of

BLOCK_BYTES = 256 * 2**20  # text whose shingles are held at once: about 350 MB of hashes for English


@dataclass(frozen=True)
class Place:
    """Where each document number lies: file and row in it."""

    files: Sequence[Path]
    file: NDArray[np.int64]
    row: NDArray[np.int64]
    size: NDArray[np.int64]  # bytes of text

    def texts(self, numbers: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], pa.Array]]:
        """Text of documents, row group by row group: (their numbers, a string column)."""
        for f in np.unique(self.file[numbers]):
            wanted = numbers[self.file[numbers] == f]
            wanted = wanted[np.argsort(self.row[wanted])]
            rows, first = self.row[wanted], 0
            with pq.ParquetFile(self.files[f]) as file:
                for group in range(file.num_row_groups):
                    last = first + file.metadata.row_group(group).num_rows
                    low, high = np.searchsorted(rows, [first, last])
                    if low < high:
                        column = file.read_row_group(group, columns=["text"]).column("text").combine_chunks()
                        yield wanted[low:high], column.take(pa.array(rows[low:high] - first))
                    first = last


def _blocks(left: NDArray[np.int64], right: NDArray[np.int64], size: NDArray[np.int64], limit: int) -> Iterator[slice]:
    """Runs of pairs whose texts stay below `limit` bytes together (one pair may be larger)."""
    if not len(left):
        return
    fresh = np.concatenate([[True], left[1:] != left[:-1]])
    total = np.cumsum(size[right] + np.where(fresh, size[left], 0))
    start = 0
    while start < len(left):
        base = int(total[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(total, base + limit, side="right")))
        yield slice(start, end)
        start = end


def similarities(
    left: NDArray[np.int64], right: NDArray[np.int64], place: Place, width: int, *, block_bytes: int = BLOCK_BYTES
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Jaccard |A∩B| / |A∪B| and containment |A∩B| / min(|A|, |B|) of the shingle sets of each pair, ordered by `left`.

    Args:
        left: document numbers.
        right: document numbers.
        place: where the texts are.
        width: words in a shingle.
        block_bytes: text held at once.
    """
    shared = np.zeros(len(left), dtype=np.int64)
    sizes = np.zeros((2, len(left)), dtype=np.int64)
    for block in _blocks(left, right, place.size, block_bytes):
        numbers = np.unique(np.concatenate([left[block], right[block]]))
        hashes, known, counts = [], [], []
        for some, column in place.texts(numbers):
            data, offsets = buffers_of(column)
            out = np.empty(int(offsets[-1] - offsets[0]) // 2 + len(some) + 1, dtype=np.uint64)
            bounds = np.empty(len(some) + 1, dtype=np.int64)
            used = kernels.shingle_sets(data, offsets, width, out, bounds)
            hashes.append(out[:used].copy())
            counts.append(np.diff(bounds))
            known.append(some)
        of = np.concatenate(known)
        lengths = np.concatenate(counts)
        bounds = np.concatenate([[0], np.cumsum(lengths)])
        by_number = np.argsort(of)
        a = by_number[np.searchsorted(of, left[block], sorter=by_number)]
        b = by_number[np.searchsorted(of, right[block], sorter=by_number)]
        kernels.shared_shingles(np.concatenate(hashes), bounds, a, b, shared[block])
        sizes[0, block], sizes[1, block] = lengths[a], lengths[b]
    union = sizes.sum(axis=0) - shared
    return shared / np.maximum(union, 1), shared / np.maximum(sizes.min(axis=0), 1)
