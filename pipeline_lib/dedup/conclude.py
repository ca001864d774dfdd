"""The decisions of a night, from its verified pairs. A function of the pairs, so that another threshold needs no other pairs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.config.data import DedupConfig
from pipeline_lib.dedup.decontaminate import CONTAMINATION
from pipeline_lib.dedup.documents import Corpus, Documents
from pipeline_lib.dedup.evidence import (
    best_of,
    clusters_table,
    contamination_decisions,
    duplicate_decisions,
    ordered_decisions,
    pairs_table,
)
from pipeline_lib.dedup.nights import Seniors
from pipeline_lib.dedup.settle import Pairs, Settled, settle
from pipeline_lib.dedup.verify import distinct
from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.tables.ids import Ids, ids_of
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.resolve import key_of


@dataclass(frozen=True)
class Circumstances:
    """What decides about survivors beside the documents themselves."""

    corpus: Corpus
    totals: dict[str, int]  # documents of each source
    failed: Ids  # documents that the rules refused
    contamination: pa.Table
    seniors: Seniors

    @cached_property
    def contaminated(self) -> Ids:
        """Documents with validation items."""
        return ids_of(pc.unique(self.contamination["doc_id"]))

    def rank(self, documents: Documents, config: DedupConfig, *, seniority: bool = True) -> NDArray[np.int64]:
        """Place of each document in the order of survivors."""
        first = [documents.marked(self.contaminated), documents.marked(self.failed)]
        if seniority:
            first.append(~self.seniors.among(documents))
        return documents.rank(config.survivor, *first)


@dataclass(frozen=True)
class Conclusion:
    """The tables that follow from pairs and a threshold, and numbers about them."""

    pairs: pa.Table
    clusters: pa.Table
    decisions: pa.Table
    settled: Settled
    numbers: dict[str, int]


def failed_rules(score: Artifact) -> Ids:
    """Documents that a rule refused."""
    decisions = read_tables(score.files("decisions"), ["doc_id", "kept"])
    return ids_of(decisions.filter(pc.invert(decisions["kept"]))["doc_id"])


def conclude(documents: Documents, pairs: Pairs, config: DedupConfig, around: Circumstances) -> Conclusion:
    """Decide at `config.threshold`."""
    rank = around.rank(documents, config)
    accepted = pairs.accepted(config)
    settled = settle(documents, rank, pairs, config, around.totals)
    clusters = clusters_table(documents, settled, rank, best_of(config.survivor))
    decisions = ordered_decisions(duplicate_decisions(documents, settled), contamination_decisions(around.contamination))
    rules = dict(zip(*np.unique(decisions["rule"].to_numpy(zero_copy_only=False).astype(str), return_counts=True), strict=True))
    total, dropped = len(around.corpus), len(pc.unique(decisions["doc_id"]))
    near = pairs.bands_hit > 0
    numbers = {
        "pairs_accepted": int((accepted & near).sum()),
        "pairs_rejected": int((~accepted & near).sum()),
        "clusters": len(pc.unique(clusters["cluster_id"])),
        "largest_cluster": int(np.bincount(settled.groups.root).max()) if len(documents) else min(total, 1),
        "exact_duplicates": int(rules.get("exact_duplicate", 0)),
        "near_duplicates": int(rules.get("near_duplicate", 0)),
        "contaminated": int(rules.get("contamination", 0)),
        "kept_by_quota": int(settled.by_quota.sum()),
        "kept": total - dropped,
        "dropped": dropped,
    }
    return Conclusion(pairs_table(documents.ids, pairs, accepted), clusters, decisions, settled, numbers)


def at_threshold(config: DedupConfig, threshold: float) -> DedupConfig:
    """The configuration with another threshold."""
    return config.model_copy(update={"threshold": threshold})


def rethreshold(dedup: Artifact, ingest: Artifact, score: Artifact, threshold: float) -> Conclusion:
    """What a run at another threshold decides, from the pairs that an earlier run verified. Nothing is written.

    Below the artifact's own threshold its bands propose fewer of the pairs: `minhash.proposal_probability` says how many.

    Args:
        dedup: the artifact with the pairs.
        ingest: the documents it was made from.
        score: their signals.
        threshold: Jaccard similarity from which two documents are duplicates.

    Raises:
        ConfigError: no similarity.
        NotFoundError: the artifact was made from other documents.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold {threshold:g} is no Jaccard similarity", fix="a number above 0, at most 1")
    config = DedupConfig.model_validate(dedup.manifest.parameters["dedup"])
    corpus = Corpus.of(ingest, score)
    parent = dedup.store.artifact(key_of(config.parent)) if key_of(config.parent) else None
    around = Circumstances(corpus, corpus.sources, failed_rules(score), _contamination_of(dedup), Seniors.of(parent))
    table = read_tables(dedup.files("pairs"))
    corpus.refuse_doubles()
    documents, pairs = pairs_of(
        corpus,
        _known(corpus, table["doc_id_a"]),
        _known(corpus, table["doc_id_b"]),
        {name: table[name].to_numpy() for name in ("jaccard", "containment", "bands_hit")},
    )
    return conclude(documents, pairs, at_threshold(config, threshold), around)


def pairs_of(
    corpus: Corpus, left: NDArray[np.int64], right: NDArray[np.int64], columns: dict[str, NDArray[Any]]
) -> tuple[Documents, Pairs]:
    """The documents of pairs given by number, and the pairs by place in them, ordered by id."""
    documents = corpus.read(distinct(len(corpus), left, right)[0])
    one, other = documents.places(left), documents.places(right)
    a, b = np.minimum(one, other), np.maximum(one, other)
    order = np.argsort((a << 32) | b)
    return documents, Pairs(a[order], b[order], **{name: values[order] for name, values in columns.items()})


def _contamination_of(dedup: Artifact) -> pa.Table:
    files = dedup.files("contamination") if "contamination" in dedup.manifest.tables else []
    if files:
        return read_tables(files)
    return CONTAMINATION.empty_table()


def _known(corpus: Corpus, column: pa.ChunkedArray) -> NDArray[np.int64]:
    numbers = corpus.numbers(ids_of(column))
    if (numbers < 0).any():
        raise NotFoundError("the pairs are of other documents", fix="name the ingest and score artifacts of the same run")
    return numbers
