"""What dedup knows of every document beside its text: identity, place, and the order in which survivors are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.dedup.verify import Place
from pipeline_lib.errors import StageFailedError
from pipeline_lib.tables.ids import Ids, hex_of, ids_of
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.artifact import Artifact

UNKNOWN_DATE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Documents:
    """All documents in id order; the position is the document's number."""

    ids: Ids
    text_hash: Ids
    created: NDArray[np.int64]  # seconds since 1970, UNKNOWN_DATE when unknown
    priority: NDArray[np.int64]  # of the source, as configured
    quality: NDArray[np.float64]
    words: NDArray[np.int64]
    place: Place

    def __len__(self) -> int:
        return len(self.ids)

    def ranks(self, failed: NDArray[np.bool_], contaminated: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Place of each document in the order of survivors.

        The order is: free of validation items, passed the rules, higher priority of the source, higher quality, more words,
        earlier date (unknown last), id. It is a function of the documents and the configured sources alone: a better copy that
        arrives on a later night becomes the survivor here, and `selection` keeps what it chose before (a new document of a
        cluster that has a chosen one is not chosen again).
        """
        order = np.lexsort((self.created, -self.words, -self.quality, -self.priority, failed, contaminated))
        rank = np.empty(len(self), dtype=np.int64)
        rank[order] = np.arange(len(self))
        return rank


def whole(column: pa.ChunkedArray, null: int = 0) -> NDArray[np.int64]:
    """A column as whole numbers; `null` stands for a missing value."""
    return np.asarray(column.cast(pa.int64()).fill_null(null).to_numpy(), dtype=np.int64)


def real(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A column as real numbers; 0 stands for a missing value and for NaN."""
    return np.nan_to_num(np.asarray(column.cast(pa.float64()).fill_null(0.0).to_numpy(), dtype=np.float64), nan=0.0)


def read_documents(ingest: Artifact, score: Artifact) -> Documents:
    """Join documents with their signals; the two are the same rows in the same order, which is checked.

    Raises:
        StageFailedError: signals of other documents, or two documents with one id.
    """
    files: list[Path] = ingest.files("documents")
    documents = read_tables(files, ["doc_id", "text_hash", "created_at", "source"])
    signals = read_tables(score.files("signals"), ["doc_id", "quality", "words", "bytes"])
    ids = ids_of(documents["doc_id"])
    if not np.array_equal(ids, ids_of(signals["doc_id"])):
        raise StageFailedError(
            "signals do not belong to these documents", where="stage dedup", fix="`millrace run --from score --force`"
        )
    order = np.argsort(ids, kind="stable")
    sources = documents["source"].combine_chunks().fill_null("").dictionary_encode()
    known = ingest.details.get("sources", {})
    priorities = np.array([known.get(name, {}).get("priority", 0) for name in sources.dictionary.to_pylist()], dtype=np.int64)
    if len(doubled := np.flatnonzero(ids[order][1:] == ids[order][:-1])):
        shown = hex_of(ids[order][doubled[:1]])[0].decode()
        raise StageFailedError(
            f"{len(doubled)} documents share their id with another, the first is {shown}",
            where="stage dedup",
            fix="give the source an id_column whose values are unique",
        )
    rows = [pq.read_metadata(path).num_rows for path in files]
    place = Place(
        files=files,
        file=np.repeat(np.arange(len(files)), rows)[order],
        row=np.concatenate([np.arange(count) for count in rows] or [np.empty(0, dtype=np.int64)])[order],
        size=whole(signals["bytes"])[order],
    )
    return Documents(
        ids=ids[order],
        text_hash=ids_of(documents["text_hash"])[order],
        created=whole(documents["created_at"], UNKNOWN_DATE)[order],
        priority=priorities[sources.indices.to_numpy()][order],
        quality=real(signals["quality"])[order],
        words=whole(signals["words"])[order],
        place=place,
    )
