"""What selection knows of every document, in id order, and what earlier stages said about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.corpus.split import SIDES
from pipeline_lib.errors import StageFailedError
from pipeline_lib.tables.ids import Ids, ids_of, places_of
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.stage import StageRun

UNKNOWN_DATE = np.iinfo(np.int64).min
SECONDS_A_DAY = 86_400.0


@dataclass(frozen=True)
class Labels:
    """A text column as numbers into a list of names."""

    names: list[str]
    codes: NDArray[np.int64]

    @classmethod
    def of(cls, column: pa.ChunkedArray, order: NDArray[np.int64]) -> Labels:
        """Encode a column, reordered. Names are sorted."""
        texts = column.combine_chunks().fill_null("").dictionary_encode()
        names = texts.dictionary.to_pylist()
        by_name = np.argsort(np.array(names, dtype=object)) if names else np.empty(0, dtype=np.int64)
        place = np.empty(len(names), dtype=np.int64)
        place[by_name] = np.arange(len(names))
        return cls([names[i] for i in by_name], place[texts.indices.to_numpy().astype(np.int64)][order])


@dataclass(frozen=True)
class Pool:
    """All documents. `position` is each one's place in the documents files, one after the other."""

    ids: Ids
    position: NDArray[np.int64]
    domain: Labels
    source: Labels
    created: NDArray[np.int64]  # seconds since 1970, UNKNOWN_DATE when unknown
    text_hash: Ids
    quality: NDArray[np.float64]  # 0 … 1
    tokens: NDArray[np.int64]
    side: NDArray[np.int64]  # index into SIDES
    cluster: NDArray[np.int64]  # number of the document that names the cluster

    def __len__(self) -> int:
        return len(self.ids)

    def recency(self, half_life_days: float) -> NDArray[np.float64]:
        """0.5^(age / half life), age counted from the newest document; one without a date counts as of the median date."""
        known = self.created != UNKNOWN_DATE
        if not half_life_days or not known.any():
            return np.ones(len(self), dtype=np.float64)
        seconds = np.where(known, self.created, int(np.median(self.created[known])))
        days = (self.created[known].max() - seconds) / SECONDS_A_DAY
        return np.asarray(0.5 ** (days / half_life_days), dtype=np.float64)


@dataclass(frozen=True)
class Refusals:
    """Why each document was refused before selection; "" where it was not. The rules come before the duplicates."""

    rule: NDArray[np.object_]
    reason: NDArray[np.object_]
    contaminated: NDArray[np.bool_]
    duplicate: NDArray[np.bool_]


def side_codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Names of sides as indices into `SIDES`."""
    return np.asarray(pc.index_in(column, pa.array(SIDES)).to_numpy(), dtype=np.int64)


def read_pool(run: StageRun) -> Pool:
    """Join documents, signals, splits and clusters.

    Raises:
        StageFailedError: they are not of the same documents.
    """
    documents = read_tables(run.input("ingest").files("documents"), ["doc_id", "domain", "source", "created_at", "text_hash"])
    signals = read_tables(run.input("score").files("signals"), ["doc_id", "quality", "est_tokens"])
    splits = read_tables(run.input("split").files("splits"))
    clusters = read_tables(run.input("dedup").files("clusters"), ["doc_id", "cluster_id"])
    unordered = ids_of(documents["doc_id"])
    order = np.argsort(unordered, kind="stable")
    ids = unordered[order]
    if not (np.array_equal(unordered, ids_of(signals["doc_id"])) and np.array_equal(ids, ids_of(splits["doc_id"]))):
        raise StageFailedError(
            "signals or splits are not of these documents", where="stage select", fix="`millrace run --from score --force`"
        )
    cluster = np.arange(len(ids), dtype=np.int64)
    cluster[places_of(ids_of(clusters["doc_id"]), ids)] = places_of(ids_of(clusters["cluster_id"]), ids)
    quality = np.nan_to_num(signals["quality"].cast(pa.float64()).fill_null(0.0).to_numpy(), nan=0.0)
    created = documents["created_at"].cast(pa.int64()).fill_null(UNKNOWN_DATE).to_numpy()
    return Pool(
        ids=ids,
        position=order,
        domain=Labels.of(documents["domain"], order),
        source=Labels.of(documents["source"], order),
        created=created[order],
        text_hash=ids_of(documents["text_hash"])[order],
        quality=np.clip(quality, 0.0, 1.0)[order],
        tokens=signals["est_tokens"].cast(pa.int64()).fill_null(0).to_numpy()[order],
        side=side_codes(splits["side"]),
        cluster=cluster,
    )


def read_refusals(run: StageRun, ids: Ids) -> Refusals:
    """The first refusal of each document: of `score`, then of `dedup`; by rule name within a stage."""
    rule = np.full(len(ids), "", dtype=object)
    reason = np.full(len(ids), "", dtype=object)
    marks = {name: np.zeros(len(ids), dtype=bool) for name in ("contamination", "exact_duplicate", "near_duplicate")}
    for stage in ("dedup", "score"):  # the later one overwrites
        decisions = read_tables(run.input(stage).files("decisions"), ["doc_id", "rule", "kept", "reason"])
        refused = decisions.filter(pc.invert(decisions["kept"])).sort_by([("doc_id", "descending"), ("rule", "descending")])
        places = places_of(ids_of(refused["doc_id"]), ids)
        rules = refused["rule"].to_numpy(zero_copy_only=False).astype(object)
        rule[places] = rules
        reason[places] = refused["reason"].to_numpy(zero_copy_only=False)
        for name, mark in marks.items():
            mark[places[rules == name]] = True
    return Refusals(rule, reason, marks["contamination"], marks["exact_duplicate"] | marks["near_duplicate"])
