"""What the training text contains of what the model is asked: leftover overlap, after decontamination and deduplication.

Searched are the documents of the packed rows: what training read tonight, and in a continued cache what it read on earlier
nights, still selected or not; without what was cut out of it. A document of an earlier night that the sources no longer hold
cannot be searched. An item counts as contaminated when it has one n-gram in common with it (13 words; a shorter item as a whole,
GPT-3, appendix C), a test document when half of its n-grams are there: one in common may be a licence or a quotation.

Generated statements count too, here: decontamination leaves them to the entities that are held out, and what other text says of
these stays in the training text. Statements of fewer than `SHORTEST` words are not searched, they say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.dedup.decontaminate import grams_in, needles_of
from pipeline_lib.dedup.texts import Texts, buffers_of
from pipeline_lib.packing.ranges import cuts_of
from pipeline_lib.packing.texts import Documents
from pipeline_lib.tables.ids import ids_of
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.tables.schemas import CUTS, OVERLAP
from pipeline_lib.workspace.stage import StageRun

WORDS = 13  # of an n-gram
SHORTEST = 5  # words of an item that is searched
COPIED = 0.5  # of a test document's n-grams, from which on it counts as contaminated
PIECE_ROWS = 1024  # documents read at once


def statements(items: Sequence[Mapping[str, Any]]) -> pa.Table:
    """What a training text would have to say to give an item away: suite, item, text."""
    texts = [item["text"] or item["prompt"] + item["options"][item["answer"]] for item in items]
    return pa.table({"suite": [i["suite"] for i in items], "item": [i["item"] for i in items], "text": texts})


def overlap(run: StageRun, asked: pa.Table) -> pa.Table:
    """Search the training text.

    Args:
        run: of a stage that reads `ingest` (documents), `select` (cuts) and `pack` (rows).
        asked: suite, item, text.

    Returns:
        Rows of `overlap`, in the order of `asked`, for what is long enough.
    """
    needles = needles_of(asked.append_column("kind", pa.array(["verbatim"] * len(asked), pa.string())), WORDS, shortest=SHORTEST)
    found = np.zeros(len(needles.hashes), bool)
    select = run.input("select")
    packed = read_tables(run.input("pack").files("rows"), ["doc_id", "side"])
    learned = pc.unique(packed.filter(pc.equal(packed["side"], "train"))["doc_id"])
    cuts = read_tables(select.files("cuts")) if "cuts" in select.manifest.tables else CUTS.empty_table()
    for path in run.input("ingest").files("documents") if len(needles) else ():
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=PIECE_ROWS, columns=["doc_id", "text"]):
                chosen = batch.filter(pc.is_in(batch.column("doc_id"), value_set=learned))
                if not chosen.num_rows:
                    continue
                texts = pc.fill_null(chosen.column("text").cast(pa.large_string()), "")
                whole = Documents(texts, pa.nulls(len(texts))).without(cuts_of(chosen.column("doc_id"), cuts))
                data, offsets = buffers_of(whole.texts)
                found[grams_in(needles, Texts(ids_of(chosen.column("doc_id")), data, offsets))] = True
    there = np.repeat(found, np.diff(needles.bounds))  # for each pair of n-gram and item
    shares = np.bincount(needles.owners, weights=there, minlength=len(needles.sizes)) / np.maximum(needles.sizes, 1)
    documents = np.asarray(pc.equal(needles.items["suite"], "language"), bool)
    columns = [*needles.items.columns, shares, np.where(documents, shares >= COPIED, shares > 0)]
    return pa.table(columns, schema=OVERLAP).filter(pa.array(needles.length_of > 0))
