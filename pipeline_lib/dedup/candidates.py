"""Candidate pairs: documents that share a band hash, joined by DuckDB one band at a time so that memory is bounded by a band.

A *bucket* is the documents with one hash in one band. Up to `limit` documents: all pairs of it are proposed. A larger one
- is split by the hashes of the next bands, up to `SPLITS` of them: parts up to a fifth of the limit give all their pairs.
  Boilerplate that many documents share falls apart in one step, because the rest of the documents has other hashes;
- and gives a star: each document with the best ranked one, which is the one that can remove the others.
What no further band tells apart is `cut`: those documents meet the best one of their part and no other, and the bucket's row says
how many they are.

Documents of a bucket over the limit are a *crowd*: they fill many buckets just below the limit in other bands. So a bucket that
is mostly crowd and larger than a fifth of the limit is split, too; and so are the largest when there are too many of them for
memory (`WHOLE_PAIRS`).

**Nights.** Proposed pairs are a function of the set of documents, bucket by bucket. So when documents are added to a set whose
pairs are known, only the buckets of the added ones and the large buckets (before or now) are looked at: `fresh` and `Known`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.dedup import kernels
from pipeline_lib.dedup.verify import distinct
from pipeline_lib.tables.duck import connect

PART = 5  # what of a crowd gives all its pairs is this many times smaller than the limit: it is there many times
WHOLE_PAIRS = 8 << 20  # of all buckets over a fifth of the limit together, each band counted: 200 MB while they are made
SPLITS = 3  # further bands; 100,000 documents of which half share a hash in each band are parts of 13,000 then
BLOCK_BYTES = 96 << 20  # of band hashes held at once: 12 bands of a million documents, one of ten million
JOIN_ROWS = 1 << 20  # of several bands together; a band alone may have more
MEMORY_GIB = 0.75  # for DuckDB; beyond it the join spills to disk
Numbers = NDArray[np.int64]
Ranks = Callable[[Numbers], tuple[Numbers, ...]]


class BandIndex(Protocol):
    """Band hashes of numbered documents: `minhash.Index` (files) or `minhash.Hashes` (memory)."""

    @property
    def bands(self) -> int:
        """Number of bands."""

    def __len__(self) -> int:
        """Number of documents."""

    def pieces(self, bands: Sequence[int], numbers: Numbers | None = None) -> Iterator[tuple[int, Sequence[NDArray[np.uint64]]]]:
        """Number of the first document of each piece, and hashes of its documents, a column a band; 0: no shingle.

        Pieces without any of the documents `numbers` (ascending) are left out.
        """


@dataclass(frozen=True)
class Buckets:
    """Buckets over a fifth of the limit, ordered by band and hash."""

    band: Numbers
    hash: NDArray[np.uint64]
    documents: Numbers
    cut: Numbers

    def __len__(self) -> int:
        return len(self.band)


@dataclass(frozen=True)
class Members:
    """Documents of these buckets: a row a band and document, ordered; and the hashes of these documents in all bands."""

    band: Numbers
    hash: NDArray[np.uint64]
    place: Numbers  # in `known`
    known: Numbers  # document numbers
    columns: NDArray[np.uint64]  # [bands, known]

    def places(self, numbers: Numbers) -> Numbers:
        """Where documents stand in `known`."""
        return np.searchsorted(self.known, numbers)

    def both(self, left: Numbers, right: Numbers) -> NDArray[np.bool_]:
        """Which pairs are pairs of these documents."""
        if not len(self.known):
            return np.zeros(len(left), dtype=bool)
        return np.asarray(np.isin(left, self.known) & np.isin(right, self.known))

    def equal_bands(self, left: Numbers, right: Numbers) -> Numbers:
        """In how many bands the documents of each pair have the same hash."""
        one, other = self.places(left), self.places(right)
        hit = np.zeros(len(left), dtype=np.int64)
        for column in self.columns if len(left) else ():
            hit += (column[one] == column[other]) & (column[one] != 0)
        return hit


@dataclass(frozen=True)
class Known:
    """What an earlier night found among the documents that are not fresh: its pairs and its large buckets."""

    left: Numbers
    right: Numbers
    bands_hit: NDArray[np.int32]
    buckets: Buckets


@dataclass(frozen=True)
class Candidates:
    """Proposed pairs (`left < right`, document numbers), ordered; and in how many bands the two documents have the same hash."""

    left: Numbers
    right: Numbers
    bands_hit: NDArray[np.int32]
    buckets: Buckets
    split: int  # buckets of which not all pairs are looked at


def _nothing_known() -> Known:
    none = np.empty(0, dtype=np.int64)
    return Known(none, none, none.astype(np.int32), no_buckets())


def no_buckets() -> Buckets:
    """None over the limit."""
    none = np.empty(0, dtype=np.int64)
    return Buckets(none, np.empty(0, dtype=np.uint64), none, none)


def propose(
    index: BandIndex,
    taking_part: NDArray[np.bool_],
    ranks: Ranks,
    limit: int,
    *,
    fresh: NDArray[np.bool_] | None = None,
    known: Known | None = None,
    threads: int = 1,
) -> Candidates:
    """Pairs of documents that share a bucket.

    Args:
        index: band hashes.
        taking_part: [documents] which ones are compared.
        ranks: places of given documents in orders of survivors, smaller is better; asked for large buckets only. The star of a
            bucket hangs on the best of each order.
        limit: documents in a bucket of which all pairs are proposed.
        fresh: [documents] those that `known` does not cover; without it, all.
        known: pairs among the others; those that are still proposed are in the result, too.
        threads: of DuckDB.

    Memory: of fresh documents the hashes of as many bands as fit `BLOCK_BYTES`, but one at least; 13 bytes a document beside it;
    DuckDB's limit; and 8 bytes a band for each document of a large bucket.
    """
    fresh = taking_part if fresh is None else taking_part & fresh
    earlier = known or _nothing_known()
    small = max(limit // PART, 2)
    large: list[dict[str, NDArray[Any]]] = []
    with connect(memory_gib=MEMORY_GIB, threads=threads) as db:
        db.execute("CREATE TABLE proposed (a UINTEGER, b UINTEGER)")
        db.register("before", pa.table({"band": earlier.buckets.band, "h": earlier.buckets.hash}))
        for rows in _joined_together(_rows(index, taking_part, fresh, earlier.buckets)):
            large.append(_join(db, rows, small))
        found = db.execute("SELECT a, b, count(*)::INTEGER AS n FROM proposed GROUP BY a, b ORDER BY a, b").fetchnumpy()
    members = _members(index, large)
    buckets, split, left, right = _split(members, ranks, limit, small)
    kept = _still_proposed(earlier, buckets, members)
    parts = [
        [np.asarray(found[name], dtype=np.int64) for name in ("a", "b", "n")],
        [earlier.left[kept], earlier.right[kept], earlier.bands_hit[kept].astype(np.int64)],
        [np.minimum(left, right), np.maximum(left, right), np.zeros(len(left), dtype=np.int64)],
    ]
    left, right, hit = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    left, right, hit = _once(left, right, hit)
    inside = members.both(left, right)  # these may meet in large buckets, too, which do not propose every pair
    hit[inside] = members.equal_bands(left[inside], right[inside])
    return Candidates(left, right, hit.astype(np.int32), buckets, split)


def _once(left: Numbers, right: Numbers, hit: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Each pair once, ordered, with its largest count."""
    code = (left << 32) | right
    order = np.lexsort((-hit, code))
    code = code[order]
    fresh = np.ones(len(code), dtype=bool)
    fresh[1:] = code[1:] != code[:-1]
    return code[fresh] >> 32, code[fresh] & 0xFFFFFFFF, hit[order][fresh]


def _blocks(index: BandIndex, documents: int) -> Iterator[range]:
    """Bands whose hashes of so many documents are held together."""
    size = max(1, BLOCK_BYTES // max(8 * documents, 1))
    yield from (range(first, min(first + size, index.bands)) for first in range(0, index.bands, size))


def _hashes(index: BandIndex, bands: range, numbers: Numbers) -> NDArray[np.uint64]:
    """Hashes of some documents (ascending numbers), [bands, numbers]."""
    out = np.empty((len(bands), len(numbers)), dtype=np.uint64)
    for first, columns in index.pieces(bands, numbers):
        low, high = np.searchsorted(numbers, [first, first + len(columns[0])])
        whole = high - low == len(columns[0])
        for place, column in enumerate(columns):
            out[place, low:high] = column if whole else column[numbers[low:high] - first]
    return out


def _rows(index: BandIndex, taking_part: NDArray[np.bool_], fresh: NDArray[np.bool_], before: Buckets) -> Iterator[pa.Table]:
    """What the join reads of each band: band, h, number, fresh.

    Of fresh documents and of all in buckets that were not small before; and of the others those that meet one of these. When all
    are fresh, those that may meet another.
    """
    new, old = np.flatnonzero(fresh), taking_part & ~fresh
    for bands in _blocks(index, len(new)):
        hashes = _hashes(index, bands, new)
        if not old.any():
            for band, column in zip(bands, hashes, strict=True):
                some = kernels.repeated(column)
                yield _table(band, column[some], new[some], fresh=True)
            continue
        known = [
            np.sort(np.concatenate([column, before.hash[before.band == band]]))
            for band, column in zip(bands, hashes, strict=True)
        ]
        for (band, column), met in zip(zip(bands, hashes, strict=True), _meeting(index, bands, known, old), strict=True):
            yield pa.concat_tables([_table(band, column, new, fresh=True), _table(band, *met, fresh=False)])


def _meeting(
    index: BandIndex, bands: range, known: Sequence[NDArray[np.uint64]], old: NDArray[np.bool_]
) -> list[tuple[NDArray[np.uint64], Numbers]]:
    """Hashes and numbers of old documents whose hash is among the known ones, for each band. Every piece is read once."""
    filters = [kernels.filter_of(hashes) for hashes in known]
    found: list[list[tuple[NDArray[np.uint64], Numbers]]] = [[] for _ in bands]
    for first, columns in index.pieces(bands, np.flatnonzero(old)):
        places = np.empty(len(columns[0]), dtype=np.int64)
        for column, hashes, bits, parts in zip(columns, known, filters, found, strict=True):
            some = places[: kernels.places_among(column, hashes, bits, places)]
            some = some[old[first + some]]
            parts.append((column[some], first + some))
    none = (np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int64))
    together = [tuple(zip(none, *parts, strict=True)) for parts in found]
    return [(np.concatenate(hashes), np.concatenate(numbers)) for hashes, numbers in together]


def _table(band: int, hashes: NDArray[np.uint64], numbers: Numbers, *, fresh: bool) -> pa.Table:
    there = hashes != 0
    hashes, numbers = hashes[there], numbers[there].astype(np.uint32)
    count = len(hashes)
    return pa.table({"band": np.full(count, band, np.int32), "h": hashes, "number": numbers, "fresh": np.full(count, fresh)})


def _joined_together(rows: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Bands of few rows in one table: a join of its own costs more than the rows."""
    waiting: list[pa.Table] = []
    for table in rows:
        if waiting and sum(map(len, waiting)) + len(table) > JOIN_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
        waiting.append(table)
    if waiting:
        yield pa.concat_tables(waiting)


def _members(index: BandIndex, large: list[dict[str, NDArray[Any]]]) -> Members:
    band, number = (
        np.concatenate([np.empty(0, dtype=np.int64), *(part[name].astype(np.int64) for part in large)])
        for name in ("band", "number")
    )
    hashes = np.concatenate([np.empty(0, dtype=np.uint64), *(part["h"] for part in large)])
    known, places = distinct(len(index), number)
    columns = np.empty((index.bands, len(known)), dtype=np.uint64)
    for bands in _blocks(index, len(known)) if len(known) else ():
        columns[bands.start : bands.stop] = _hashes(index, bands, known)
    return Members(band, hashes, places[number], known, columns)


def _join(db: duckdb.DuckDBPyConnection, rows: pa.Table, small: int) -> dict[str, NDArray[Any]]:
    """Propose the pairs of small buckets; returns band, h and number of the members of the others, ordered.

    Args:
        db: has the tables `proposed` (a, b) and `before` (band, h: buckets that were not small).
        rows: band, h, number, fresh.
        small: documents in a small bucket.
    """
    db.register("rows", rows)
    db.execute(
        """
        CREATE OR REPLACE TEMP TABLE member AS
        SELECT band, h, number, fresh, count(*) OVER (PARTITION BY band, h) AS size, (band, h) IN (FROM before) AS again
        FROM rows QUALIFY size > 1
        """
    )
    db.execute(
        """
        INSERT INTO proposed
        SELECT x.number, y.number FROM member x JOIN member y USING (band, h)
        WHERE x.size <= $small AND x.number < y.number AND (x.fresh OR y.fresh OR x.again)
        """,
        {"small": small},
    )
    large = "SELECT band, h, number FROM member WHERE size > $small ORDER BY band, h, number"
    return dict(db.execute(large, {"small": small}).fetchnumpy())


def _split(members: Members, ranks: Ranks, limit: int, small: int) -> tuple[Buckets, int, Numbers, Numbers]:
    """Rows of the buckets that are not small, how many of them are split, and their pairs."""
    known, place, columns, band = members.known, members.place, members.columns, members.band
    if not len(known):
        return no_buckets(), 0, known, known
    bucket = group = _groups(band, members.hash)
    _, first, size = np.unique(bucket, return_index=True, return_counts=True)
    cut = np.zeros(len(first), dtype=np.int64)
    crowd = np.zeros(len(known), dtype=bool)
    crowd[place[size[bucket] > limit]] = True
    whole = _whole(size, np.bincount(bucket, crowd[place]), limit)
    split, whole = int((~whole).sum()), whole[bucket]
    pairs = [_all_pairs(bucket[whole], place[whole])]
    group, place, band, bucket = group[~whole], place[~whole], band[~whole], bucket[~whole]
    orders = ranks(known)
    pairs += [_star(group, place, order) for order in orders]
    for step in range(1, min(SPLITS + 1, len(columns))):
        group = _groups(group, columns[(band + step) % len(columns), place])
        large = np.bincount(group, minlength=1)[group] > small
        pairs.append(_all_pairs(group[~large], place[~large]))
        group, place, band, bucket = group[large], place[large], band[large], bucket[large]
    if len(group):
        np.add.at(cut, bucket, 1)
        pairs += [_star(group, place, order) for order in orders]
    left, right = (known[np.concatenate(side)] for side in zip(*pairs, strict=True))
    return Buckets(members.band[first], members.hash[first], size, cut), split, left, right


def _whole(size: Numbers, crowd: NDArray[Any], limit: int) -> NDArray[np.bool_]:
    """Which buckets give all their pairs: those up to the limit that are not mostly crowd, the smallest first."""
    found = np.flatnonzero((size <= limit) & (2 * crowd < size))
    found = found[np.argsort(size[found], kind="stable")]
    whole = np.zeros(len(size), dtype=bool)
    whole[found[np.cumsum(size[found] * (size[found] - 1) // 2) <= WHOLE_PAIRS]] = True
    return whole


def _groups(one: NDArray[Any], other: NDArray[Any]) -> Numbers:
    """A number for each combination of two keys, from 0."""
    order = np.lexsort((other, one))
    fresh = np.zeros(len(order), dtype=bool)
    fresh[1:] = (one[order][1:] != one[order][:-1]) | (other[order][1:] != other[order][:-1])
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.cumsum(fresh)
    return found


def _star(group: Numbers, member: Numbers, rank: Numbers) -> tuple[Numbers, Numbers]:
    """Each member of a group with the best ranked one."""
    order = np.lexsort((rank[member], group))
    _, first, of = np.unique(group[order], return_index=True, return_inverse=True)
    other = member[order]
    best = other[first][of]
    return best[best != other], other[best != other]


def _all_pairs(group: Numbers, member: Numbers) -> tuple[Numbers, Numbers]:
    """Every two members of each group."""
    order = np.argsort(group, kind="stable")
    _, first, size = np.unique(group[order], return_index=True, return_counts=True)
    later = np.repeat(first + size, size) - np.arange(len(order)) - 1  # members of the group behind this one
    left = np.repeat(np.arange(len(order)), later)
    right = left + 1 + np.arange(len(left)) - np.repeat(np.cumsum(later) - later, later)
    return member[order][left], member[order][right]


def _still_proposed(known: Known, buckets: Buckets, members: Members) -> NDArray[np.bool_]:
    """Which known pairs do not hang on a large bucket alone: `_split` has decided about those afresh."""
    kept = ~members.both(known.left, known.right)
    doubtful = np.flatnonzero(~kept)
    left, right = members.places(known.left[doubtful]), members.places(known.right[doubtful])
    for band, column in enumerate(members.columns if len(doubtful) else ()):
        ours, other = column[left], column[right]
        kept[doubtful] |= (ours == other) & (ours != 0) & ~np.isin(ours, buckets.hash[buckets.band == band])
    return kept
