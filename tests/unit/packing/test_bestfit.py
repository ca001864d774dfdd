"""Packing of lengths against a plain reference, and its promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.packing.bestfit import best_fit, gather, split_lengths


def reference(lengths: list[int], capacity: int) -> list[int]:
    """Free space of each bin by textbook best-fit-decreasing, sorted."""
    free: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in free if space >= length]
        if fitting:
            free.remove(min(fitting))
            free.append(min(fitting) - length)
        else:
            free.append(capacity - length)
    return sorted(free)


@settings(max_examples=150, deadline=None)
@given(capacity=st.sampled_from([1, 16, 63, 64, 65, 200]), data=st.data())
def test_equals_the_textbook(capacity: int, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=80))
    bins = best_fit(np.array(lengths, np.int64), capacity)
    used = np.bincount(bins, weights=lengths) if lengths else np.array([])
    assert sorted((capacity - used).astype(int).tolist()) == reference(lengths, capacity)
    first_seen = list(dict.fromkeys(bins.tolist()))
    assert first_seen == list(range(len(first_seen)))


@settings(max_examples=80, deadline=None)
@given(lengths=st.lists(st.integers(1, 300), max_size=30), capacity=st.integers(16, 64))
def test_only_what_is_longer_than_a_sequence_is_cut(lengths: list[int], capacity: int) -> None:
    document, offset, length = split_lengths(np.array(lengths, np.int64), capacity)
    assert np.bincount(document, weights=length, minlength=len(lengths)).astype(int).tolist() == lengths
    for i, whole in enumerate(lengths):
        mine = document == i
        assert mine.sum() == -(-whole // capacity)
        assert offset[mine].tolist() == list(range(0, whole, capacity))


@pytest.mark.parametrize("capacity", [1024, 2048, 4096])
def test_a_range_of_256_sequences_fills_994_permille(capacity: int) -> None:
    rng = np.random.default_rng(7)
    lengths = np.maximum(rng.lognormal(6.2, 1.1, 200_000), 1).astype(np.int64)  # web-like: median 500 tokens, long tail
    lengths = lengths[: np.searchsorted(np.cumsum(lengths), max(256 * capacity, 1 << 20))]
    _, _, pieces = split_lengths(lengths, capacity)
    bins = best_fit(pieces, capacity)
    assert pieces.sum() / ((bins.max() + 1) * capacity) >= 0.994


def test_gather_puts_pieces_and_ends_in_place() -> None:
    tokens = np.arange(10, dtype=np.uint32)
    out = np.zeros(7, np.uint32)
    gather(tokens, np.array([[4, 3, 0], [0, 4, 3]], np.int64), np.array([False, True]), 99, out)
    assert out.tolist() == [4, 5, 6, 0, 1, 2, 99]
