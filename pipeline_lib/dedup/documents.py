"""What dedup knows of documents beside their text. Of all of them: which texts are equal; the rest only of those that matter.

Documents are numbered through their files, in order. Memory for all N of them: 24 bytes while equal texts are found, 16 for
finding documents by id. Everything else is held for the documents of pairs and copies alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.dedup.verify import Place
from pipeline_lib.errors import StageFailedError
from pipeline_lib.tables.ids import Ids, hex_of, ids_of, places_of
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
        order = np.lexsort((*(keys[name] for name in reversed(survivor)), *reversed(first), np.zeros(len(self))))
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
    """All documents, where they lie: files of `documents` and of `signals`, row by row the same."""

    documents: Sequence[Path]
    signals: Sequence[Path]
    priorities: dict[str, int]  # of the sources

    @classmethod
    def of(cls, ingest: Artifact, score: Artifact) -> Corpus:
        """The corpus of a run."""
        known = ingest.details.get("sources", {})
        priorities = {name: source.get("priority", 0) for name, source in known.items()}
        return cls(ingest.files("documents"), score.files("signals"), priorities)

    @cached_property
    def starts(self) -> Numbers:
        """Number of the first document of each file, and at the end the number of documents."""
        return np.concatenate([[0], np.cumsum([pq.read_metadata(path).num_rows for path in self.documents])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def check(self) -> None:
        """Documents and signals are the same rows in the same order.

        Raises:
            StageFailedError: they are not.
        """
        documents = _column_of(self.documents, "doc_id")
        signals = _column_of(self.signals, "doc_id")
        if len(self.documents) != len(self.signals) or not all(a.equals(b) for a, b in zip(documents, signals, strict=False)):
            raise StageFailedError(
                "signals do not belong to these documents", where="stage dedup", fix="`millrace run --from score --force`"
            )

    def bytes_of_text(self) -> int:
        """Bytes of all texts."""
        return sum(int(pc.sum(column).as_py() or 0) for column in _column_of(self.signals, "bytes"))

    def sources(self) -> dict[str, int]:
        """Documents of each source."""
        counted: dict[str, int] = {}
        for column in _column_of(self.documents, "source"):
            for entry in column.value_counts().to_pylist():
                name = entry["values"] or ""
                counted[name] = counted.get(name, 0) + entry["counts"]
        return dict(sorted(counted.items()))

    def lookup(self) -> Lookup:
        """Finds documents by id.

        Raises:
            StageFailedError: two documents have one id.
        """
        keys = self._halves("doc_id")
        order = np.argsort(keys)
        keys = keys[order]
        if len(near := np.flatnonzero(keys[1:] == keys[:-1])):
            ids = np.sort(self.ids(np.unique(np.concatenate([order[near], order[near + 1]]))))
            if len(doubled := np.flatnonzero(ids[1:] == ids[:-1])):
                raise StageFailedError(
                    f"{len(doubled)} documents share their id with another, the first is {hex_of(ids[doubled[:1]])[0].decode()}",
                    where="stage dedup",
                    fix="give the source an id_column whose values are unique",
                )
        return Lookup(self, keys, order)

    def equal_texts(self) -> EqualTexts:
        """Find documents with the same `text_hash`."""
        keys = self._halves("text_hash")
        order = np.argsort(keys)
        keys = keys[order]
        same = np.zeros(len(keys) + 1, dtype=bool)
        same[1:-1] = keys[1:] == keys[:-1]
        members = np.sort(order[same[1:] | same[:-1]])
        if not len(members):
            return EqualTexts(members, members)
        ids, hashes = self.ids(members), self._taken("text_hash", members)
        by_text = np.lexsort((*_halves_of(ids), *_halves_of(hashes)))
        fresh = np.ones(len(members), dtype=bool)
        fresh[1:] = hashes[by_text][1:] != hashes[by_text][:-1]
        first = members[by_text][fresh][np.cumsum(fresh) - 1]
        copies, of = members[by_text][~fresh], first[~fresh]
        by_number = np.argsort(copies)
        return EqualTexts(copies[by_number], of[by_number])

    def ids(self, numbers: Numbers) -> Ids:
        """Ids of documents, by ascending number."""
        return self._taken("doc_id", numbers)

    def read(self, numbers: Numbers) -> Documents:
        """Everything about some documents (ascending numbers, each once)."""
        names = ["doc_id", "text_hash", "created_at", "source"]
        told = pa.concat_tables(list(_rows_of(self.documents, self.starts, numbers, names)), promote_options="permissive")
        scored = pa.concat_tables(list(_rows_of(self.signals, self.starts, numbers, ["quality", "words"])))
        sources = told["source"].cast(pa.string()).fill_null("").combine_chunks().dictionary_encode()
        listed = sources.dictionary.to_pylist()
        by_name = np.argsort(np.array(listed, dtype=object))
        codes = np.empty(len(listed), dtype=np.int64)
        codes[by_name] = np.arange(len(listed))
        priorities = np.array([self.priorities.get(name, 0) for name in listed], dtype=np.int64)
        indices = sources.indices.to_numpy().astype(np.int64)
        ids = ids_of(told["doc_id"])
        order = np.lexsort(_halves_of(ids))
        file = np.searchsorted(self.starts, numbers, side="right") - 1
        return Documents(
            ids=ids[order],
            number=numbers[order],
            text_hash=ids_of(told["text_hash"])[order],
            created=_whole(told["created_at"], UNKNOWN_DATE)[order],
            source=codes[indices][order],
            source_names=[listed[i] for i in by_name],
            priority=priorities[indices][order],
            quality=_real(scored["quality"])[order],
            words=_whole(scored["words"])[order],
            place=Place(self.documents, file[order], (numbers - self.starts[file])[order]),
        )

    def _halves(self, column: str) -> NDArray[np.uint64]:
        """The first 8 bytes of a 16-byte column, of all documents."""
        found = np.empty(len(self), dtype=np.uint64)
        for start, part in zip(self.starts, _column_of(self.documents, column), strict=False):
            values = ids_of(part)
            found[start : start + len(values)] = values.view("<u8")[::2]
        return found

    def _taken(self, column: str, numbers: Numbers) -> Ids:
        parts = [ids_of(rows[column]) for rows in _rows_of(self.documents, self.starts, numbers, [column])]
        return np.concatenate(parts) if parts else np.empty(0, dtype="S16")


@dataclass(frozen=True)
class Lookup:
    """Finds documents by id: the first halves of all ids in order, and the documents' numbers."""

    corpus: Corpus
    keys: NDArray[np.uint64]
    order: Numbers

    def numbers(self, ids: Ids) -> Numbers:
        """Number of each document; -1 where there is none of this id."""
        if not len(self.keys) or not len(ids):
            return np.full(len(ids), -1, dtype=np.int64)
        wanted = np.ascontiguousarray(ids).view("<u8")[::2]
        at = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        found = self.order[at]
        found[self.keys[at] != wanted] = -1
        there = np.unique(found[found >= 0])
        known = self.corpus.ids(there)
        wrong = found >= 0
        wrong[wrong] = known[np.searchsorted(there, found[wrong])] != ids[wrong]
        found[wrong] = -1
        return found


def _halves_of(ids: Ids) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Keys for lexsort that order ids as their bytes do."""
    halves = np.ascontiguousarray(ids).view(">u8").astype(np.uint64).reshape(-1, 2)
    return halves[:, 1].copy(), halves[:, 0].copy()


def _column_of(files: Sequence[Path], column: str) -> Iterator[pa.ChunkedArray]:
    for path in files:
        yield pq.read_table(path, columns=[column], use_threads=False)[column]


def _rows_of(files: Sequence[Path], starts: Numbers, numbers: Numbers, columns: list[str]) -> Iterator[pa.Table]:
    """Rows of the given ascending numbers, file by file; an empty table where there is none."""
    for path, first, last in zip(files, starts, starts[1:], strict=False):
        low, high = np.searchsorted(numbers, [first, last])
        if low < high or first == 0:
            table = pq.read_table(path, columns=columns, use_threads=False)
            yield table if high - low == len(table) else table.take(pa.array(numbers[low:high] - first))


def _whole(column: pa.ChunkedArray, null: int = 0) -> Numbers:
    """A column as whole numbers; `null` stands for a missing value."""
    return np.asarray(column.cast(pa.int64()).fill_null(null).to_numpy(), dtype=np.int64)


def _real(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column as real numbers; 0 stands for a missing value and for NaN."""
    return np.nan_to_num(np.asarray(column.cast(pa.float64()).fill_null(0.0).to_numpy(), dtype=np.float64), nan=0.0)
