"""What earlier nights leave to this one: pairs that need not be looked at again, and survivors that stay.

The first is a matter of time only: pairs are a function of the documents, so it makes no difference which earlier artifact of the
same index lends them. The second is a matter of result, so `dedup.parent` names the artifact and is part of the fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.config.data import DedupConfig
from pipeline_lib.dedup.candidates import Buckets, Candidates, Known
from pipeline_lib.dedup.documents import Corpus, Documents, EqualTexts, perhaps_among
from pipeline_lib.dedup.minhash import Index
from pipeline_lib.dedup.shingles import Shingles
from pipeline_lib.errors import DamagedError, NotFoundError
from pipeline_lib.tables.ids import Ids, ids_of
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.shards import Shard
from pipeline_lib.workspace.stage import StageRun

Numbers = NDArray[np.int64]
DUPLICATE_RULES = ("exact_duplicate", "near_duplicate")


@dataclass(frozen=True)
class Lent:
    """Verified pairs of an earlier night, by number of the documents tonight, ordered; and what tonight has to look at."""

    known: Known
    jaccard: NDArray[np.float64]
    containment: NDArray[np.float64]
    fresh: NDArray[np.bool_]

    def scores(self, found: Candidates) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
        """Which proposed pairs were verified before, and their Jaccard and containment (0 where they were not)."""
        ours, theirs = _codes(found.left, found.right), _codes(self.known.left, self.known.right)
        at = np.minimum(np.searchsorted(theirs, ours), max(len(theirs) - 1, 0))
        there = theirs[at] == ours if len(theirs) else np.zeros(len(ours), dtype=bool)
        jaccard, containment = np.zeros(len(ours)), np.zeros(len(ours))
        jaccard[there], containment[there] = self.jaccard[at[there]], self.containment[at[there]]
        return there, jaccard, containment


def _codes(left: Numbers, right: Numbers) -> NDArray[np.int64]:
    return (left << 32) | right


def index_identity(config: DedupConfig) -> dict[str, Any]:
    """What pairs depend on beside the documents."""
    shingles = Shingles.of(config)
    return {
        "shingle": config.shingle,
        "width": shingles.width,
        "bands": config.bands,
        "rows": config.rows,
        "bucket_limit": config.bucket_limit,
    }


def lender(run: StageRun, identity: dict[str, Any], segments: Sequence[Shard]) -> Artifact | None:
    """The newest intact artifact with the same index that shares a segment with tonight."""
    marks = {segment.fingerprint for segment in segments}
    if run.fresh:
        return None
    for key in run.workspace.store.newest(run.stage.name):
        try:
            artifact = run.workspace.store.artifact(key)
            same = artifact.manifest.version == run.stage.version and artifact.details.get("index") == identity
            if same and marks & artifact.manifest.shards.keys() and key in run.workspace.use(key):
                artifact.files("pairs"), artifact.files("buckets")
                return artifact
        except (DamagedError, NotFoundError):
            continue
    return None


def borrow(artifact: Artifact, corpus: Corpus, segments: Sequence[Shard], equal: EqualTexts) -> Lent:
    """Take over the pairs of the documents that lie in shared segments.

    A document that stood for equal texts tonight and not then (or the other way round) is looked at again, or passed over.
    """
    marks = artifact.manifest.shards.keys()
    fresh = np.repeat([segment.fingerprint not in marks for segment in segments], np.diff(corpus.starts))
    pairs = read_tables(artifact.files("pairs"))
    a, b = corpus.numbers(np.concatenate([ids_of(pairs[name]) for name in ("doc_id_a", "doc_id_b")])).reshape(2, -1)
    exact = pairs["bands_hit"].to_numpy() == 0
    was_copy = b[exact & (b >= 0)]
    stands = np.ones(len(corpus), dtype=bool)
    stands[equal.copies] = False
    fresh[was_copy] = True
    useful = ~exact & (a >= 0) & (b >= 0)
    useful[useful] = ~(fresh[a[useful]] | fresh[b[useful]]) & stands[a[useful]] & stands[b[useful]]
    left, right = np.minimum(a, b)[useful], np.maximum(a, b)[useful]
    order = np.lexsort((right, left))
    buckets = read_tables(artifact.files("buckets"))
    known = Buckets(
        buckets["band"].to_numpy().astype(np.int64),
        buckets["band_hash"].to_numpy(),
        buckets["documents"].to_numpy(),
        buckets["cut"].to_numpy(),
    )
    scores = [pairs[name].to_numpy()[useful][order] for name in ("jaccard", "containment")]
    hit = pairs["bands_hit"].to_numpy()[useful][order]
    return Lent(Known(left[order], right[order], hit, known), scores[0], scores[1], fresh)


@dataclass(frozen=True)
class Seniors:
    """The documents that an earlier night left standing."""

    known: Ids
    removed: Ids

    @classmethod
    def of(cls, parent: Artifact | None) -> Seniors:
        """All that the parent saw, without those that it removed as duplicates."""
        none = np.empty(0, dtype="S16")
        if parent is None:
            return cls(none, none)
        decisions = read_tables(parent.files("decisions"), ["doc_id", "rule"])
        removed = decisions.filter(pc.is_in(decisions["rule"], value_set=pa.array(DUPLICATE_RULES)))
        return cls(Index(parent.files("bands"), parent.details["bands"]).ids(), ids_of(removed["doc_id"]))

    def among(self, documents: Documents) -> NDArray[np.bool_]:
        """Which ones are seniors."""
        known = self.known[perhaps_among(self.known, documents.ids)]
        return documents.marked(known) & ~documents.marked(self.removed)
