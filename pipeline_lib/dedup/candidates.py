"""Candidate pairs: documents that share a band hash, joined by DuckDB one band at a time so that memory is bounded by a band.

A *bucket* is the documents with one hash in one band. Up to `limit` documents: all pairs of it are proposed. A larger one
- is split by the hashes of the next bands, up to `SPLITS` of them: parts up to the limit give all their pairs. Boilerplate that
  many documents share falls apart in one step, because the rest of the documents has other hashes;
- and gives a star: each document with the best ranked one, which is the one that can remove the others.
What no further band tells apart is `cut`: those documents meet the best one of their part and no other, and the bucket's row says
how many they are.

**Nights.** Proposed pairs are a function of the set of documents, bucket by bucket. So when documents are added to a set whose
pairs are known, only the buckets of the added ones and the large buckets (before or now) are looked at: `fresh` and `Known`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.dedup.verify import distinct
from pipeline_lib.tables.duck import connect

SPLITS = 3  # further bands; 100,000 documents of which half share a hash in each band are parts of 13,000 then
MEMORY_GIB = 1.0  # for DuckDB; beyond it the join spills to disk
Numbers = NDArray[np.int64]
Ranks = Callable[[Numbers], tuple[Numbers, ...]]


class BandIndex(Protocol):
    """Band hashes of numbered documents: `minhash.Index` (files) or `minhash.Hashes` (memory)."""

    @property
    def bands(self) -> int:
        """Number of bands."""

    def __len__(self) -> int:
        """Number of documents."""

    def column(self, band: int) -> NDArray[np.uint64]:
        """Hashes of all documents in one band; 0: no shingle."""


@dataclass(frozen=True)
class Buckets:
    """Buckets over the limit, ordered by band and hash."""

    band: Numbers
    hash: NDArray[np.uint64]
    documents: Numbers
    cut: Numbers

    def __len__(self) -> int:
        return len(self.band)


@dataclass(frozen=True)
class Members:
    """Documents of large buckets, a row a band and document, ordered."""

    band: Numbers
    hash: NDArray[np.uint64]
    number: Numbers


@dataclass(frozen=True)
class Known:
    """What an earlier night found among the documents that are not fresh: its pairs and its large buckets."""

    left: Numbers
    right: Numbers
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

    Memory: 12 bytes a document for one band, DuckDB's limit, and 8 bytes a band for each document of a large bucket.
    """
    numbers = np.flatnonzero(taking_part)
    new = np.ones(len(numbers), dtype=bool) if fresh is None else fresh[numbers]
    earlier = known or Known(numbers[:0], numbers[:0], no_buckets())
    with connect(memory_gib=MEMORY_GIB, threads=threads) as db:
        db.execute("CREATE TABLE proposed (a UINTEGER, b UINTEGER)")
        db.register("before", pa.table({"band": earlier.buckets.band, "h": earlier.buckets.hash}))
        large = []
        for band in range(index.bands):
            column = index.column(band)[numbers]
            worded = column != 0
            rows = {"h": column[worded], "number": numbers[worded].astype(np.uint32), "fresh": new[worded]}
            large.append(_join(db, band, pa.table(rows), limit, whole=bool(new.all())))
        members = Members(
            np.repeat(np.arange(index.bands), [len(hashes) for hashes, _ in large]),
            np.concatenate([hashes for hashes, _ in large]),
            np.concatenate([number for _, number in large]).astype(np.int64),
        )
        buckets, left, right = _split(index, members, ranks, limit)
        kept = _still_proposed(index, earlier, buckets, members.number)
        left, right = np.concatenate([left, earlier.left[kept]]), np.concatenate([right, earlier.right[kept]])
        db.register("more", pa.table({"a": left.astype(np.uint32), "b": right.astype(np.uint32)}))
        db.execute("INSERT INTO proposed SELECT least(a, b), greatest(a, b) FROM more")
        found = db.execute("SELECT DISTINCT a, b FROM proposed ORDER BY a, b").fetchnumpy()
    left, right = (np.asarray(found[name], dtype=np.int64) for name in ("a", "b"))
    return Candidates(left, right, equal_bands(index, left, right), buckets)


def equal_bands(index: BandIndex, left: Numbers, right: Numbers) -> NDArray[np.int32]:
    """In how many bands the documents of each pair have the same hash."""
    hit = np.zeros(len(left), dtype=np.int32)
    for band in range(index.bands if len(left) else 0):
        column = index.column(band)
        hit += (column[left] == column[right]) & (column[left] != 0)
    return hit


def _join(
    db: duckdb.DuckDBPyConnection, band: int, rows: pa.Table, limit: int, *, whole: bool
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Propose the pairs of one band's small buckets; returns hash and number of the members of its large ones.

    Args:
        db: has the tables `proposed` (a, b) and `before` (band, h: buckets that were large).
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


def _split(index: BandIndex, members: Members, ranks: Ranks, limit: int) -> tuple[Buckets, Numbers, Numbers]:
    """Rows and pairs of the large buckets."""
    if not len(members.number):
        return no_buckets(), members.number, members.number
    known, places = distinct(len(index), members.number)
    place = places[members.number]
    orders = ranks(known)
    columns = np.stack([index.column(band)[known] for band in range(index.bands)])
    band = members.band
    bucket = group = _groups(band, members.hash)
    _, first, size = np.unique(bucket, return_index=True, return_counts=True)
    cut = np.zeros(len(first), dtype=np.int64)
    pairs = [_star(group, place, order) for order in orders]
    for step in range(1, min(SPLITS + 1, index.bands)):
        group = _groups(group, columns[(band + step) % index.bands, place])
        large = np.bincount(group)[group] > limit
        pairs.append(_all_pairs(group[~large], place[~large]))
        group, place, band, bucket = group[large], place[large], band[large], bucket[large]
    if len(group):
        np.add.at(cut, bucket, 1)
        pairs += [_star(group, place, order) for order in orders]
    left, right = (known[np.concatenate(side)] for side in zip(*pairs, strict=True))
    return Buckets(members.band[first], members.hash[first], size, cut), left, right


def _groups(one: NDArray[Any], other: NDArray[Any]) -> Numbers:
    """A number for each combination of two keys."""
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


def _still_proposed(index: BandIndex, known: Known, buckets: Buckets, members: Numbers) -> NDArray[np.bool_]:
    """Which known pairs do not hang on a large bucket alone: `_split` has decided about those afresh."""
    kept = ~(np.isin(known.left, members) & np.isin(known.right, members))
    doubtful = np.flatnonzero(~kept)
    left, right = known.left[doubtful], known.right[doubtful]
    for band in range(index.bands if len(doubtful) else 0):
        column = index.column(band)
        ours, other = column[left], column[right]
        kept[doubtful] |= (ours == other) & (ours != 0) & ~np.isin(ours, buckets.hash[buckets.band == band])
    return kept
