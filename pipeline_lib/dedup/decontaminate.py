"""Find validation items in documents, so that no model is tested on what it was trained on.

An item's n-grams (13 words as in GPT-3, appendix C; an item of 8 to 12 words counts as one n-gram) are looked up in every
document. **One n-gram in common is contamination**; how much of the item was found is the row's `containment`, and where it was
found are its `start` and `end`. Items of fewer than 8 words cannot tell a copy from chance: they are left out and counted.

The document is dropped; or, as set, the spans are cut out of it (a row of `edits`), unless more than half of it would go or it is
a conversation, whose turns stand together.

Items of kind `template` (statements generated from tables of reference) are never searched: their words are the template's. They
are protected where statements for training are generated, by leaving out the entities that the items ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.dedup import kernels
from pipeline_lib.dedup.texts import Texts, buffers_of, read_texts
from pipeline_lib.tables.ids import id_column, ids_of
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import DOC_ID, EDITS

SHORTEST_ITEM = 8  # words; GPT-3, appendix C: N between 8 and 13
MOST_CUT = 0.5  # of a document's bytes; what would lose more is no document any more

CONTAMINATION = pa.schema(
    [
        pa.field("doc_id", DOC_ID),
        pa.field("suite", pa.string()),
        pa.field("item", pa.string()),
        pa.field("containment", pa.float64()),  # share of the item's distinct n-grams that the document contains
        pa.field("start", pa.int64()),  # bytes of the text: one run of words in common a row
        pa.field("end", pa.int64()),
        pa.field("cut", pa.bool_()),  # false: the document is dropped
    ]
)
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Needles:
    """What is searched: n-gram hashes (sorted, distinct) and the items that each belongs to."""

    items: pa.Table  # suite, item
    length_of: Numbers  # words in an n-gram of each item; 0: too short to be searched
    hashes: NDArray[np.uint64]
    filter_bits: NDArray[np.uint64]
    bounds: Numbers  # items of hash h: owners[bounds[h]:bounds[h + 1]]
    owners: Numbers
    sizes: Numbers  # distinct n-grams of each item
    too_short: int

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def searched(self) -> dict[str, int]:
        """Items of each suite that are long enough to be searched."""
        suites = self.items.filter(pa.array(self.length_of > 0))["suite"]
        return {entry["values"]: entry["counts"] for entry in pc.value_counts(suites).to_pylist()}

    @property
    def lengths(self) -> Numbers:
        """The n-gram lengths that occur."""
        return np.unique(self.length_of[self.length_of > 0])


def needles_of(items: pa.Table, words: int, *, shortest: int = SHORTEST_ITEM) -> Needles:
    """Prepare the items of kind `verbatim` of a `suite_items` table that have a text of at least `shortest` words."""
    there = pc.greater(pc.binary_length(items["text"].fill_null("")), 0)
    verbatim = items.filter(pc.and_(there, pc.equal(items["kind"], "verbatim"))).combine_chunks()
    data, offsets = buffers_of(_one_chunk(verbatim["text"]))
    counts = np.zeros(len(verbatim), dtype=np.int64)
    total = kernels.count_words(data, offsets, counts)
    lengths = np.where(counts >= words, words, np.where(counts >= min(shortest, words), counts, 0))
    grams = np.empty(total, dtype=np.uint64)
    owner = np.empty(total, dtype=np.int64)
    used = kernels.item_ngrams(data, offsets, lengths, grams, owner)
    order = np.lexsort((owner[:used], grams[:used]))
    gram, owner = grams[order], owner[order]
    fresh = np.ones(used, dtype=bool)
    fresh[1:] = (gram[1:] != gram[:-1]) | (owner[1:] != owner[:-1])  # an item's repeated n-gram counts once
    gram, owner = gram[fresh], owner[fresh]
    hashes, starts = np.unique(gram, return_index=True)
    return Needles(
        items=verbatim.select(["suite", "item"]),
        length_of=lengths,
        hashes=hashes,
        filter_bits=kernels.filter_of(hashes),
        bounds=np.append(starts, len(gram)).astype(np.int64),
        owners=owner,
        sizes=np.bincount(owner, minlength=len(verbatim)),
        too_short=int((lengths == 0).sum()),
    )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def grams_in(needles: Needles, texts: Texts) -> Numbers:
    """Which of the n-grams occur, as distinct indices into `needles.hashes`."""
    return np.unique(_hits(needles, texts)[:, 1])


def _hits(needles: Needles, texts: Texts) -> Numbers:
    """Every place of a known n-gram: rows of document, n-gram, first word."""
    room = 4096
    while True:
        out = np.empty((room, 3), dtype=np.int64)
        found = kernels.find_ngrams(texts.data, texts.offsets, needles.lengths, needles.hashes, needles.filter_bits, room, out)
        if found <= room:
            return out[:found]
        room = found


@dataclass(frozen=True)
class Runs:
    """Words in common, as long as they go on: arrays of one length, ordered by document, item and place."""

    document: Numbers  # of the texts that were searched
    item: Numbers
    containment: NDArray[np.float64]
    start: Numbers  # bytes from the begin of the document
    end: Numbers


def _runs(needles: Needles, texts: Texts) -> Runs:
    hits = _hits(needles, texts)
    spread = np.diff(needles.bounds)[hits[:, 1]]  # an n-gram can belong to several items
    within = np.arange(spread.sum()) - np.repeat(np.cumsum(spread) - spread, spread)
    item = needles.owners[np.repeat(needles.bounds[hits[:, 1]], spread) + within]
    document, gram, first = np.repeat(hits, spread, axis=0).T
    order = np.lexsort((first, item, document))
    document, gram, first, item = document[order], gram[order], first[order], item[order]
    pairs, pair = np.unique(np.stack([document, item], axis=1), axis=0, return_inverse=True)
    distinct = np.unique(np.stack([pair.ravel(), gram], axis=1), axis=0)[:, 0]
    containment = np.bincount(distinct, minlength=len(pairs)) / needles.sizes[pairs[:, 1]]
    # a run goes on while the next n-gram touches the one before
    touches = np.zeros(len(first), dtype=bool)
    touches[1:] = (np.diff(pair.ravel()) == 0) & (np.diff(first) <= needles.length_of[item[1:]])
    begins = np.flatnonzero(~touches)
    ends = np.append(begins[1:], len(first)) - 1 if len(first) else begins
    spans = np.empty((len(begins), 2), dtype=np.int64)
    last = first[ends] + needles.length_of[item[ends]] - 1
    kernels.spans_of_words(texts.data, texts.offsets, document[begins], first[begins], last, spans)
    return Runs(document[begins], item[begins], containment[pair.ravel()[begins]], *spans.T.copy())


def merged(document: Numbers, start: Numbers, end: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Spans of documents without overlaps, ordered: document, start, end."""
    if not len(document):
        return document, start, end
    order = np.lexsort((start, document))
    document, start, end = document[order], start[order], end[order]
    far = int(end.max()) + 1
    reached = np.maximum.accumulate(end + document * far)  # the document counts more than any place in one
    fresh = np.append(True, start[1:] + document[1:] * far > reached[:-1])
    begins = np.flatnonzero(fresh)
    return document[begins], start[begins], reached[np.append(begins[1:], len(start)) - 1] - document[begins] * far


def _to_cut(runs: Runs, texts: Texts, conversation: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """For each run, whether what its document has of items is cut; otherwise the document goes."""
    document, start, end = merged(runs.document, runs.start, runs.end)
    gone = np.bincount(document, weights=end - start, minlength=len(texts))
    cut: NDArray[np.bool_] = (gone <= MOST_CUT * np.diff(texts.offsets)) & ~conversation
    return cut[runs.document]


def search_file(item: tuple[str, str], folder: Path, *, needles: Needles, cut: bool) -> dict[str, Any]:
    """Shard work: write `contamination.parquet` of one documents file (path, digest); `cut`: what can be cut is not dropped."""
    path, tables, documents = Path(item[0]), [], 0
    conversation: NDArray[np.bool_] | None = None  # of all documents of the file; read when the first one matters
    for texts in read_texts(path):
        runs = _runs(needles, texts)
        if cut and len(runs.document) and conversation is None:
            kinds = pq.read_table(path, columns=["kind"])["kind"]
            conversation = pc.equal(kinds, "instruct").fill_null(False).to_numpy()
        some = slice(documents, documents + len(texts))
        cuts = _to_cut(runs, texts, conversation[some]) if conversation is not None else np.zeros(len(runs.document), dtype=bool)
        named = needles.items.take(pa.array(runs.item))
        columns = [named["suite"], named["item"], runs.containment, runs.start, runs.end, cuts]
        tables.append(pa.table([id_column(texts.ids[runs.document]), *columns], schema=CONTAMINATION))
        documents += len(texts)
    rows = write_table(pa.concat_tables(tables) if tables else CONTAMINATION.empty_table(), folder / "contamination.parquet")
    return {"rows": rows, "documents": documents}


def cut_edits(found: pa.Table) -> pa.Table:
    """The spans to cut as rows of `edits`, by document and place, without overlaps."""
    found = found.filter(found["cut"])
    ids, document = np.unique(ids_of(found["doc_id"]), return_inverse=True)
    document, start, end = merged(document.ravel(), found["start"].to_numpy(), found["end"].to_numpy())
    columns = {
        "doc_id": id_column(ids[document]),
        "stage": pa.repeat(pa.scalar("dedup"), len(document)),
        "start": start,
        "end": end,
        "kind": pa.repeat(pa.scalar("contamination"), len(document)),
        "length": np.zeros(len(document), dtype=np.int64),
    }
    return pa.table(columns).select(EDITS.names).cast(EDITS)


def by_suite(found: pa.Table, items: Mapping[str, int]) -> list[dict[str, Any]]:
    """What was removed for which suite.

    Args:
        found: the table `contamination`.
        items: how many items of each suite were searched.

    Returns:
        A row a suite, by name: suite, items, found (items of which something was found), dropped (documents), cut (documents).
    """
    rows = []
    for suite in sorted(items):
        own = found.filter(pc.equal(found["suite"], suite))
        documents = {cut: len(pc.unique(own.filter(pc.equal(own["cut"], cut))["doc_id"])) for cut in (False, True)}
        searched = {"suite": suite, "items": items[suite], "found": len(pc.unique(own["item"]))}
        rows.append({**searched, "dropped": documents[False], "cut": documents[True]})
    return rows


def worst_of(table: pa.Table) -> Mapping[str, Any]:
    """The suite item found in most documents: {suite, item, documents}, for a warning."""
    most = table.group_by(["suite", "item"]).aggregate([("doc_id", "count_distinct")])
    ordered = (
        most.sort_by([("doc_id_count_distinct", "descending"), ("suite", "ascending"), ("item", "ascending")])
        .slice(0, 1)
        .to_pylist()
    )
    return (
        {"suite": ordered[0]["suite"], "item": ordered[0]["item"], "documents": ordered[0]["doc_id_count_distinct"]}
        if ordered
        else {}
    )
