"""Candidate pairs: documents that share a band hash, joined by DuckDB one band at a time so that memory is bounded by a band.

A *bucket* is the documents with one hash in one band. Up to `limit` documents: all pairs of it are proposed. A larger one
- is split by the hashes of the next bands, up to `SPLITS` of them: parts up to a fifth of the limit give all their pairs.
  Boilerplate that many documents share falls apart in one step, because the rest of the documents has other hashes;
- and gives a star: each document with the best ranked one, which is the one that can remove the others.
What no further band tells apart is `cut`: those documents meet the best one of their part and no other, and the bucket's row says
how many they are.

Documents of a bucket over the limit are a *crowd*: they fill many buckets just below the limit in other bands. So a bucket that
is mostly crowd and larger than a fifth of the limit is split, too.

**Memory.** A corpus of near-copies would give hundreds of pairs a document. So of buckets over a fortieth of the limit (*large*
ones; the others give a dozen pairs a document at most) only the smallest give all their pairs, until these are `WHOLE_PAIRS`; the
others are split. Of the parts the smallest give theirs, until these are `PART_PAIRS`; what is left is cut.

**Nights.** Proposed pairs are a function of the set of documents, bucket by bucket. So when documents are added to a set whose
pairs are known, only the buckets of the added ones and the large buckets (before or now) are looked at: `fresh` and `Known`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.dedup import kernels
from pipeline_lib.tables.duck import connect

PART = 5  # what of a crowd gives all its pairs is this many times smaller than the limit: it is there many times
LARGE = 40  # a bucket this many times smaller than the limit gives all its pairs whatever the others do
WHOLE_PAIRS = 5 << 20  # of large buckets, each band counted; a pair of near-copies is there in most bands
PART_PAIRS = 1 << 20  # of parts of buckets, each band counted
PAIRS_AT_ONCE = 1 << 20  # made, and put in order, at once: some 50 MB
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
    """Large buckets, ordered by band and hash."""

    band: Numbers
    hash: NDArray[np.uint64]
    documents: Numbers
    cut: Numbers

    def __len__(self) -> int:
        return len(self.band)


@dataclass(frozen=True)
class Band:
    """The large buckets of one band, ordered by hash, and their documents."""

    band: int
    hash: NDArray[np.uint64]
    size: Numbers
    number: NDArray[np.uint32]  # the documents of all buckets, one bucket behind the other


@dataclass(frozen=True)
class Members:
    """Large buckets, by band; and the hashes of their documents in all bands."""

    bands: Sequence[Band]
    there: NDArray[np.bool_]  # [documents] those of large buckets
    known: Numbers  # their numbers
    columns: NDArray[np.uint64]  # [bands, known]
    _place: NDArray[np.uint32]  # [documents] where a document stands in `known`

    def places(self, numbers: NDArray[Any]) -> NDArray[np.uint32]:
        """Where documents stand in `known`."""
        return np.asarray(self._place[numbers])

    def both(self, left: Numbers, right: Numbers) -> NDArray[np.bool_]:
        """Which pairs are pairs of these documents."""
        return np.asarray(self.there[left] & self.there[right])

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
    DuckDB's limit; 12 bytes a band for each document of a large bucket; and the pairs (about 100 bytes each
    here, 250 in all that follows).
    """
    fresh = taking_part if fresh is None else taking_part & fresh
    earlier = known or _nothing_known()
    small = max(limit // LARGE, 2)
    large: list[Band] = []
    with connect(memory_gib=MEMORY_GIB, threads=threads) as db:
        db.execute("CREATE TABLE proposed (a UINTEGER, b UINTEGER)")
        db.register("before", pa.table({"band": earlier.buckets.band, "h": earlier.buckets.hash}))
        for rows in _joined_together(_rows(index, taking_part, fresh, earlier.buckets)):
            large += _join(db, rows, small)
        found = db.execute("SELECT a, b, count(*)::INTEGER AS n FROM proposed GROUP BY a, b ORDER BY a, b").fetchnumpy()
    members = _members(index, large)
    buckets, split, made = _split(members, ranks, limit)
    kept = _still_proposed(earlier, buckets, members)
    parts = [
        (_codes(found["a"], found["b"]), found["n"]),
        (_codes(earlier.left[kept], earlier.right[kept]), earlier.bands_hit[kept]),
        (made, np.zeros(len(made), dtype=np.int32)),
    ]
    del found, made
    left, right, hit = _once(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    inside = members.both(left, right)  # these may meet in large buckets, too, which do not propose every pair
    hit[inside] = members.equal_bands(left[inside], right[inside])
    return Candidates(left, right, hit, buckets, split)


def _codes(left: NDArray[Any], right: NDArray[Any]) -> Numbers:
    """A number for each pair, by which pairs are ordered."""
    return np.asarray((np.minimum(left, right).astype(np.int64) << 32) | np.maximum(left, right))


def _once(code: Numbers, hit: NDArray[np.int32]) -> tuple[Numbers, Numbers, NDArray[np.int32]]:
    """Each pair once, ordered, with its largest count."""
    order = np.lexsort((-hit, code))
    code = code[order]
    fresh = np.ones(len(code), dtype=bool)
    fresh[1:] = code[1:] != code[:-1]
    return code[fresh] >> 32, code[fresh] & 0xFFFFFFFF, hit[order][fresh]


@dataclass
class _Gathered:
    """Pairs of many groups, each once: what is new is put in order when it is much."""

    _parts: list[Numbers] = field(default_factory=lambda: [np.empty(0, dtype=np.int64)])
    _waiting: int = 0

    def add(self, left: NDArray[Any], right: NDArray[Any]) -> None:
        """Take in pairs of document numbers."""
        self._parts.append(_codes(left, right))
        self._waiting += len(left)
        if self._waiting > max(PAIRS_AT_ONCE, len(self._parts[0])):
            self.codes()

    def codes(self) -> Numbers:
        """All so far, ordered."""
        codes = np.concatenate(self._parts)
        codes.sort()  # numpy's `unique` hashes whole numbers, and takes minutes for such as these
        fresh = np.ones(len(codes), dtype=bool)
        fresh[1:] = codes[1:] != codes[:-1]
        self._parts, self._waiting = [codes[fresh]], 0
        return self._parts[0]


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


def _members(index: BandIndex, bands: Sequence[Band]) -> Members:
    there = np.zeros(len(index), dtype=bool)
    for band in bands:
        there[band.number] = True
    known = np.flatnonzero(there)
    columns = np.empty((index.bands, len(known)), dtype=np.uint64)
    for some in _blocks(index, len(known)) if len(known) else ():
        columns[some.start : some.stop] = _hashes(index, some, known)
    return Members(bands, there, known, columns, np.cumsum(there, dtype=np.uint32) - np.uint32(1))


def _join(db: duckdb.DuckDBPyConnection, rows: pa.Table, small: int) -> list[Band]:
    """Propose the pairs of small buckets; returns the others.

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
    found = db.execute(large, {"small": small}).fetchnumpy()
    bands, first = np.unique(found["band"], return_index=True)
    parts = zip(bands.tolist(), *(np.split(found[name], first[1:]) for name in ("h", "number")), strict=True)
    return [_band(band, hashes, np.asarray(numbers)) for band, hashes, numbers in parts] if len(bands) else []


def _band(band: int, hashes: NDArray[np.uint64], numbers: NDArray[np.uint32]) -> Band:
    own, size = np.unique(hashes, return_counts=True)
    return Band(band, own, size, numbers)


@dataclass(frozen=True)
class _Parts:
    """Parts of the buckets of one band."""

    size: Numbers
    bucket: Numbers  # which of the band's buckets
    member: NDArray[np.uint32]  # the documents (places in `known`) of all parts, one part behind the other


def _split(members: Members, ranks: Ranks, limit: int) -> tuple[Buckets, int, Numbers]:
    """Rows of the large buckets, how many of them are split, and the pairs that they propose."""
    bands, known = members.bands, members.known
    if not bands:
        return no_buckets(), 0, np.empty(0, dtype=np.int64)
    pairs = _Gathered()
    size = np.concatenate([band.size for band in bands])
    small = max(limit // PART, 2)
    fits = (size <= limit) & ((2 * _crowded(members, limit) < size) | (size <= small))
    whole = _affordable(size, fits, WHOLE_PAIRS)
    of_band = np.split(whole, np.cumsum([len(band.size) for band in bands])[:-1])
    orders = ranks(known) if not whole.all() else ()
    found = []
    for band, is_whole in zip(bands, of_band, strict=True):
        inside = np.repeat(is_whole, band.size)
        for left, right in _all_pairs(band.size[is_whole], band.number[inside]):
            pairs.add(left, right)
        bucket, place = np.repeat(np.arange(len(band.size)), band.size)[~inside], members.places(band.number[~inside])
        for order in orders:
            left, right = _star(bucket, place, order)
            pairs.add(known[left], known[right])
        found.append(_parts(members.columns, band.band, bucket, place, small))
    sizes = np.concatenate([parts.size for parts in found])
    affordable = np.split(_affordable(sizes, sizes <= small, PART_PAIRS), np.cumsum([len(parts.size) for parts in found])[:-1])
    cut = []
    for band, parts, is_whole in zip(bands, found, affordable, strict=True):
        inside = np.repeat(is_whole, parts.size)
        for left, right in _all_pairs(parts.size[is_whole], parts.member[inside]):
            pairs.add(known[left], known[right])
        number, rest = np.repeat(np.arange(len(parts.size)), parts.size)[~inside], parts.member[~inside]
        for order in orders:
            left, right = _star(number, rest, order)
            pairs.add(known[left], known[right])
        alone = ~is_whole & (parts.size > 1)
        cut.append(np.bincount(parts.bucket[alone], parts.size[alone], len(band.size)).astype(np.int64))
    numbers = np.concatenate([np.full(len(band.size), band.band, dtype=np.int64) for band in bands])
    rows = Buckets(numbers, np.concatenate([band.hash for band in bands]), size, np.concatenate(cut))
    return rows, int((~whole).sum()), pairs.codes()


def _crowded(members: Members, limit: int) -> Numbers:
    """How many documents of each large bucket are in some bucket over the limit."""
    crowd = np.zeros(len(members.there), dtype=bool)
    for band in members.bands:
        crowd[band.number[np.repeat(band.size > limit, band.size)]] = True
    starts = [np.cumsum(band.size) - band.size for band in members.bands]
    counted = [
        np.add.reduceat(crowd[band.number], first, dtype=np.int64) for band, first in zip(members.bands, starts, strict=True)
    ]
    return np.concatenate(counted)


def _affordable(size: Numbers, fits: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """Which groups give all their pairs: of those that fit the smallest, until these are `most` pairs."""
    found = np.flatnonzero(fits)
    found = found[np.argsort(size[found], kind="stable")]
    chosen = np.zeros(len(size), dtype=bool)
    chosen[found[np.cumsum(size[found] * (size[found] - 1) // 2) <= most]] = True
    return chosen


def _parts(columns: NDArray[np.uint64], band: int, bucket: Numbers, place: NDArray[np.uint32], small: int) -> _Parts:
    """Buckets of one band, split by the next ones until their parts are small; what stays large is a part, too."""
    ready: list[tuple[NDArray[Any], ...]] = []
    group, bands = bucket, len(columns)
    for step in range(1, min(SPLITS + 1, bands)):
        group = _groups(group, columns[(band + step) % bands, place])
        large = np.bincount(group, minlength=1)[group] > small
        ready.append((group[~large], bucket[~large], place[~large]))
        group, bucket, place = group[large], bucket[large], place[large]
    ready.append((group, bucket, place))
    sizes, buckets, members = [], [], []
    for of, whence, who in ready:
        order = np.argsort(of, kind="stable")
        _, first, size = np.unique(of[order], return_index=True, return_counts=True)
        sizes.append(size)
        buckets.append(whence[order][first])
        members.append(who[order])
    return _Parts(np.concatenate(sizes), np.concatenate(buckets), np.concatenate(members))


def _groups(one: NDArray[Any], other: NDArray[Any]) -> Numbers:
    """A number for each combination of two keys, from 0."""
    order = np.lexsort((other, one))
    fresh = np.zeros(len(order), dtype=bool)
    fresh[1:] = (one[order][1:] != one[order][:-1]) | (other[order][1:] != other[order][:-1])
    found = np.empty(len(order), dtype=np.int64)
    found[order] = np.cumsum(fresh)
    return found


def _star(group: Numbers, member: NDArray[Any], rank: Numbers) -> tuple[NDArray[Any], NDArray[Any]]:
    """Each member of a group with the best ranked one."""
    order = np.lexsort((rank[member], group))
    _, first, of = np.unique(group[order], return_index=True, return_inverse=True)
    other = member[order]
    best = other[first][of]
    return best[best != other], other[best != other]


def _all_pairs(size: Numbers, member: NDArray[Any]) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Every two members of each group, some groups at a time; `member` holds them one group behind the other."""
    ends, pairs = np.cumsum(size), np.cumsum(size * (size - 1) // 2)
    marks = np.arange(PAIRS_AT_ONCE, int(pairs[-1]) + PAIRS_AT_ONCE, PAIRS_AT_ONCE) if len(size) else pairs
    for groups in np.split(np.arange(len(size)), np.searchsorted(pairs, marks, side="right")):
        if not len(groups):
            continue
        some = member[ends[groups[0]] - size[groups[0]] : ends[groups[-1]]]
        own = size[groups]
        later = np.repeat(np.cumsum(own), own) - np.arange(len(some)) - 1  # members of the group behind this one
        left = np.repeat(np.arange(len(some)), later)
        right = left + 1 + np.arange(len(left)) - np.repeat(np.cumsum(later) - later, later)
        yield some[left], some[right]


def _still_proposed(known: Known, buckets: Buckets, members: Members) -> NDArray[np.bool_]:
    """Which known pairs do not hang on a large bucket alone: `_split` has decided about those afresh."""
    kept = ~members.both(known.left, known.right)
    doubtful = np.flatnonzero(~kept)
    left, right = members.places(known.left[doubtful]), members.places(known.right[doubtful])
    for band, column in enumerate(members.columns if len(doubtful) else ()):
        ours, other = column[left], column[right]
        kept[doubtful] |= (ours == other) & (ours != 0) & ~np.isin(ours, buckets.hash[buckets.band == band])
    return kept
