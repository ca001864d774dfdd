"""Survivors and clusters, on graphs."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.dedup.clusters import Groups, cluster_names, group, representatives


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    count = draw(st.integers(1, 12))
    rank = np.array(draw(st.permutations(range(count))), dtype=np.int64)
    texts = np.array(draw(st.lists(st.integers(0, count), min_size=count, max_size=count)))
    best = representatives(texts.astype("S16"), rank)
    alone = np.flatnonzero(best == np.arange(count))
    possible = [(int(a), int(b)) for i, a in enumerate(alone) for b in alone[i + 1 :]]
    edges = draw(st.lists(st.sampled_from(possible), unique=True)) if possible else []
    pairs = np.array(edges, dtype=np.int64).reshape(-1, 2)
    return count, rank, best, pairs[:, 0].copy(), pairs[:, 1].copy()


def settled(graph: tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]) -> Groups:
    _, rank, best, left, right = graph
    return group(rank, best, left, right, np.full(len(left), 0.9))


@given(graphs())
def test_every_cluster_has_a_survivor_and_only_direct_neighbours_go(graph) -> None:
    count, rank, best, left, right = graph
    found = settled(graph)
    edges = {frozenset(edge) for edge in zip(left.tolist(), right.tolist(), strict=True)}
    for root in np.unique(found.root):
        assert (found.removed_by[found.root == root] < 0).any()
    for document in range(count):
        remover = found.removed_by[document]
        if remover < 0:
            continue
        assert found.removed_by[remover] < 0
        assert rank[remover] < rank[document]
        assert best[document] == remover or frozenset((int(best[document]), int(remover))) in edges
    for a, b in map(tuple, edges):
        assert found.removed_by[a] >= 0 or found.removed_by[b] >= 0  # no accepted pair survives as a whole


@given(graphs(), st.randoms(use_true_random=False))
def test_order_and_direction_of_pairs_do_not_matter(graph, random) -> None:
    count, rank, best, left, right = graph
    order = list(range(len(left)))
    random.shuffle(order)
    other = settled((count, rank, best, right[order], left[order]))
    first = settled(graph)
    for a, b in zip(first.__dict__.values(), other.__dict__.values(), strict=True):
        assert (a == b).all()


def test_a_chain_keeps_both_ends() -> None:
    rank = np.array([0, 1, 2])
    found = group(rank, np.arange(3), np.array([0, 1]), np.array([1, 2]), np.array([0.9, 0.8]))
    assert found.removed_by.tolist() == [-1, 0, -1]
    assert found.similarity.tolist() == [0.0, 0.9, 0.0]
    assert found.root.tolist() == [0, 0, 0]


def test_a_copy_goes_with_its_representative() -> None:
    rank = np.array([0, 1, 2])  # 2 has the text of 1, and 0 removes 1
    found = group(rank, np.array([0, 1, 1]), np.array([0]), np.array([1]), np.array([0.85]))
    assert found.removed_by.tolist() == [-1, 0, 0]
    assert found.similarity.tolist() == [0.0, 0.85, 0.85]


def test_a_cluster_is_named_by_its_earliest_document() -> None:
    root, unknown = np.array([0, 0, 0, 3]), np.iinfo(np.int64).max
    assert cluster_names(root, np.array([unknown, 20, 10, 5])).tolist() == [2, 2, 2, 3]
    assert cluster_names(root, np.array([unknown, unknown, unknown, 5])).tolist() == [0, 0, 0, 3]
