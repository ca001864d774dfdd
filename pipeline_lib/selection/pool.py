"""What selection knows of every document, in id order, and what earlier stages said about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.corpus.split import SIDES
from pipeline_lib.errors import StageFailedError
from pipeline_lib.tables.ids import Ids, ids_of, order_of, places_of
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
    """All documents in id order. `position` is each one's place in the documents files, one after the other."""

    ids: Ids
    position: NDArray[np.int64]
    kind: Labels
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

    @cached_property
    def age_days(self) -> NDArray[np.float64]:
        """Days before the newest document; -1 where the date is unknown."""
        known = self.created != UNKNOWN_DATE
        days = np.full(len(self), -1.0, dtype=np.float64)
        if known.any():
            days[known] = (self.created[known].max() - self.created[known]) / SECONDS_A_DAY
        return days

    def recency(self, half_life_days: float) -> NDArray[np.float64]:
        """0.5^(age / half life), age counted from the newest document; one without a date counts as of the median date.

        Rounded to nine digits: the last ones differ from one mathematical library to the next.
        """
        known = self.age_days >= 0
        if not half_life_days or not known.any():
            return np.ones(len(self), dtype=np.float64)
        days = np.where(known, self.age_days, np.median(self.age_days[known]))
        halved: NDArray[np.float64] = np.round(0.5 ** (days / half_life_days), 9)
        return halved


class Verdicts:
    """Why documents are not chosen: for each one a number into a growing table of rules, reasons and values; -1: no reason yet.

    Texts are held once for all documents that share them, so that a million refusals cost eight bytes each.
    """

    def __init__(self, count: int) -> None:
        self._rules: list[pa.ChunkedArray] = []
        self._reasons: list[pa.ChunkedArray] = []
        self._rows = 0
        self.row = np.full(count, -1, dtype=np.int64)
        self.value = np.zeros(count, dtype=np.float64)

    @property
    def open(self) -> NDArray[np.bool_]:
        """Documents that nothing speaks against so far."""
        return self.row < 0

    def refuse(self, documents: NDArray[np.bool_], rule: str, reason: str, value: NDArray[np.float64]) -> None:
        """Refuse those of `documents` (a mask) that are still open. `value` has a number for every document of the pool."""
        late = documents & self.open
        if late.any():
            self.row[late] = self._rows
            self.value[late] = value[late]
            self._append(pa.chunked_array([[rule]]), pa.chunked_array([[reason]]))

    def refuse_each(self, places: NDArray[np.int64], refused: pa.Table) -> None:
        """Refuse document `places[i]` as row i of decisions says; a later row replaces an earlier one."""
        self.row[places] = self._rows + np.arange(len(places))
        self.value[places] = np.nan_to_num(refused["value"].fill_null(0.0).to_numpy())
        self._append(refused["rule"], refused["reason"])

    def spare(self, documents: NDArray[np.bool_]) -> None:
        """Take back what speaks against these."""
        self.row[documents] = -1

    def texts(self, documents: NDArray[np.int64]) -> tuple[pa.Array, pa.Array]:
        """Rule and reason of refused documents."""
        wanted = pa.array(self.row[documents])
        rules, reasons = (
            pa.concat_arrays([pa.array([], pa.string()), *(chunk for part in parts for chunk in part.chunks)]).take(wanted)
            for parts in (self._rules, self._reasons)
        )
        return rules, reasons

    def _append(self, rules: pa.ChunkedArray, reasons: pa.ChunkedArray) -> None:
        self._rules.append(rules.cast(pa.string()))
        self._reasons.append(reasons.cast(pa.string()))
        self._rows += len(rules)


@dataclass(frozen=True)
class Refusals:
    """What the stages before said: the verdicts, and which documents dedup refused for what."""

    verdicts: Verdicts
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
    columns = ["doc_id", "kind", "domain", "source", "created_at", "text_hash"]
    documents = read_tables(run.input("ingest").files("documents"), columns)
    signals = read_tables(run.input("score").files("signals"), ["doc_id", "quality", "est_tokens"])
    splits = read_tables(run.input("split").files("splits"))
    clusters = read_tables(run.input("dedup").files("clusters"), ["doc_id", "cluster_id"])
    unordered = ids_of(documents["doc_id"])
    order = order_of(unordered)
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
        kind=Labels.of(documents["kind"], order),
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
    """The first refusal of each document: of `score`, then of `dedup`, then of `split`; by rule name within a stage."""
    verdicts = Verdicts(len(ids))
    marks = {name: np.zeros(len(ids), dtype=bool) for name in ("contamination", "exact_duplicate", "near_duplicate")}
    for stage in ("split", "dedup", "score"):  # the later one overwrites
        refused = _refused(run.input(stage).files("decisions"))
        places = places_of(ids_of(refused["doc_id"]), ids)
        verdicts.refuse_each(places, refused)
        for name, mark in marks.items():
            mark[places[pc.equal(refused["rule"], name).to_numpy()]] = True
    return Refusals(verdicts, marks["contamination"], marks["exact_duplicate"] | marks["near_duplicate"])


def _refused(files: Sequence[Path]) -> pa.Table:
    """Refusals by rule name, last name first."""
    columns = ["doc_id", "rule", "reason", "value"]
    parts = [pq.read_table(file, columns=columns, filters=[("kept", "=", False)]) for file in files]
    table = pa.concat_tables(parts)
    return table.take(pc.sort_indices(table["rule"], sort_keys=[("", "descending")])) if table.num_rows else table
