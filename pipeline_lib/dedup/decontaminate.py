"""Find validation items in documents, so that no model is tested on what it was trained on.

An item's n-grams (13 words as in GPT-3, appendix C; an item of 8 to 12 words counts as one n-gram) are looked up in every
document. **One n-gram in common is contamination**; how much of the item was found is the row's `containment`. Items of fewer
than 8 words cannot tell a copy from chance: they are left out and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.dedup import kernels
from pipeline_lib.dedup.texts import buffers_of, read_texts
from pipeline_lib.tables.ids import id_column
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import DOC_ID

SHORTEST_ITEM = 8  # words; GPT-3, appendix C: N between 8 and 13
BLOOM_BITS = 32  # bits a hash in the filter before the search: one false look-up in 32

CONTAMINATION = pa.schema(
    [
        pa.field("doc_id", DOC_ID),
        pa.field("suite", pa.string()),
        pa.field("item", pa.string()),
        pa.field("containment", pa.float64()),  # share of the item's distinct n-grams that the document contains
    ]
)


@dataclass(frozen=True)
class Needles:
    """What is searched: n-gram hashes (sorted, distinct) and the items that each belongs to."""

    items: pa.Table  # suite, item
    lengths: NDArray[np.int64]  # distinct n-gram lengths
    hashes: NDArray[np.uint64]
    filter_bits: NDArray[np.uint64]
    bounds: NDArray[np.int64]  # items of hash h: owners[bounds[h]:bounds[h + 1]]
    owners: NDArray[np.int64]
    sizes: NDArray[np.int64]  # distinct n-grams of each item
    too_short: int

    def __len__(self) -> int:
        return len(self.hashes)


def needles_of(items: pa.Table, words: int) -> Needles:
    """Prepare the verbatim items of a `suite_items` table: those with a `text`."""
    verbatim = items.filter(pc.greater(pc.binary_length(items["text"].fill_null("")), 0)).combine_chunks()
    data, offsets = buffers_of(_one_chunk(verbatim["text"]))
    counts = np.zeros(len(verbatim), dtype=np.int64)
    total = kernels.count_words(data, offsets, counts)
    lengths = np.where(counts >= words, words, np.where(counts >= min(SHORTEST_ITEM, words), counts, 0))
    grams = np.empty(total, dtype=np.uint64)
    owner = np.empty(total, dtype=np.int64)
    used = kernels.item_ngrams(data, offsets, lengths, grams, owner)
    order = np.lexsort((owner[:used], grams[:used]))
    gram, owner = grams[order], owner[order]
    fresh = np.ones(used, dtype=bool)
    fresh[1:] = (gram[1:] != gram[:-1]) | (owner[1:] != owner[:-1])  # an item's repeated n-gram counts once
    gram, owner = gram[fresh], owner[fresh]
    hashes, starts = np.unique(gram, return_index=True)
    size = 1 << max(6, int(len(hashes) * BLOOM_BITS - 1).bit_length())
    bits = np.zeros(size // 64, dtype=np.uint64)
    bit = hashes & np.uint64(size - 1)
    np.bitwise_or.at(bits, (bit >> np.uint64(6)).astype(np.int64), np.uint64(1) << (bit & np.uint64(63)))
    return Needles(
        items=verbatim.select(["suite", "item"]),
        lengths=np.unique(lengths[lengths > 0]),
        hashes=hashes,
        filter_bits=bits,
        bounds=np.append(starts, len(gram)).astype(np.int64),
        owners=owner,
        sizes=np.bincount(owner, minlength=len(verbatim)),
        too_short=int((lengths == 0).sum()),
    )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _hits(needles: Needles, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Distinct (document, n-gram) pairs, ordered."""
    room = 4096
    while True:
        out = np.empty((room, 2), dtype=np.int64)
        found = kernels.find_ngrams(data, offsets, needles.lengths, needles.hashes, needles.filter_bits, room, out)
        if found <= room:
            return np.unique(out[:found], axis=0)
        room = found


def search_file(item: tuple[str, str], folder: Path, *, needles: Needles) -> dict[str, Any]:
    """Shard work: write `contamination.parquet` of one documents file (path, digest): a row a document and item."""
    tables, documents = [], 0
    for texts in read_texts(Path(item[0])):
        hits = _hits(needles, texts.data, texts.offsets)
        spread = np.diff(needles.bounds)[hits[:, 1]]
        document = np.repeat(hits[:, 0], spread)
        within = np.arange(len(document)) - np.repeat(np.cumsum(spread) - spread, spread)
        owner = needles.owners[np.repeat(needles.bounds[hits[:, 1]], spread) + within]
        pairs, count = np.unique(np.stack([document, owner], axis=1), axis=0, return_counts=True)
        named = needles.items.take(pa.array(pairs[:, 1]))
        share = count / needles.sizes[pairs[:, 1]]
        tables.append(pa.table([id_column(texts.ids[pairs[:, 0]]), named["suite"], named["item"], share], schema=CONTAMINATION))
        documents += len(texts)
    rows = write_table(pa.concat_tables(tables) if tables else CONTAMINATION.empty_table(), folder / "contamination.parquet")
    return {"rows": rows, "documents": documents}


def worst_of(table: pa.Table) -> Mapping[str, Any]:
    """The suite item found in most documents: {suite, item, documents}, for a warning."""
    most = table.group_by(["suite", "item"]).aggregate([("doc_id", "count")])
    ordered = (
        most.sort_by([("doc_id_count", "descending"), ("suite", "ascending"), ("item", "ascending")]).slice(0, 1).to_pylist()
    )
    return {"suite": ordered[0]["suite"], "item": ordered[0]["item"], "documents": ordered[0]["doc_id_count"]} if ordered else {}
