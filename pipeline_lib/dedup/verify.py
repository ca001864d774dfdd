"""Exact similarity of candidate pairs. MinHash only proposes: what is a duplicate is decided on the shingles of the texts.

Every text of a pair is read once, file by file; its sorted shingle hashes go to a scratch file. Pairs are then looked at in
blocks of bounded size, those of connected documents together, so that each set is fetched about once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.dedup import kernels
from pipeline_lib.dedup.shingles import Shingles
from pipeline_lib.workspace.services import Mapper, thread_mapper

BLOCK_HASHES = 8 << 20  # shingles of one block of pairs: 64 MiB, and as much of the scratch file in memory
PART_ROWS = 1 << 18  # documents of a file that one worker reads, in whole row groups
BATCH_ROWS = 4096
Numbers = NDArray[np.int64]


def distinct(count: int, *parts: Numbers) -> tuple[Numbers, Numbers]:
    """The document numbers (below `count`) that occur, ascending; and the place of each number among them.

    Memory: 9 bytes a document; no sorting, so it does not matter how many numbers there are.
    """
    there = np.zeros(count, dtype=bool)
    for part in parts:
        there[part] = True
    return np.flatnonzero(there), np.cumsum(there) - 1


@dataclass(frozen=True)
class Place:
    """Where each of some documents lies: file and row in it."""

    files: Sequence[Path]
    file: Numbers
    row: Numbers

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Part:
    """Documents of one file in a run of row groups: rows (ascending) from the first row of the first group."""

    path: Path
    groups: tuple[int, ...]
    rows: Numbers


@dataclass(frozen=True)
class Sets:
    """Shingle sets on disk: set `i` is `size[i]` numbers of file `file[i]`, from place `start[i]`."""

    files: Sequence[Path]
    file: Numbers
    start: Numbers
    size: Numbers

    def fetch(self, wanted: Numbers) -> tuple[NDArray[np.uint64], Numbers]:
        """The wanted sets, one behind the other, and their bounds."""
        bounds = np.concatenate([[0], np.cumsum(self.size[wanted])])
        out = np.empty(int(bounds[-1]), dtype=np.uint64)
        for file in np.unique(self.file[wanted]):
            inside = np.flatnonzero(self.file[wanted] == file)
            stored = np.memmap(self.files[file], dtype=np.uint64, mode="r")
            kernels.copy_runs(stored, self.start[wanted[inside]], self.size[wanted[inside]], out, bounds[inside])
        return out, bounds


def similarities(
    left: Numbers,
    right: Numbers,
    place: Place,
    shingles: Shingles,
    *,
    mapper: Mapper | None = None,
    scratch: Path | None = None,
    block_hashes: int = BLOCK_HASHES,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Jaccard |A∩B| / |A∪B| and containment |A∩B| / min(|A|, |B|) of the shingle sets of each pair.

    Args:
        left: document numbers, indices into `place`.
        right: document numbers.
        place: where the texts are.
        shingles: what is compared.
        mapper: applies a function to items, perhaps with several workers.
        scratch: a folder for 8 bytes a shingle of the documents of pairs; a temporary one when not given.
        block_hashes: shingles held at once by a worker (the two documents of one pair may have more).
    """
    apply = mapper or thread_mapper(1)
    with tempfile.TemporaryDirectory(prefix="shingles-", dir=scratch) as folder:
        sets = _spill(distinct(len(place), left, right)[0], place, shingles, apply, Path(folder))
        blocks = list(_blocks(left, right, sets.size, block_hashes))
        found = apply(partial(_shared, sets), [(left[block], right[block]) for block in blocks])
    shared = np.zeros(len(left), dtype=np.int64)
    for block, numbers in zip(blocks, found, strict=True):
        shared[block] = numbers
    small, large = (choose(sets.size[left], sets.size[right]) for choose in (np.minimum, np.maximum))
    return shared / np.maximum(small + large - shared, 1), shared / np.maximum(small, 1)


def _parts(wanted: Numbers, place: Place) -> Iterator[tuple[Numbers, Part]]:
    """The wanted documents by file and run of row groups."""
    ordered = wanted[np.lexsort((place.row[wanted], place.file[wanted]))]
    for file in np.unique(place.file[ordered]):
        inside = ordered[place.file[ordered] == file]
        metadata = pq.read_metadata(place.files[file])
        ends = np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
        runs = np.searchsorted(np.arange(PART_ROWS, ends[-1] + PART_ROWS, PART_ROWS), ends)  # run of each row group
        for run in np.unique(runs):
            groups = np.flatnonzero(runs == run)
            first = int(ends[groups[0] - 1]) if groups[0] else 0
            low, high = np.searchsorted(place.row[inside], [first, ends[groups[-1]]])
            if low < high:
                rows = place.row[inside[low:high]] - first
                yield inside[low:high], Part(place.files[file], tuple(groups.tolist()), rows)


def _spill(wanted: Numbers, place: Place, shingles: Shingles, apply: Mapper, folder: Path) -> Sets:
    parts = list(_parts(wanted, place))
    tasks = [(part, folder / f"{number}.u64") for number, (_, part) in enumerate(parts)]
    sizes = apply(partial(_write_sets, shingles), tasks)
    file, start, size = (np.zeros(len(place), dtype=np.int64) for _ in range(3))
    for number, ((documents, _), counts) in enumerate(zip(parts, sizes, strict=True)):
        file[documents], size[documents] = number, counts
        start[documents] = np.cumsum(counts) - counts
    return Sets([path for _, path in tasks], file, start, size)


def _write_sets(shingles: Shingles, task: tuple[Part, Path]) -> Numbers:
    """Write the sets of a part's documents; returns their sizes."""
    part, path = task
    sizes, at = [], 0
    with pq.ParquetFile(part.path) as file, path.open("wb") as out:
        for batch in file.iter_batches(BATCH_ROWS, row_groups=list(part.groups), columns=["text"], use_threads=False):
            low, high = np.searchsorted(part.rows, [at, at + batch.num_rows])
            if low < high:
                texts = batch.column("text")
                if high - low < len(texts):
                    texts = texts.take(pa.array(part.rows[low:high] - at))
                hashes, bounds = shingles.sets(texts)
                out.write(hashes.data)
                sizes.append(np.diff(bounds))
            at += batch.num_rows
        if not out.tell():
            out.write(bytes(8))  # an empty file cannot be mapped
    return np.concatenate(sizes)


def _blocks(left: Numbers, right: Numbers, size: Numbers, limit: int) -> Iterator[Numbers]:
    """Pairs in blocks whose sets stay below `limit` together (one pair may have more), connected documents together."""
    root = np.arange(len(size), dtype=np.int64)
    kernels.components(left, right, root)
    order = np.lexsort((right, left, root[left]))
    total = np.empty(len(order), dtype=np.int64)
    kernels.running_need(left, right, order, size, total)
    marks = np.arange(limit, int(total[-1]) + limit, limit) if len(total) else total
    waiting = [block for block in reversed(np.split(order, np.searchsorted(total, marks, side="right"))) if len(block)]
    while waiting:
        block = waiting.pop()
        if (
            len(block) > 1 and size[distinct(len(size), left[block], right[block])[0]].sum() > 2 * limit
        ):  # sets that earlier blocks need, too, are not counted above
            waiting += [block[len(block) // 2 :], block[: len(block) // 2]]
        else:
            yield block


def _shared(sets: Sets, block: tuple[Numbers, Numbers]) -> Numbers:
    """Shingles that both documents of each pair have."""
    left, right = block
    needed, place = distinct(len(sets.size), left, right)
    hashes, bounds = sets.fetch(needed)
    out = np.empty(len(left), dtype=np.int64)
    kernels.shared_shingles(hashes, bounds, place[left], place[right], out)
    return out
