"""Who stays of a group of duplicates, and which documents belong together for the split.

**Survivors.** Documents are taken from best to worst (`rank`); each one that is still there removes its *direct* neighbours:
documents with the same text, or with a verified similarity above the threshold. A chain A–B–C whose ends differ keeps A and C:
nothing is removed on hearsay.

**Clusters** are the connected components, because a text must not be trained on while its neighbour's neighbour is tested on.
A cluster is named by its earliest document (creation date, then id), so that a later document joins under the old name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.dedup import kernels
from pipeline_lib.dedup.documents import first_half, first_of_each


@dataclass(frozen=True)
class Groups:
    """For each document number: who removed it (-1: nobody), how similar they are, and a number of its cluster."""

    removed_by: NDArray[np.int64]
    similarity: NDArray[np.float64]
    root: NDArray[np.int64]


def representatives(text_hash: NDArray[np.bytes_], rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each document the best ranked one with the same text (itself when there is no other)."""
    best = np.arange(len(rank))
    some = kernels.repeated(first_half(text_hash))
    ordered = some[np.argsort(rank[some])]
    text = np.unique(text_hash[ordered], return_inverse=True)[1]
    best[ordered] = first_of_each(text, ordered)
    return best


def cluster_names(root: NDArray[np.int64], created: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each document the earliest document of its cluster; numbers are in id order, unknown dates are last."""
    order = np.argsort(created, kind="stable")
    names = np.empty(len(root), dtype=np.int64)
    names[order] = first_of_each(root[order], order)
    return names


def group(
    rank: NDArray[np.int64],
    best: NDArray[np.int64],
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    similarity: NDArray[np.float64],
) -> Groups:
    """Settle every document.

    Args:
        rank: place of each document in the order of survivors, 0 the best.
        best: representative of each document among equal texts.
        left: accepted pairs of representatives, document numbers.
        right: the other side of each pair.
        similarity: Jaccard of each pair.
    """
    bounds, neighbours = np.zeros(len(rank) + 1, dtype=np.int64), np.empty(2 * len(left), dtype=np.int64)
    kernels.adjacency(left, right, bounds, neighbours)
    removed_by = np.full(len(rank), -1, dtype=np.int64)
    kernels.choose_survivors(np.argsort(rank), bounds, neighbours, removed_by)
    value = np.zeros(len(rank), dtype=np.float64)
    for loser, winner in ((left, right), (right, left)):
        decided = removed_by[loser] == winner
        value[loser[decided]] = similarity[decided]
    copies = np.flatnonzero(best != np.arange(len(best)))
    kept = removed_by[best[copies]] < 0  # a copy shares the fate of its representative: the texts are the same
    removed_by[copies] = np.where(kept, best[copies], removed_by[best[copies]])
    value[copies] = np.where(kept, 1.0, value[best[copies]])
    root = np.arange(len(rank), dtype=np.int64)
    kernels.components(np.concatenate([left, copies]), np.concatenate([right, best[copies]]), root)
    return Groups(removed_by, value, root)
