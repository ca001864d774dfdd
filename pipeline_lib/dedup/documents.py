"""What dedup knows of documents beside their text. Of all of them: which texts are equal; the rest only of those that matter.

Documents are numbered through their files, in order. Memory for all N of them: 32 bytes, and 16 to 24 more while equal texts or
documents by their id are looked for. Everything else is held for the documents of pairs and copies alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.dedup import kernels
from pipeline_lib.dedup.verify import Place
from pipeline_lib.errors import StageFailedError
from pipeline_lib.tables.ids import Ids, hex_of, ids_of, order_of, places_of
from pipeline_lib.workspace.artifact import Artifact

UNKNOWN_DATE = np.iinfo(np.int64).max
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Documents:
    """Some documents in id order."""

    ids: Ids
    number: Numbers  # of each one in the corpus
    text_hash: Ids
    created: Numbers  # seconds since 1970, UNKNOWN_DATE when unknown
    source: Numbers  # index into `source_names`
    source_names: list[str]
    priority: Numbers  # of the source, as configured
    quality: NDArray[np.float64]
    words: Numbers
    place: Place

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, numbers: Numbers) -> Numbers:
        """Where documents stand here, by their number in the corpus."""
        place = np.empty(self.number.max(initial=-1) + 1, dtype=np.int64)
        place[self.number] = np.arange(len(self))
        return np.asarray(place[numbers], dtype=np.int64)

    def marked(self, ids: Ids) -> NDArray[np.bool_]:
        """Which ones are among some ids."""
        marks = np.zeros(len(self), dtype=bool)
        places = places_of(ids, self.ids)
        marks[places[places >= 0]] = True
        return marks

    def rank(self, survivor: Sequence[str], *first: NDArray[np.bool_]) -> Numbers:
        """Place of each document in the order of survivors, 0 the best.

        Args:
            survivor: what is compared, in order: `priority` (of the source, higher first), `quality` (higher first), `length`
                (more words first), `date` (earlier first, unknown last). The id decides last.
            first: what is compared before, in order: documents marked False come first.
        """
        keys = {"priority": -self.priority, "quality": -self.quality, "length": -self.words, "date": self.created}
        told = [
            key for key in (*first, *(keys[name] for name in survivor)) if (key != key[:1]).any()
        ]  # the others decide nothing
        order = np.lexsort(told[::-1]) if told else np.arange(len(self))
        rank = np.empty(len(self), dtype=np.int64)
        rank[order] = np.arange(len(self))
        return rank


@dataclass(frozen=True)
class EqualTexts:
    """Documents whose text another one has: each with the one of smallest id, which stands for all of them."""

    copies: Numbers
    of: Numbers


@dataclass(frozen=True)
class Corpus:
    """All documents: where they lie, and their ids and text hashes."""

    documents: Sequence[Path]
    signals: Sequence[Path]  # row by row the same as the documents
    priorities: dict[str, int]  # of the sources
    starts: Numbers  # number of the first document of each file, and at the end the number of documents
    all_ids: Ids
    text_hash: Ids
    sources: dict[str, int]  # documents of each source
    bytes_of_text: int

    @classmethod
    def of(cls, ingest: Artifact, score: Artifact) -> Corpus:
        """The corpus of a run; reads every file once.

        Raises:
            StageFailedError: documents and signals are not the same rows in the same order.
        """
        documents, signals = ingest.files("documents"), score.files("signals")
        starts = np.concatenate([[0], np.cumsum([pq.read_metadata(path).num_rows for path in documents])]).astype(np.int64)
        ids, hashes = (np.empty(starts[-1], dtype="S16") for _ in range(2))
        sources: dict[str, int] = {}
        size = 0
        for path, beside, start in zip_longest(documents, signals, starts[:-1]):
            told = _read(path, ["doc_id", "text_hash", "source"]) if path else None
            scored = _read(beside, ["doc_id", "bytes"]) if beside else None
            if told is None or scored is None or not told["doc_id"].equals(scored["doc_id"]):
                raise StageFailedError(
                    "signals do not belong to these documents", where="stage dedup", fix="`millrace run --from score --force`"
                )
            ids[start : start + len(told)], hashes[start : start + len(told)] = ids_of(told["doc_id"]), ids_of(told["text_hash"])
            for entry in told["source"].value_counts().to_pylist():
                sources[entry["values"] or ""] = sources.get(entry["values"] or "", 0) + entry["counts"]
            size += int(pc.sum(scored["bytes"]).as_py() or 0)
        known = ingest.details.get("sources", {})
        priorities = {name: source.get("priority", 0) for name, source in known.items()}
        return cls(documents, signals, priorities, starts, ids, hashes, dict(sorted(sources.items())), size)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def refuse_doubles(self) -> None:
        """Every id is the id of one document.

        Raises:
            StageFailedError: two documents have one id.
        """
        ids = np.sort(self.all_ids[kernels.repeated(first_half(self.all_ids))])
        if len(doubled := np.flatnonzero(ids[1:] == ids[:-1])):
            raise StageFailedError(
                f"{len(doubled)} documents share their id with another, the first is {hex_of(ids[doubled[:1]])[0].decode()}",
                where="stage dedup",
                fix="give the source an id_column whose values are unique",
            )

    def numbers(self, ids: Ids) -> Numbers:
        """Number of each of some documents, by id; -1 where there is none."""
        some = perhaps_among(self.all_ids, ids)
        some = some[order_of(self.all_ids[some])]
        places = places_of(ids, self.all_ids[some])
        return np.where(places >= 0, some[places], -1) if len(some) else places

    def equal_texts(self) -> EqualTexts:
        """Find documents with the same `text_hash`."""
        members = kernels.repeated(first_half(self.text_hash))
        members = members[order_of(self.all_ids[members])]
        first = first_of_each(np.unique(self.text_hash[members], return_inverse=True)[1], members)
        copy = first != members
        by_number = np.argsort(members[copy])
        return EqualTexts(members[copy][by_number], first[copy][by_number])

    def read(self, numbers: Numbers) -> Documents:
        """Everything about some documents (ascending numbers, each once)."""
        told = pa.concat_tables(
            list(_rows_of(self.documents, self.starts, numbers, ["created_at", "source"])), promote_options="permissive"
        )
        scored = pa.concat_tables(list(_rows_of(self.signals, self.starts, numbers, ["quality", "words"])))
        sources = told["source"].cast(pa.string()).fill_null("").combine_chunks().dictionary_encode()
        listed = sources.dictionary.to_pylist()
        by_name = np.argsort(np.array(listed, dtype=object))
        codes = np.empty(len(listed), dtype=np.int64)
        codes[by_name] = np.arange(len(listed))
        priorities = np.array([self.priorities.get(name, 0) for name in listed], dtype=np.int64)
        indices = sources.indices.to_numpy().astype(np.int64)
        ids = self.all_ids[numbers]
        order = order_of(ids)
        file = np.searchsorted(self.starts, numbers, side="right") - 1
        return Documents(
            ids=ids[order],
            number=numbers[order],
            text_hash=self.text_hash[numbers[order]],
            created=_whole(told["created_at"], UNKNOWN_DATE)[order],
            source=codes[indices][order],
            source_names=[listed[i] for i in by_name],
            priority=priorities[indices][order],
            quality=_real(scored["quality"])[order],
            words=_whole(scored["words"])[order],
            place=Place(self.documents, file[order], (numbers - self.starts[file])[order]),
        )


def first_half(ids: Ids) -> NDArray[np.uint64]:
    """The first 8 bytes of ids or text hashes as numbers, to sort out what is different."""
    return np.ascontiguousarray(ids).view("<u8")[::2].copy()


def perhaps_among(ids: Ids, wanted: Ids) -> Numbers:
    """Ascending indices of the ids that are wanted, and of such that begin like a wanted one; of millions in milliseconds."""
    halves = np.sort(first_half(wanted))
    found = np.empty(len(ids), dtype=np.int64)
    return found[: kernels.places_among(first_half(ids), halves, kernels.filter_of(halves), found)]


def first_of_each(key: Numbers, ordered: Numbers) -> Numbers:
    """For each of some ordered documents the first one with the same key (a small number)."""
    first = np.empty(int(key.max(initial=-1)) + 1, dtype=np.int64)
    first[key[::-1]] = ordered[::-1]  # what is written last stays
    return np.asarray(first[key], dtype=np.int64)


def _read(path: Path, columns: list[str]) -> pa.Table:
    with pq.ParquetFile(path) as file:
        return file.read(columns=columns, use_threads=False)


def _rows_of(files: Sequence[Path], starts: Numbers, numbers: Numbers, columns: list[str]) -> Iterator[pa.Table]:
    """Rows of the given ascending numbers, file by file; an empty table where there is none."""
    for path, first, last in zip(files, starts, starts[1:], strict=False):
        low, high = np.searchsorted(numbers, [first, last])
        if low < high or first == 0:
            table = _read(path, columns)
            yield table if high - low == len(table) else table.take(pa.array(numbers[low:high] - first))


def _whole(column: pa.ChunkedArray, null: int = 0) -> Numbers:
    """A column as whole numbers; `null` stands for a missing value."""
    return np.asarray(column.cast(pa.int64()).fill_null(null).to_numpy(), dtype=np.int64)


def _real(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column as real numbers; 0 stands for a missing value and for NaN."""
    return np.nan_to_num(np.asarray(column.cast(pa.float64()).fill_null(0.0).to_numpy(), dtype=np.float64), nan=0.0)
