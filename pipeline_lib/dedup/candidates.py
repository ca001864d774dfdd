"""Candidate pairs: documents that share a band hash, joined by DuckDB one band at a time so that memory is bounded by a band.

A *bucket* is the documents with one hash in one band. Up to `limit` documents: all pairs of it are proposed. A larger one
- is split by the hashes of the next bands, up to `SPLITS` of them: parts up to a fifth of the limit give all their pairs.
  Boilerplate that many documents share falls apart in one step, because the rest of the documents has other hashes;
- and gives a star: each document with the best ranked one, which is the one that can remove the others.
What no further band tells apart is `cut`: those documents meet the best one of their part and no other, and the bucket's row says
how many they are.

Documents of a bucket over the limit are a *crowd*: they fill many buckets just below the limit in other bands. So a bucket that
is mostly crowd and larger than a fifth of the limit is split, too.

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
SPLITS = 3  # further bands; 100,000 documents of which half share a hash in each band are parts of 13,000 then
BLOCK_BYTES = 96 << 20  # of band hashes held at once: 12 bands of a million documents, one of ten million
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

    def columns(self, bands: Sequence[int]) -> NDArray[np.uint64]:
        """Hashes of all documents, [bands, documents]; 0: no shingle."""


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

    Memory: the hashes of as many bands as fit `BLOCK_BYTES`, but one at least; 13 bytes a document beside it; DuckDB's limit; and
    8 bytes a band for each document of a large bucket.
    """
    numbers = np.flatnonzero(taking_part)
    new = np.ones(len(numbers), dtype=bool) if fresh is None else fresh[numbers]
    earlier = known or Known(numbers[:0], numbers[:0], numbers[:0].astype(np.int32), no_buckets())
    small = max(limit // PART, 2)
    large: list[tuple[NDArray[np.uint64], NDArray[np.uint32]]] = []
    with connect(memory_gib=MEMORY_GIB, threads=threads) as db:
        db.execute("CREATE TABLE proposed (a UINTEGER, b UINTEGER)")
        db.register("before", pa.table({"band": earlier.buckets.band, "h": earlier.buckets.hash}))
        for bands in _blocks(index):
            for band, column in zip(bands, index.columns(bands), strict=True):
                before = earlier.buckets.hash[earlier.buckets.band == band]
                rows = _rows(column, numbers, new, before)
                large.append(_join(db, band, rows, small, whole=bool(new.all())))
        found = db.execute("SELECT a, b, count(*)::INTEGER AS n FROM proposed GROUP BY a, b ORDER BY a, b").fetchnumpy()
    members = _members(index, large)
    buckets, left, right = _split(members, ranks, limit, small)
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
    return Candidates(left, right, hit.astype(np.int32), buckets)


def _once(left: Numbers, right: Numbers, hit: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Each pair once, ordered, with its largest count."""
    code = (left << 32) | right
    order = np.lexsort((-hit, code))
    code = code[order]
    fresh = np.ones(len(code), dtype=bool)
    fresh[1:] = code[1:] != code[:-1]
    return code[fresh] >> 32, code[fresh] & 0xFFFFFFFF, hit[order][fresh]


def _blocks(index: BandIndex) -> Iterator[range]:
    """Bands whose hashes are held together."""
    size = max(1, BLOCK_BYTES // max(8 * len(index), 1))
    yield from (range(first, min(first + size, index.bands)) for first in range(0, index.bands, size))


def _rows(column: NDArray[np.uint64], numbers: Numbers, new: NDArray[np.bool_], before: NDArray[np.uint64]) -> pa.Table:
    """What the join of a band reads: h, number, fresh. Of old documents only those that may share a hash with a fresh one."""
    hashes = column if len(numbers) == len(column) else column[numbers]
    wanted = hashes != 0
    if not new.all():
        kernels.may_be_among(hashes, kernels.filter_of(np.concatenate([hashes[new], before])), wanted)
    if not wanted.all():
        hashes, numbers, new = hashes[wanted], numbers[wanted], new[wanted]
    return pa.table({"h": hashes, "number": numbers.astype(np.uint32), "fresh": new})


def _members(index: BandIndex, large: list[tuple[NDArray[np.uint64], NDArray[np.uint32]]]) -> Members:
    band = np.repeat(np.arange(len(large)), [len(hashes) for hashes, _ in large])
    hashes = np.concatenate([hashes for hashes, _ in large] or [np.empty(0, dtype=np.uint64)])
    number = np.concatenate([number for _, number in large] or [np.empty(0, dtype=np.uint32)]).astype(np.int64)
    known, places = distinct(len(index), number)
    columns = np.empty((index.bands, len(known)), dtype=np.uint64)
    for bands in _blocks(index) if len(known) else ():
        columns[bands.start : bands.stop] = index.columns(bands)[:, known]
    return Members(band, hashes, places[number], known, columns)


def _join(
    db: duckdb.DuckDBPyConnection, band: int, rows: pa.Table, limit: int, *, whole: bool
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Propose the pairs of one band's small buckets; returns hash and number of the members of the others.

    Args:
        db: has the tables `proposed` (a, b) and `before` (band, h: buckets that were not small).
        band: number of the band.
        rows: h, number, fresh.
        limit: of a small bucket.
        whole: everything is fresh: all buckets are looked at.
    """
    db.register("rows", rows)
    wanted = (
        "SELECT h FROM rows GROUP BY h HAVING count(*) > 1"
        if whole
        else "SELECT h FROM rows WHERE fresh UNION SELECT h FROM before WHERE band = $band"
    )
    db.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE member AS
        SELECT h, number, fresh, count(*) OVER (PARTITION BY h) AS size,
            h IN (SELECT h FROM before WHERE band = $band) AS again
        FROM rows SEMI JOIN ({wanted}) USING (h) QUALIFY size > 1
        """,  # noqa: S608 — one of the two texts above
        {"band": band},
    )
    db.execute(
        """
        INSERT INTO proposed
        SELECT x.number, y.number FROM member x JOIN member y USING (h)
        WHERE x.size <= $limit AND x.number < y.number AND (x.fresh OR y.fresh OR x.again)
        """,
        {"limit": limit},
    )
    found = db.execute("SELECT h, number FROM member WHERE size > $limit ORDER BY h, number", {"limit": limit}).fetchnumpy()
    return found["h"], found["number"]


def _split(members: Members, ranks: Ranks, limit: int, small: int) -> tuple[Buckets, Numbers, Numbers]:
    """Rows and pairs of the buckets that are not small."""
    known, place, columns, band = members.known, members.place, members.columns, members.band
    if not len(known):
        return no_buckets(), known, known
    bucket = group = _groups(band, members.hash)
    _, first, size = np.unique(bucket, return_index=True, return_counts=True)
    cut = np.zeros(len(first), dtype=np.int64)
    crowd = np.zeros(len(known), dtype=bool)
    crowd[place[size[bucket] > limit]] = True
    whole = ((size <= limit) & (2 * np.bincount(bucket, crowd[place]) < size))[bucket]
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
    return Buckets(members.band[first], members.hash[first], size, cut), left, right


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
