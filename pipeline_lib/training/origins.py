"""Where the tokens of a cache come from: source and domain of every row, and the document's id of those that are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.packing.cache import cache_behind

if TYPE_CHECKING:
    from pipeline_lib.packing.cache import Link
    from pipeline_lib.workspace.artifact import Artifact
    from pipeline_lib.workspace.workspace import Workspace


@dataclass(frozen=True)
class Origins:
    """A cell is a pair of source and domain; numbers of cells are places in `cells`."""

    links: Sequence[Link]  # of the cache, oldest first
    cells: Sequence[tuple[str, str]]  # (source, domain), ascending
    cell_of: np.ndarray  # int32[rows of the table `rows`]

    @classmethod
    def of(cls, workspace: Workspace, filled: Artifact) -> Origins:
        """Of the cache that a `fill_gaps` artifact vouches for. Memory: four numbers a row, one a document."""
        links = cache_behind(workspace, filled).links
        documents: list[pa.Array] = []
        rows: list[np.ndarray] = []
        for link in links:
            first = sum(len(chunk) for chunk in documents)  # documents are numbered anew in every link
            for path in link.recipe.documents:
                documents += _chunks(path, "source")
            rows.append(pq.read_table(link.recipe.rows, columns=["document"])["document"].to_numpy() + first)
        source_of, sources = _numbered(documents)
        domain, domains = _numbered([chunk for link in links for chunk in _chunks(link.recipe.rows, "domain")])
        pairs = source_of[np.concatenate(rows)] * len(domains) + domain
        found, place = np.unique(pairs, return_inverse=True)
        named = [(sources[pair // len(domains)], domains[pair % len(domains)]) for pair in found.tolist()]
        cells = {cell: number for number, cell in enumerate(sorted(set(named)))}
        return cls(links, list(cells), np.array([cells[cell] for cell in named], np.int32)[place])

    @cached_property
    def _ids(self) -> list[pa.ChunkedArray]:
        return [pq.read_table(link.recipe.rows, columns=["doc_id"])["doc_id"] for link in self.links]

    def named(self, rows: Sequence[int]) -> list[dict[str, str]]:
        """{doc_id (hexadecimal), source, domain} of some rows of the table `rows`."""
        ids = pa.chunked_array([chunk for column in self._ids for chunk in column.chunks]).take(pa.array(rows, pa.int64()))
        cells = [self.cells[int(self.cell_of[row])] for row in rows]
        return [
            {"doc_id": doc_id.hex(), "source": source, "domain": domain}
            for doc_id, (source, domain) in zip(ids.to_pylist(), cells, strict=True)
        ]


def _chunks(path: Path, column: str) -> list[pa.DictionaryArray]:
    """A column of names, as numbers into dictionaries: plain strings of a large corpus would pass Arrow's limit of 2 GiB."""
    return list(pq.read_table(path, columns=[column], read_dictionary=[column])[column].chunks)


def _numbered(chunks: list[pa.DictionaryArray]) -> tuple[np.ndarray, list[str]]:
    """Names as numbers, int64 each, and what the numbers stand for; null is the name ""."""
    whole = pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string())).unify_dictionaries()
    names = [*(whole.chunk(0).dictionary.to_pylist() if whole.num_chunks else []), ""]
    parts = [chunk.indices.fill_null(len(names) - 1).to_numpy() for chunk in whole.chunks]
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64), names
