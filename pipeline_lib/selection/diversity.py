"""Diversity: groups of similar documents, the order in which a greedy choice takes them, and a measure of the result."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.selection import kernels
from pipeline_lib.selection.features import UNIT, normalised

CLUSTER_DOCUMENTS = 512  # a cluster has about this many
MOST_CLUSTERS = 1024
LARGEST_CLUSTER = 4096  # a larger one is cut into parts in the documents' order: the greedy choice is quadratic
TRAINING_DOCUMENTS = 20_000  # k-means learns its centres from these
ROUNDS = 8
VENDI_DOCUMENTS = 2000


def clusters_of(vectors: NDArray[np.int16], draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """Spherical k-means.

    Args:
        vectors: [documents, 64] normalised.
        draws: a random number a document; the lowest ones are the first centres.

    Returns:
        Cluster number of each document.
    """
    count = min(MOST_CLUSTERS, -(-len(vectors) // CLUSTER_DOCUMENTS))
    if count <= 1:
        return np.zeros(len(vectors), dtype=np.int64)
    by_draw = np.argsort(draws, kind="stable")
    sample = vectors[by_draw[:TRAINING_DOCUMENTS]]
    centres = sample[:count].copy()
    chosen = np.empty(len(sample), dtype=np.int64)
    for _ in range(ROUNDS):
        kernels.nearest(sample, centres, chosen)
        sums = np.zeros((count, vectors.shape[1]), dtype=np.int64)
        np.add.at(sums, chosen, sample)
        norms = np.sqrt((sums * sums).sum(axis=1).astype(np.float64))
        alive = norms > 0  # a centre that lost all its documents stays where it was
        centres[alive] = np.rint(sums[alive] / norms[alive, None] * UNIT).astype(np.int16)
    result = np.empty(len(vectors), dtype=np.int64)
    kernels.nearest(vectors, centres, result)
    return result


def scores_of(
    vectors: NDArray[np.int16],
    draws: NDArray[np.float64],
    quality: NDArray[np.float64],
    recency: NDArray[np.float64],
    quality_weight: float,
) -> NDArray[np.float64]:
    """Marginal gain of each document of a domain in a greedy choice; descending scores are the order of choice.

    Args:
        vectors: [documents, 64] raw features.
        draws: a random number a document.
        quality: 0 … 1.
        recency: 0 … 1.
        quality_weight: weight of quality; novelty has the rest.
    """
    scores = np.empty(len(vectors), dtype=np.float64)
    unit = normalised(vectors)
    cluster = clusters_of(unit, draws)
    by_cluster = np.argsort(cluster, kind="stable")
    for members in np.split(by_cluster, np.flatnonzero(np.diff(cluster[by_cluster])) + 1):
        for start in range(0, len(members), LARGEST_CLUSTER):
            part = members[start : start + LARGEST_CLUSTER]
            found = np.empty(len(part), dtype=np.float64)
            kernels.greedy_scores(unit[part], quality[part], recency[part], quality_weight, UNIT, found)
            scores[part] = found
    return scores


def vendi_score(vectors: NDArray[np.int16], draws: NDArray[np.float64]) -> float:
    """Effective number of different topics: exp of the entropy of the eigenvalues of the cosine kernel (Friedman & Dieng 2023).

    Computed from the 64 × 64 covariance of at most 2,000 documents (lowest draws), which has the same non-zero eigenvalues.
    """
    sample = normalised(vectors[np.argsort(draws, kind="stable")[:VENDI_DOCUMENTS]]).astype(np.float64) / UNIT
    if not len(sample):
        return 0.0
    weights = np.linalg.eigvalsh(sample.T @ sample)
    weights = weights[weights > 1e-12]
    shares = weights / weights.sum()
    return round(float(np.exp(-(shares * np.log(shares)).sum())), 3) if len(weights) else 1.0
