"""Stage `dedup`: propose near-duplicates by MinHash, decide by exact similarity, keep one of each group, drop validation items.

1. band index, file by file (`bands`); 2. equal texts by `text_hash`; 3. candidate pairs, band by band (`buckets`: those that had
to be split); 4. exact Jaccard and containment on the texts (`pairs`, accepted and rejected); 5. documents that contain validation
items (`contamination`); 6. survivors and clusters (`clusters`), and a decision with its reason for every document that is dropped
(`decisions`). Pairs that an earlier night verified are taken over (`nights`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.config.data import DedupConfig
from pipeline_lib.dedup.boilerplate import shared_lines
from pipeline_lib.dedup.candidates import Candidates, propose
from pipeline_lib.dedup.conclude import Circumstances, Conclusion, at_threshold, conclude, failed_rules, pairs_of
from pipeline_lib.dedup.decontaminate import CONTAMINATION, by_suite, cut_edits, needles_of, search_file, worst_of
from pipeline_lib.dedup.documents import Corpus, Documents, EqualTexts
from pipeline_lib.dedup.evidence import buckets_table, ordered_decisions
from pipeline_lib.dedup.minhash import Index, index_file, proposal_probability, suggested_bands
from pipeline_lib.dedup.nights import Lent, Seniors, borrow, index_identity, lender
from pipeline_lib.dedup.semantic import same_meaning
from pipeline_lib.dedup.settle import Pairs
from pipeline_lib.dedup.shingles import Shingles
from pipeline_lib.dedup.verify import Place, distinct, similarities
from pipeline_lib.tables.ids import ids_of
from pipeline_lib.tables.parquet import read_tables, write_table
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.resolve import parent_of
from pipeline_lib.workspace.shards import Shard
from pipeline_lib.workspace.stage import Outcome, StageRun

CURVE = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
LOW_RECALL = 0.99  # a smaller probability of proposing a pair at the threshold is worth a warning
MUCH_NOISE = 0.5  # so is a larger one of proposing a pair that lies a third below the threshold
MANY_CONTAMINATED = 0.05  # a larger share of documents is more likely a common phrase in a suite than a leak
SOURCE_SHRINKS = 0.5  # a larger share of a source removed as duplicates is worth a warning


def dedup(run: StageRun, *, dedup: DedupConfig) -> Outcome:
    """See the module. Reads documents, signals and decisions of the rules, suite items.

    Raises:
        StageFailedError: the inputs do not belong together, or the parent is not what it was.
    """
    _warn_of_bands(run, dedup)
    corpus = Corpus.of(run.input("ingest"), run.input("score"))
    identity = index_identity(dedup)
    segments = _index(run, dedup)
    index = Index([segment.files["bands"] for segment in segments], dedup.bands)
    parent = parent_of(run, dedup.parent)
    contamination, suites = _contamination(run, dedup)
    around = Circumstances(corpus, corpus.sources, failed_rules(run.input("score")), contamination, Seniors.of(parent))
    equal = corpus.equal_texts()
    lent = _lent(run, corpus, segments, equal, identity)
    proposed = _propose(run, dedup, index=index, equal=equal, around=around, lent=lent)
    documents, pairs, verified = _verify(run, dedup, corpus=corpus, equal=equal, proposed=proposed, lent=lent)
    found = conclude(documents, pairs, dedup, around)
    same = same_meaning(run, dedup, around, ids_of(found.decisions["doc_id"]), _digests(run))
    kept, dropped = found.numbers["kept"] - len(same.decisions), found.numbers["dropped"] + len(same.decisions)

    write_table(found.pairs, run.path("pairs", "pairs.parquet"))
    write_table(found.clusters, run.path("clusters", "clusters.parquet"))
    write_table(ordered_decisions(found.decisions, same.decisions), run.path("decisions", "decisions.parquet"))
    write_table(same.pairs, run.path("semantic", "semantic.parquet"))
    gone = ids_of(pc.unique(pa.concat_tables([found.decisions, same.decisions])["doc_id"]))
    lines = shared_lines(run, dedup, _digests(run), np.concatenate([gone, around.failed]))
    edits = pa.concat_tables([cut_edits(around.contamination), lines.edits]).sort_by(
        [("doc_id", "ascending"), ("start", "ascending")]
    )
    write_table(edits, run.path("edits", "edits.parquet"))
    write_table(lines.table, run.path("boilerplate", "boilerplate.parquet"))
    write_table(buckets_table(proposed.buckets), run.path("buckets", "buckets.parquet"))
    _warn(run, dedup, around, proposed, found)

    others = [_counted(conclude(documents, pairs, at_threshold(dedup, value), around), value) for value in dedup.thresholds]
    metrics = {
        "documents": len(corpus),
        "dropped": dropped,
        "pairs_proposed": len(proposed.left),
        "pairs_verified": verified,  # the others were verified on an earlier night
        **{name: number for name, number in found.numbers.items() if name not in {"kept", "dropped"}},
        "semantic_duplicates": len(same.decisions),
        "bytes": corpus.bytes_of_text,
        "buckets_cut": int((proposed.buckets.cut > 0).sum()),
        "proposed_at_threshold": round(proposal_probability(dedup.threshold, dedup.bands, dedup.rows), 6),
    }
    return Outcome(
        metrics=metrics,
        counts={"in": len(corpus), "out": kept + dropped, "kept": kept, "dropped": dropped},
        summary=_summary(metrics, dedup, others, suites),
        details={
            "threshold": dedup.threshold,
            "bands": dedup.bands,
            "rows": dedup.rows,
            "index": identity,
            "collision_curve": {f"{s:.2f}": round(proposal_probability(s, dedup.bands, dedup.rows), 6) for s in CURVE},
            "thresholds": others,
            "suites": suites,
        },
    )


def _lent(run: StageRun, corpus: Corpus, segments: list[Shard], equal: EqualTexts, identity: dict[str, Any]) -> Lent | None:
    """Pairs of an earlier night, where there is one."""
    corpus.refuse_doubles()
    base = lender(run, identity, segments)
    return borrow(base, corpus, segments, equal) if base else None


def _counted(found: Conclusion, threshold: float) -> dict[str, Any]:
    return {"threshold": threshold, **found.numbers}


def _warn_of_bands(run: StageRun, config: DedupConfig) -> None:
    """The wanted threshold and the bands should agree."""
    at, below = (proposal_probability(s, config.bands, config.rows) for s in (config.threshold, config.threshold * 2 / 3))
    setting = {"threshold": config.threshold, "bands": config.bands, "rows": config.rows}
    better = "{} × {}".format(*suggested_bands(config.threshold, LOW_RECALL))
    if at < LOW_RECALL:
        run.event("bands_miss_threshold", **setting, proposed=round(at, 3), better=better)
    elif below > MUCH_NOISE:
        run.event("bands_below_threshold", **setting, proposed_a_third_below=round(below, 3), better=better)


def _propose(
    run: StageRun, config: DedupConfig, *, index: Index, equal: EqualTexts, around: Circumstances, lent: Lent | None
) -> Candidates:
    """Candidate pairs of documents with different texts."""
    taking_part = np.ones(len(index), dtype=bool)
    taking_part[equal.copies] = False

    def ranks(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        documents = around.corpus.read(numbers)
        places = documents.places(numbers)
        own, senior = (around.rank(documents, config, seniority=seniority)[places] for seniority in (False, True))
        return (own,) if np.array_equal(own, senior) else (own, senior)

    return propose(
        index,
        taking_part,
        ranks,
        config.bucket_limit,
        fresh=lent.fresh if lent else None,
        known=lent.known if lent else None,
        threads=run.services.workers,
    )


def _verify(
    run: StageRun, config: DedupConfig, *, corpus: Corpus, equal: EqualTexts, proposed: Candidates, lent: Lent | None
) -> tuple[Documents, Pairs, int]:
    """Scores of all pairs, those of equal texts too; and how many were looked at now."""
    count = len(proposed.left)
    there, jaccard, containment = lent.scores(proposed) if lent else (np.zeros(count, bool), np.zeros(count), np.zeros(count))
    new = np.flatnonzero(~there)
    left, right = proposed.left[new], proposed.right[new]
    numbers, places = distinct(len(corpus), left, right)
    file = np.searchsorted(corpus.starts, numbers, side="right") - 1
    place = Place(corpus.documents, file, numbers - corpus.starts[file])
    jaccard[new], containment[new] = similarities(
        places[left], places[right], place, Shingles.of(config), mapper=run.services.mapper, scratch=run.keep("scratch")
    )
    same, none = np.ones(len(equal.copies)), np.zeros(len(equal.copies), dtype=np.int32)
    columns = {
        "jaccard": np.concatenate([jaccard, same]),
        "containment": np.concatenate([containment, same]),
        "bands_hit": np.concatenate([proposed.bands_hit, none]),
    }
    left, right = np.concatenate([proposed.left, equal.copies]), np.concatenate([proposed.right, equal.of])
    return *pairs_of(corpus, left, right, columns), len(new)


def _warn(run: StageRun, config: DedupConfig, around: Circumstances, proposed: Candidates, found: Conclusion) -> None:
    """Events that a person should see."""
    buckets = proposed.buckets
    if proposed.split:
        run.event("buckets_split", buckets=proposed.split, largest=int(buckets.documents.max()), limit=config.bucket_limit)
    if cut := int((buckets.cut > 0).sum()):
        run.event("buckets_cut", buckets=cut, documents=int(buckets.cut.max()), limit=config.bucket_limit)
    if found.numbers["largest_cluster"] > config.cluster_alarm:
        run.event("large_cluster", documents=found.numbers["largest_cluster"], alarm=config.cluster_alarm)
    for name, removed in found.settled.removed_of.items():
        if removed > SOURCE_SHRINKS * around.totals[name]:
            run.event("source_shrinks", source=name, documents=around.totals[name], removed=removed)


def _digests(run: StageRun) -> list[tuple[str, str]]:
    """(path, digest) of each documents file: a shard is known by the content of its file."""
    ingest = run.input("ingest")
    digests = [entry.digest for entry in ingest.manifest.files if entry.table == "documents"]
    return list(zip((str(path) for path in ingest.files("documents")), digests, strict=True))


def _index(run: StageRun, config: DedupConfig) -> list[Shard]:
    shingles = Shingles.of(config)
    index = {
        "part": "bands", "width": shingles.width, "characters": shingles.characters, "bands": config.bands, "rows": config.rows,
    }  # fmt: skip
    return run.shards(
        _digests(run), partial(index_file, config=config), key=lambda item: {**index, "file": item[1]}, unit="files"
    )


def _contamination(run: StageRun, config: DedupConfig) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Documents that contain validation items (table `contamination`), and what is taken out for which suite."""
    if not config.decontaminate:
        return CONTAMINATION.empty_table(), []
    suites = run.input("suites")
    needles = needles_of(read_tables(suites.files("suite_items"), ["suite", "item", "text", "kind"]), config.decontaminate_words)
    if needles.too_short:
        run.event("suite_items_too_short_to_find", items=needles.too_short)
    if not len(needles):
        return CONTAMINATION.empty_table(), []
    cut = config.contaminated == "cut"
    search = {
        "part": "contamination", "words": config.decontaminate_words, "cut": cut, "items": suites.manifest.tables["suite_items"],
    }  # fmt: skip
    shards = run.shards(
        _digests(run), partial(search_file, needles=needles, cut=cut), key=lambda item: {**search, "file": item[1]}, unit="files"
    )
    found = read_tables([shard.files["contamination"] for shard in shards]) if shards else CONTAMINATION.empty_table()
    documents = len(pc.unique(found["doc_id"]))
    if documents > MANY_CONTAMINATED * sum(shard.metrics["documents"] for shard in shards):
        run.event("much_contamination", documents=documents, most=worst_of(found))
    return found, by_suite(found, needles.searched)


def _summary(
    metrics: dict[str, Any], config: DedupConfig, others: list[dict[str, Any]], suites: list[dict[str, Any]]
) -> SummaryTable:
    rows: list[tuple[str, float]] = [
        ("documents", metrics["documents"]),
        ("pairs proposed by MinHash", metrics["pairs_proposed"]),
        (f"… verified, Jaccard ≥ {config.threshold:g}", metrics["pairs_accepted"]),
        ("duplicate clusters", metrics["clusters"]),
        ("dropped: same text", metrics["exact_duplicates"]),
        ("dropped: near duplicate", metrics["near_duplicates"]),
        *([("dropped: same meaning", metrics["semantic_duplicates"])] if config.semantic != "none" else []),
        ("dropped: contains a validation item", metrics["contaminated"]),
        *(
            (f"… of suite {row['suite']}: documents {does}", row[does])
            for row in suites
            for does in ("dropped", "cut")
            if row[does]
        ),
        *((f"… near duplicates, were the threshold {row['threshold']:g}", row["near_duplicates"]) for row in others),
        *(
            (f"P(proposed at Jaccard {s:g})", round(proposal_probability(s, config.bands, config.rows), 4))
            for s in sorted({*CURVE, config.threshold})
        ),
    ]
    return SummaryTable(("what", "number"), rows, "Duplicates")
