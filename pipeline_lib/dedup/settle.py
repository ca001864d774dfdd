"""From verified pairs to who survives: for the stage, for further thresholds, and later by `rethreshold`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.config.data import DedupConfig
from pipeline_lib.dedup.clusters import Groups, group, representatives
from pipeline_lib.dedup.documents import Documents

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Verified pairs, by places in `Documents` (id order, so `left < right` by id, too), ordered. `bands_hit` 0: equal texts."""

    left: Numbers
    right: Numbers
    jaccard: NDArray[np.float64]
    containment: NDArray[np.float64]
    bands_hit: NDArray[np.int32]

    def accepted(self, config: DedupConfig) -> NDArray[np.bool_]:
        """Which ones are duplicates."""
        found = self.jaccard >= config.threshold
        return found | (self.containment >= config.containment) if config.containment else found


@dataclass(frozen=True)
class Settled:
    """Who removes whom, and who stays for the quota of its source."""

    groups: Groups
    by_quota: NDArray[np.bool_]
    removed_of: Mapping[str, int]  # source -> documents removed as duplicates


def settle(documents: Documents, rank: Numbers, pairs: Pairs, config: DedupConfig, totals: Mapping[str, int]) -> Settled:
    """Decide about the documents of pairs.

    Args:
        documents: those that occur in pairs.
        rank: their places in the order of survivors.
        pairs: verified pairs.
        config: thresholds and quotas.
        totals: documents of each source in the whole corpus.
    """
    best = representatives(documents.text_hash, rank)
    near = (pairs.bands_hit > 0) & pairs.accepted(config)
    left, right = best[pairs.left[near]], best[pairs.right[near]]
    groups = group(rank, best, left, right, pairs.jaccard[near])
    by_quota = _restored(documents, rank, groups, config.source_quota, totals)
    groups.removed_by[by_quota] = -1
    removed = np.bincount(documents.source[groups.removed_by >= 0], minlength=len(documents.source_names))
    return Settled(groups, by_quota, dict(zip(documents.source_names, removed.tolist(), strict=True)))


def _restored(documents: Documents, rank: Numbers, groups: Groups, quota: float, totals: Mapping[str, int]) -> NDArray[np.bool_]:
    """The best removed documents of each source of which more were removed than its quota allows."""
    restored = np.zeros(len(documents), dtype=bool)
    for source, name in enumerate(documents.source_names if quota else []):
        removed = np.flatnonzero((groups.removed_by >= 0) & (documents.source == source))
        missing = len(removed) - int((1.0 - quota) * totals[name])
        if missing > 0:
            restored[removed[np.argsort(rank[removed])[:missing]]] = True
    return restored
