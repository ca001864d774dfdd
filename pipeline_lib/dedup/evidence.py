"""The tables that dedup leaves: proposed pairs, clusters and decisions, each row with what it rests on. All are ordered by id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.dedup.candidates import Buckets
from pipeline_lib.dedup.clusters import cluster_names
from pipeline_lib.dedup.documents import Documents
from pipeline_lib.dedup.settle import Pairs, Settled
from pipeline_lib.tables.ids import Ids, hex_column, id_column, ids_of
from pipeline_lib.tables.schemas import BUCKETS, CLUSTERS, DECISIONS, PAIRS

NOT_DIRECT = "not a direct duplicate of a better document"
BY_QUOTA = "duplicate that stays for the quota of its source"


def pairs_table(ids: Ids, pairs: Pairs, accepted: NDArray[np.bool_]) -> pa.Table:
    """Every looked-at pair, accepted or not; `bands_hit` 0 means found by equal text hashes."""
    columns = [
        id_column(ids[pairs.left]), id_column(ids[pairs.right]), pairs.jaccard, pairs.containment, pairs.bands_hit, accepted,
    ]  # fmt: skip
    return pa.table(columns, schema=PAIRS)


def buckets_table(buckets: Buckets) -> pa.Table:
    """Every bucket over the limit."""
    return pa.table([buckets.band.astype(np.int32), buckets.hash, buckets.documents, buckets.cut], schema=BUCKETS)


def best_of(survivor: Sequence[str]) -> str:
    """The reason of a cluster's best document."""
    return "best of its cluster: " + ", ".join(
        ["free of validation items", "passed the rules", "there on an earlier night", *survivor, "id"]
    )


def clusters_table(documents: Documents, settled: Settled, rank: NDArray[np.int64], best: str) -> pa.Table:
    """A row for every document of a cluster of two or more. A document without a row is a cluster of its own."""
    groups = settled.groups
    sizes = np.bincount(groups.root, minlength=len(documents))
    members = np.flatnonzero(sizes[groups.root] > 1)
    names = cluster_names(groups.root, documents.created)
    best_rank = np.full(len(documents), len(documents), dtype=np.int64)
    np.minimum.at(best_rank, groups.root, rank)
    remover = groups.removed_by[members]
    survivor = remover < 0
    why = pa.array([best, NOT_DIRECT, BY_QUOTA]).take(
        pa.array(np.where(settled.by_quota[members], 2, np.where(rank[members] == best_rank[groups.root[members]], 0, 1)))
    )
    reason = pc.if_else(survivor, why, _told(documents, members, remover))
    return pa.table(
        [id_column(documents.ids[members]), id_column(documents.ids[names[members]]), survivor, reason], schema=CLUSTERS
    )


def _told(documents: Documents, removed: NDArray[np.int64], remover: NDArray[np.int64]) -> pa.Array:
    """In words, of whom each removed document is a duplicate (survivors get a text that nobody reads)."""
    same = documents.text_hash[removed] == documents.text_hash[remover]
    return pc.binary_join_element_wise(
        pc.if_else(same, "same text as", "near duplicate of"), hex_column(documents.ids[remover]), " "
    )


def duplicate_decisions(documents: Documents, settled: Settled) -> pa.Table:
    """A decision for each removed document: `exact_duplicate` or `near_duplicate`, the survivor, and the Jaccard similarity."""
    groups = settled.groups
    removed = np.flatnonzero(groups.removed_by >= 0)
    remover = groups.removed_by[removed]
    same = documents.text_hash[removed] == documents.text_hash[remover]
    rule = pc.if_else(same, "exact_duplicate", "near_duplicate")
    return _decisions(documents.ids[removed], rule, _told(documents, removed, remover), groups.similarity[removed])


def contamination_decisions(found: pa.Table) -> pa.Table:
    """A decision for each document that is dropped for a suite item: the item of which most was found."""
    ordered = found.filter(pc.invert(found["cut"])).sort_by(
        [("doc_id", "ascending"), ("containment", "descending"), ("suite", "ascending"), ("item", "ascending")]
    )
    ids = ids_of(ordered["doc_id"])
    first = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])) if len(ids) else np.empty(0, dtype=np.int64)
    worst = ordered.take(pa.array(first)).combine_chunks()
    reason = pc.binary_join_element_wise("contains item", worst["item"], "of suite", worst["suite"], " ")
    rule = pa.array(["contamination"]).take(pa.array(np.zeros(len(first), dtype=np.int64)))
    return _decisions(ids[first], rule, reason, worst["containment"])


def _decisions(ids: Ids, rule: pa.Array, reason: pa.Array, value: pa.Array | NDArray[np.float64]) -> pa.Table:
    count = len(ids)
    stage = pa.array(["dedup"]).take(pa.array(np.zeros(count, dtype=np.int64)))
    return pa.table([id_column(ids), stage, rule, np.zeros(count, dtype=bool), reason, value], schema=DECISIONS)


def ordered_decisions(*parts: pa.Table) -> pa.Table:
    """Decisions by document, then rule."""
    return pa.concat_tables(parts).sort_by([("doc_id", "ascending"), ("rule", "ascending")])
