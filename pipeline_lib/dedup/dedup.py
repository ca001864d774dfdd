"""Stage `dedup`: propose near-duplicates by MinHash, decide by exact similarity, keep one of each group, drop validation items.

1. equal texts by `text_hash`; 2. band index, file by file (`bands`); 3. candidate pairs, band by band; 4. exact Jaccard on the
texts (`pairs`, accepted and rejected); 5. survivors and clusters (`clusters`); 6. documents that contain validation items
(`contamination`); 7. one decision with its reason for every document that is dropped (`decisions`).
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.config.data import DedupConfig
from pipeline_lib.dedup.candidates import propose
from pipeline_lib.dedup.clusters import group, representatives
from pipeline_lib.dedup.decontaminate import CONTAMINATION, needles_of, search_file, worst_of
from pipeline_lib.dedup.documents import Documents, read_documents
from pipeline_lib.dedup.evidence import (
    clusters_table,
    contamination_decisions,
    duplicate_decisions,
    ordered_decisions,
    pairs_table,
)
from pipeline_lib.dedup.minhash import index_file, proposal_probability
from pipeline_lib.dedup.verify import similarities
from pipeline_lib.tables.ids import Ids, ids_of, places_of
from pipeline_lib.tables.parquet import read_tables, write_table
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.shards import Shard
from pipeline_lib.workspace.stage import Outcome, StageRun

CURVE = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
LOW_RECALL = 0.9  # a smaller probability of proposing a pair at the threshold is worth a warning
MANY_CONTAMINATED = 0.05  # a larger share of documents is more likely a common phrase in a suite than a leak


def dedup(run: StageRun, *, dedup: DedupConfig) -> Outcome:
    """See the module. Reads documents, signals and decisions of the rules, suite items.

    Raises:
        StageFailedError: the inputs do not belong together.
    """
    at_threshold = proposal_probability(dedup.threshold, dedup.bands, dedup.rows)
    if at_threshold < LOW_RECALL:
        run.event(
            "bands_miss_threshold", threshold=dedup.threshold, proposed=round(at_threshold, 3), bands=dedup.bands, rows=dedup.rows
        )
    documents = read_documents(run.input("ingest"), run.input("score"))
    bands = _index(run, dedup)
    found = _contamination(run, dedup)
    contaminated = _marked(documents, ids_of(found["doc_id"]))
    failed = _marked(documents, _failed_rules(run))

    rank = documents.ranks(failed, contaminated)
    best = representatives(documents.text_hash, rank)
    alone = np.flatnonzero(best == np.arange(len(documents)))
    files = list(dict.fromkeys(shard.files["bands"] for shard in bands))
    proposed = propose(documents.ids[alone], alone, rank[alone], files, dedup.bands, dedup.bucket_limit)
    if proposed.cut_buckets:
        run.event("buckets_cut", buckets=proposed.cut_buckets, largest=proposed.largest_bucket, limit=dedup.bucket_limit)
    jaccard, containment = similarities(proposed.left, proposed.right, documents.place, dedup.shingle_words)
    accepted = jaccard >= dedup.threshold
    groups = group(rank, best, proposed.left[accepted], proposed.right[accepted], jaccard[accepted])

    copies = np.flatnonzero(best != np.arange(len(documents)))
    ones = np.ones(len(copies))
    pairs = pairs_table(
        documents.ids,
        left=np.concatenate([proposed.left, copies]),
        right=np.concatenate([proposed.right, best[copies]]),
        jaccard=np.concatenate([jaccard, ones]),
        containment=np.concatenate([containment, ones]),
        bands_hit=np.concatenate([proposed.bands_hit, np.zeros(len(copies), dtype=np.int32)]),
        threshold=dedup.threshold,
    )
    clusters = clusters_table(documents, groups, rank)
    decisions = ordered_decisions(duplicate_decisions(documents, groups), contamination_decisions(found))
    for name, table in (("pairs", pairs), ("clusters", clusters), ("decisions", decisions)):
        write_table(table, run.path(name, f"{name}.parquet"))

    rules = dict(zip(*np.unique(decisions["rule"].to_numpy(zero_copy_only=False).astype(str), return_counts=True), strict=True))
    kept, dropped = int(((groups.removed_by < 0) & ~contaminated).sum()), len(pc.unique(decisions["doc_id"]))
    metrics = {
        "documents": len(documents),
        "bytes": int(documents.place.size.sum()),
        "pairs_proposed": len(proposed.left),
        "pairs_accepted": int(accepted.sum()),
        "pairs_rejected": int((~accepted).sum()),
        "clusters": len(pc.unique(clusters["cluster_id"])),
        "largest_cluster": int(np.bincount(groups.root).max()) if len(documents) else 0,
        "exact_duplicates": int(rules.get("exact_duplicate", 0)),
        "near_duplicates": int(rules.get("near_duplicate", 0)),
        "contaminated": int(rules.get("contamination", 0)),
        "dropped": dropped,
        "buckets_cut": proposed.cut_buckets,
        "proposed_at_threshold": round(at_threshold, 6),
    }
    return Outcome(
        metrics=metrics,
        counts={"in": len(documents), "out": kept + dropped, "kept": kept, "dropped": dropped},
        summary=_summary(metrics, dedup),
        details={
            "threshold": dedup.threshold,
            "bands": dedup.bands,
            "rows": dedup.rows,
            "collision_curve": {f"{s:.2f}": round(proposal_probability(s, dedup.bands, dedup.rows), 6) for s in CURVE},
        },
    )


def _digests(run: StageRun) -> list[tuple[str, str]]:
    """(path, digest) of each documents file: a shard is known by the content of its file."""
    ingest = run.input("ingest")
    digests = [entry.digest for entry in ingest.manifest.files if entry.table == "documents"]
    return list(zip((str(path) for path in ingest.files("documents")), digests, strict=True))


def _index(run: StageRun, config: DedupConfig) -> list[Shard]:
    index = {"part": "bands", "shingle_words": config.shingle_words, "bands": config.bands, "rows": config.rows}
    return run.shards(
        _digests(run), partial(index_file, config=config), key=lambda item: {**index, "file": item[1]}, unit="files"
    )


def _contamination(run: StageRun, config: DedupConfig) -> pa.Table:
    """Documents that contain validation items (table `contamination`)."""
    if not config.decontaminate:
        return CONTAMINATION.empty_table()
    suites = run.input("suites")
    needles = needles_of(read_tables(suites.files("suite_items"), ["suite", "item", "text"]), config.decontaminate_words)
    if needles.too_short:
        run.event("suite_items_too_short_to_find", items=needles.too_short)
    if not len(needles):
        return CONTAMINATION.empty_table()
    search = {"part": "contamination", "words": config.decontaminate_words, "items": suites.manifest.tables["suite_items"]}
    shards = run.shards(
        _digests(run), partial(search_file, needles=needles), key=lambda item: {**search, "file": item[1]}, unit="files"
    )
    found = read_tables([shard.files["contamination"] for shard in shards]) if shards else CONTAMINATION.empty_table()
    documents = len(pc.unique(found["doc_id"]))
    if documents > MANY_CONTAMINATED * sum(shard.metrics["documents"] for shard in shards):
        run.event("much_contamination", documents=documents, most=worst_of(found))
    return found


def _failed_rules(run: StageRun) -> Ids:
    decisions = read_tables(run.input("score").files("decisions"), ["doc_id", "kept"])
    return ids_of(decisions.filter(pc.invert(decisions["kept"]))["doc_id"])


def _marked(documents: Documents, ids: Ids) -> NDArray[np.bool_]:
    marks = np.zeros(len(documents), dtype=bool)
    places = places_of(ids, documents.ids)
    marks[places[places >= 0]] = True
    return marks


def _summary(metrics: dict[str, float], config: DedupConfig) -> SummaryTable:
    rows = [
        ("documents", metrics["documents"]),
        ("pairs proposed by MinHash", metrics["pairs_proposed"]),
        (f"… verified, Jaccard ≥ {config.threshold:g}", metrics["pairs_accepted"]),
        ("duplicate clusters", metrics["clusters"]),
        ("dropped: same text", metrics["exact_duplicates"]),
        ("dropped: near duplicate", metrics["near_duplicates"]),
        ("dropped: contains a validation item", metrics["contaminated"]),
        (f"P(proposed at {config.threshold:g})", metrics["proposed_at_threshold"]),
    ]
    return SummaryTable(("what", "number"), rows, "Duplicates")
