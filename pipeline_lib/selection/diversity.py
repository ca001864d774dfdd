"""Diversity: groups of similar documents, the order in which a greedy choice takes them, and a measure of the result.

Vectors are whole numbers, and so small that sums of their products are exact in 32-bit floating point, in any order: matrix
products give the same result with any library, on any machine, with any number of threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.selection import kernels
from pipeline_lib.selection.features import UNIT
from pipeline_lib.workspace.services import thread_mapper

CLUSTER_DOCUMENTS = 128  # a cluster has about this many
MOST_GROUPS = 64  # of similar clusters: a document is compared with these, then with the clusters of one
MOST_CLUSTERS = 256  # in a group
LARGEST_CLUSTER = 1024  # a larger one is cut into parts in the documents' order: the greedy choice is quadratic
TRAINING_DOCUMENTS = 64  # a centre is learned from about so many
ROUNDS = 5
VENDI_DOCUMENTS = 2000

Vectors = NDArray[np.int8]


def nearest(vectors: Vectors, centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """The centre with the largest inner product for each vector (the first one of equals)."""
    result = np.empty(len(vectors), dtype=np.int64)
    kernels.nearest(np.ascontiguousarray(vectors), np.ascontiguousarray(centres.T), result)
    return result


def k_means(vectors: Vectors, draws: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Spherical k-means: a group number for each vector. The vectors with the lowest draws are the first centres."""
    if count <= 1:
        return np.zeros(len(vectors), dtype=np.int64)
    size = min(len(vectors), count * TRAINING_DOCUMENTS)
    lowest = np.argpartition(draws, size - 1)[:size]
    sample = vectors[lowest[np.argsort(draws[lowest], kind="stable")]]
    centres = sample[:count].astype(np.float32)
    for _ in range(ROUNDS):
        chosen = nearest(sample, centres)
        by_centre = np.argsort(chosen, kind="stable")
        alive, first = np.unique(chosen[by_centre], return_index=True)  # a centre that lost all its documents stays
        sums = np.add.reduceat(sample[by_centre].astype(np.int64), first, axis=0)
        norms = np.sqrt((sums * sums).sum(axis=1).astype(np.float64))
        centres[alive] = np.rint(sums / np.maximum(norms, 1.0)[:, None] * UNIT)
    return nearest(vectors, centres)


def groups_of(vectors: Vectors, draws: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Groups of similar documents, each as the places of its members: few, so that a group can be cut into clusters on its own.

    Args:
        vectors: [documents, 64].
        draws: a random number a document.
    """
    wanted = -(-len(vectors) // CLUSTER_DOCUMENTS)
    group = k_means(vectors, draws, min(MOST_GROUPS, int(wanted**0.5)))
    by_group = np.argsort(group, kind="stable")
    return np.split(by_group, np.flatnonzero(np.diff(group[by_group])) + 1)


def clusters_of(vectors: Vectors, draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """Cluster number of each document of a group; a cluster has about 128 documents."""
    return k_means(vectors, draws, min(MOST_CLUSTERS, -(-len(vectors) // CLUSTER_DOCUMENTS)))


def gains_of(
    vectors: Vectors,
    draws: NDArray[np.float64],
    quality: NDArray[np.float64],
    recency: NDArray[np.float64],
    *,
    diversity_weight: float,
    workers: int = 1,
) -> NDArray[np.float64]:
    """Marginal gain of each document in a greedy choice; descending gains are the order of choice.

    gain = ((1 - w) · quality + w · novelty) · recency, where novelty is 1 - the largest cosine (not below 0) with a document of
    its cluster that was chosen before, and 1 for the first. Novelty only falls, so the gains fall too: sorting by them merges
    the clusters into the order in which a greedy choice over all of them would go.

    Args:
        vectors: [documents, 64].
        draws: a random number a document.
        quality: 0 … 1.
        recency: 0 … 1.
        diversity_weight: w.
        workers: threads.
    """
    if not diversity_weight:
        return quality * recency
    gains = np.empty(len(vectors), dtype=np.float64)

    def work(members: NDArray[np.int64]) -> None:
        mine = vectors[members]
        cluster = clusters_of(mine, draws[members])
        order = np.argsort(cluster, kind="stable")
        bounds = np.flatnonzero(np.diff(cluster[order], prepend=-1, append=-1))
        found = np.empty(len(members), dtype=np.float64)
        kernels.greedy_gains(
            mine, order, bounds, LARGEST_CLUSTER, quality[members], recency[members], diversity_weight, UNIT, found
        )
        gains[members] = found

    thread_mapper(workers)(work, groups_of(vectors, draws))
    return gains


def vendi_score(vectors: Vectors, draws: NDArray[np.float64]) -> float:
    """Effective number of different topics: exp of the entropy of the eigenvalues of the cosine kernel (Friedman & Dieng 2023).

    Computed from the 64 × 64 covariance of at most 2,000 documents (lowest draws), which has the same non-zero eigenvalues.
    """
    sample = vectors[np.argsort(draws, kind="stable")[:VENDI_DOCUMENTS]].astype(np.float64)
    sample /= np.maximum(np.sqrt((sample * sample).sum(axis=1)), 1.0)[:, None]
    if not len(sample):
        return 0.0
    weights = np.linalg.eigvalsh(sample.T @ sample)
    weights = weights[weights > 1e-12]
    shares = weights / weights.sum()
    return round(float(np.exp(-(shares * np.log(shares)).sum())), 3) if len(weights) else 1.0
