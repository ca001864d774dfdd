"""Where the tokens of a cache come from: source and domain of every row, and the document's id of those that are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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
        """Of the cache that a `fill_gaps` artifact vouches for. Memory: three columns of the rows, one of the documents."""
        links = cache_behind(workspace, filled).links
        parts = []
        for link in links:
            rows = pq.read_table(link.recipe.rows, columns=["document", "domain"])
            texts = [pq.read_table(path, columns=["source"])["source"] for path in link.recipe.documents]
            sources = pa.chunked_array([chunk for one in texts for chunk in one.chunks], pa.string())
            parts.append(pa.table({"source": sources.take(rows["document"]), "domain": rows["domain"]}))
        names = pa.concat_tables(parts)
        found = names.group_by(["source", "domain"]).aggregate([]).to_pylist()
        cells = sorted({(row["source"] or "", row["domain"] or "") for row in found})
        places = {cell: place for place, cell in enumerate(cells)}
        codes = [names[name].combine_chunks().fill_null("").dictionary_encode() for name in ("source", "domain")]
        first, second = (code.dictionary.to_pylist() for code in codes)
        table = np.array([[places.get((one, two), -1) for two in second] for one in first], np.int32)
        return cls(links, cells, table[codes[0].indices.to_numpy(), codes[1].indices.to_numpy()])

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
