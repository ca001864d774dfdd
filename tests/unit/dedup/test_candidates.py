"""Candidate pairs, on made hashes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.dedup import candidates
from pipeline_lib.dedup.candidates import LARGE, SPLITS, Candidates, Known, propose
from pipeline_lib.dedup.minhash import Hashes, Index, bands_schema

LIMIT = 15
SMALL = max(LIMIT // LARGE, 2)


def found(hashes: np.ndarray, rank: np.ndarray, *, limit: int = LIMIT, **night: object) -> Candidates:
    taking_part = np.ones(hashes.shape[1], dtype=bool)
    return propose(Hashes(hashes), taking_part, lambda numbers: (rank[numbers],), limit, **night)


def files_of(hashes: np.ndarray, folder: Path) -> Index:
    """The same hashes in two files, in row groups of three documents."""
    count = hashes.shape[1]
    table = pa.table([pa.array([bytes(16)] * count, pa.binary(16)), *hashes], schema=bands_schema(len(hashes)))
    paths = [folder / "0.parquet", folder / "1.parquet"]
    for path, part in zip(paths, (table.slice(0, count // 2), table.slice(count // 2)), strict=True):
        pq.write_table(part, path, row_group_size=3)
    return Index(paths, len(hashes))


def pairs(proposed: Candidates) -> list[tuple[int, int]]:
    return list(zip(proposed.left.tolist(), proposed.right.tolist(), strict=True))


@st.composite
def corpora(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Hashes of few values, so that buckets are large; ranks; and the documents of each night."""
    count = draw(st.integers(2, 30))
    bands = draw(st.integers(1, 4))
    values = draw(st.integers(1, 6))
    drawn = draw(st.lists(st.integers(0, values), min_size=count * bands, max_size=count * bands))
    rank = np.array(draw(st.permutations(range(count))), dtype=np.int64)
    return np.array(drawn, dtype=np.uint64).reshape(bands, count), rank, sorted(draw(st.sets(st.integers(1, count), max_size=3)))


@settings(max_examples=15, deadline=None)
@given(corpora())
def test_small_buckets_give_all_pairs_and_no_pair_is_invented(corpus) -> None:
    hashes, rank, _ = corpus
    all_pairs = pairs(found(hashes, rank, limit=100))
    count = hashes.shape[1]
    equal = {(a, b): int(((hashes[:, a] == hashes[:, b]) & (hashes[:, a] != 0)).sum()) for b in range(count) for a in range(b)}
    assert all_pairs == sorted(pair for pair, bands in equal.items() if bands)
    some = found(hashes, rank)
    assert set(pairs(some)) <= set(all_pairs)
    assert [equal[pair] for pair in pairs(some)] == some.bands_hit.tolist()
    sizes = {(band, int(h)): int((hashes[band] == h).sum()) for band in range(len(hashes)) for h in hashes[band] if h}
    large = {key: size for key, size in sizes.items() if size > SMALL}
    rows = zip(some.buckets.band, some.buckets.hash, some.buckets.documents, strict=True)
    assert {(int(band), int(h)): int(size) for band, h, size in rows} == large
    for band, h in large:  # the best of a large bucket meets every member, so it can remove them
        members = np.flatnonzero(hashes[band] == h)
        best = int(members[np.argmin(rank[members])])
        assert {(min(best, m), max(best, m)) for m in members.tolist() if m != best} <= set(pairs(some))


@settings(max_examples=4, deadline=None)
@given(corpora(), st.integers(0, 30), st.sampled_from([8, 96 << 20]))
def test_an_index_in_files_gives_what_one_in_memory_gives(tmp_path_factory, corpus, first: int, block: int) -> None:
    """Read in pieces; and when memory holds the hashes of one band only."""
    hashes, rank, _ = corpus
    fresh = np.arange(hashes.shape[1]) >= first
    night = {"fresh": fresh, "known": None}
    index = files_of(hashes, tmp_path_factory.mktemp("index"))
    for more in ({}, night):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(candidates, "BLOCK_BYTES", block)
            from_files = propose(index, np.ones(len(index), dtype=bool), lambda numbers: (rank[numbers],), LIMIT, **more)
        in_memory = found(hashes, rank, **more)
        assert pairs(from_files) == pairs(in_memory)
        assert from_files.bands_hit.tolist() == in_memory.bands_hit.tolist()
    if first >= hashes.shape[1]:
        assert pairs(from_files) == []  # nothing is fresh, and nothing was known


@settings(max_examples=20, deadline=None)
@given(corpora(), st.sampled_from([0, 30, 10**6]), st.sampled_from([0, 10, 10**6]))
def test_nights_propose_what_one_run_proposes(corpus, whole_pairs: int, part_pairs: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "WHOLE_PAIRS", whole_pairs)
        patch.setattr(candidates, "PART_PAIRS", part_pairs)
        nights(*corpus)


def nights(hashes: np.ndarray, rank: np.ndarray, cuts: list[int]) -> None:
    count = hashes.shape[1]
    known, before = None, 0
    for until in [*cuts, count]:
        part = hashes[:, :until]
        whole = found(part, rank)
        step = found(part, rank, fresh=np.arange(until) >= before, known=known) if known else whole
        assert pairs(step) == pairs(whole)
        assert step.bands_hit.tolist() == whole.bands_hit.tolist()
        for name in ("band", "hash", "documents", "cut"):
            assert getattr(step.buckets, name).tolist() == getattr(whole.buckets, name).tolist()
        known, before = Known(step.left, step.right, step.bands_hit, step.buckets), until


def test_a_large_bucket_is_split_by_further_bands() -> None:
    """40 documents share the first band; in the second they are ten groups of four."""
    hashes = np.stack([np.full(40, 7), np.arange(40) // 4 + 1, np.arange(40) + 100]).astype(np.uint64)
    proposed = found(hashes, np.arange(40), limit=20)
    star, groups = {(0, i) for i in range(1, 40)}, {(a, b) for b in range(40) for a in range(b) if a // 4 == b // 4}
    assert set(pairs(proposed)) == star | groups
    assert proposed.buckets.documents.tolist() == [40] + 10 * [4]
    assert proposed.buckets.cut.tolist() == 11 * [0]


def test_what_no_band_tells_apart_is_cut_and_counted() -> None:
    hashes = np.full((SPLITS + 2, LIMIT + 1), 7, dtype=np.uint64)
    proposed = found(hashes, np.arange(LIMIT + 1)[::-1].copy())
    assert pairs(proposed) == [(i, LIMIT) for i in range(LIMIT)]
    assert proposed.buckets.cut.tolist() == [LIMIT + 1] * (SPLITS + 2)


def test_a_bucket_up_to_the_limit_is_whole_unless_a_crowd_fills_it() -> None:
    crowd, tens, mixed = range(20), range(20, 30), (18, 19, 30, 31, 32)
    hashes = 100 + np.arange(2 * 40, dtype=np.uint64).reshape(2, 40)
    hashes[0, crowd] = 7
    hashes[1, :8] = 8  # of the crowd, and as large as a bucket may be that is looked at whole
    hashes[1, tens] = 9
    hashes[1, list(mixed)] = 10
    proposed = found(hashes, np.arange(40))
    star = {(0, i) for i in range(1, 20)}
    assert set(pairs(proposed)) == star | {(a, b) for group in (tens, mixed) for b in group for a in group if a < b}
    assert proposed.buckets.documents.tolist() == [20, 8, 10, 5]
    assert proposed.buckets.cut.tolist() == [8, 8, 0, 0]  # the others have hashes of their own in the second band
    assert proposed.split == 2


def test_the_largest_buckets_are_split_when_all_of_them_are_too_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = 100 + np.arange(2 * 40, dtype=np.uint64).reshape(2, 40)
    hashes[0, :10], hashes[0, 10:16], hashes[1, 20:32] = 7, 8, 9
    monkeypatch.setattr(candidates, "WHOLE_PAIRS", 10 * 9 // 2 + 6 * 5 // 2)
    proposed = found(hashes, np.arange(40))
    all_pairs = {(a, b) for first, last in ((0, 10), (10, 16)) for b in range(first, last) for a in range(first, b)}
    assert set(pairs(proposed)) == all_pairs | {(20, b) for b in range(21, 32)}
    assert proposed.split == 1


def near_copies(rng: np.random.Generator, families: int, size: int) -> np.ndarray:
    """Families of documents of which two share each band with a chance of .28, as near-copies do."""
    hashes = rng.integers(1 << 20, 1 << 60, (8, families * size)).astype(np.uint64)
    shared = rng.random(hashes.shape) < 0.53
    family = np.broadcast_to(1 + np.arange(families * size, dtype=np.uint64) // np.uint64(size), hashes.shape)
    hashes[shared] = family[shared]
    return hashes


def test_pairs_of_near_copies_are_bounded_whatever_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest groups come first, every document still meets the best of its bucket, and what is left out is told."""
    monkeypatch.setattr(candidates, "WHOLE_PAIRS", 1000)
    monkeypatch.setattr(candidates, "PART_PAIRS", 500)
    monkeypatch.setattr(candidates, "PAIRS_AT_ONCE", 64)
    hashes = near_copies(np.random.default_rng(3), 20, 40)
    rank = np.arange(hashes.shape[1])
    proposed = found(hashes, rank, limit=100)
    unbounded = 20 * 40 * 39 // 2
    stars = 2 * hashes.size  # of the bucket, and of its part
    assert len(proposed.left) < min(1000 + 500 + stars, unbounded // 2)
    assert proposed.split > 100
    assert (proposed.buckets.cut > 0).sum() > 50
    met = set(pairs(proposed))
    for band, h in zip(proposed.buckets.band, proposed.buckets.hash, strict=True):
        first, *others = np.flatnonzero(hashes[band] == h).tolist()
        assert {(first, other) for other in others} <= met


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(count: int) -> None:
    assert pairs(found(np.ones((3, count), dtype=np.uint64), np.arange(count))) == []


def test_a_bucket_of_100_000_documents() -> None:
    """Each of them also shares other bands with a few: the number of pairs stays a small multiple of the documents."""
    rng = np.random.default_rng(0)
    count = 100_000
    hashes = rng.integers(1, 20_000, (6, count)).astype(np.uint64)
    hashes[0] = 7
    hashes[1] += np.uint64(10)
    hashes[1, ::2] = 8
    proposed = found(hashes, np.arange(count), limit=200)
    over = proposed.buckets.documents > 200
    assert proposed.buckets.documents[over].tolist() == [count, count // 2]
    assert proposed.buckets.cut[over].tolist() == [0, 0]
    met = np.zeros(count, dtype=bool)
    met[proposed.right[proposed.left == 0]] = True
    assert met[1:].all()
    assert len(proposed.left) < 20 * count
