"""Arrow schemas of every table, for DuckDB, polars, pandas, `datasets`. A decision deletes nothing: it is a row with a reason."""

from __future__ import annotations

import pyarrow as pa

DOC_ID = pa.binary(16)  # 128-bit blake3 of (source, stable position or id); the same on every machine and in every shard layout
ROW_GROUP = 50_000  # documents; pyarrow's default of one group would defeat DuckDB's parallelism


def _schema(*fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([pa.field(name, kind) for name, kind in fields])


TURNS = pa.list_(pa.struct([("role", pa.string()), ("start", pa.int64()), ("end", pa.int64())]))  # bytes of `text`
DOCUMENTS = _schema(
    ("doc_id", DOC_ID),
    ("kind", pa.string()),  # text | instruct
    ("text", pa.large_string()),
    ("source", pa.string()),
    ("domain", pa.string()),
    ("licence", pa.string()),  # SPDX identifier, "" unknown
    ("created_at", pa.timestamp("s", tz="UTC")),  # null: unknown
    ("url", pa.string()),
    ("metadata", pa.string()),  # JSON object
    ("file", pa.string()),  # relative to the source's root
    ("file_digest", pa.string()),
    ("record_index", pa.int64()),
    ("byte_offset", pa.int64()),
    ("byte_length", pa.int64()),
    ("text_hash", DOC_ID),  # 128-bit blake3 of the normalised text (case folded, white space collapsed)
    ("turns", TURNS),  # kind instruct: who says what in `text`, an empty line between two turns; null for kind text
)
EDITS = _schema(  # bytes start to end of the original became `length` bytes of the text (`corpus/changes.py`)
    ("doc_id", DOC_ID), ("stage", pa.string()), ("start", pa.int64()), ("end", pa.int64()), ("kind", pa.string()),
    ("length", pa.int64()),
)  # fmt: skip
IDS = _schema(("doc_id", DOC_ID), ("file", pa.string()), ("record_index", pa.int64()))  # of records with an id of their own
QUARANTINE = _schema(
    ("doc_id", DOC_ID),  # that the record has, or would have had as a document; null: the file as a whole
    ("source", pa.string()), ("position", pa.string()), ("reason", pa.string()), ("head", pa.binary()),
)  # fmt: skip
SUITE_ITEMS = _schema(
    ("suite", pa.string()),
    ("item", pa.string()),  # unique in the suite
    ("form", pa.string()),  # of validation/items.py: FORMS
    ("prompt", pa.string()),  # context shared by all options, may be empty
    ("options", pa.list_(pa.string())),
    ("answer", pa.int32()),  # index of the right option
    ("text", pa.string()),  # verbatim text that must not be in training data; "" for template items
    ("kind", pa.string()),  # verbatim | template
    ("entities", pa.list_(pa.string())),  # of which no training statement made from reference tables speaks
    ("category", pa.string()),
    ("fact", pa.string()),  # the same for items that ask the same in other words; "" for an item alone
    ("region", pa.string()),  # continent, or ""
    ("source", pa.string()),  # row of a reference table, or line of a file
)
DECISIONS = _schema(
    ("doc_id", DOC_ID), ("stage", pa.string()), ("rule", pa.string()), ("kept", pa.bool_()), ("reason", pa.string()),
    ("value", pa.float64()),
)  # fmt: skip
STATISTICS = _schema(  # counts in cells, of one file of documents: the sum over files is the corpus (`quality/statistics.py`)
    ("source", pa.string()), ("domain", pa.string()), ("language", pa.string()), ("licence", pa.string()),
    ("kind", pa.string()),  # sum | signal | failed | only
    ("measure", pa.string()),  # what is summed; the signal; the rule
    ("bucket", pa.int32()),  # of the signal's value; else 0
    ("amount", pa.int64()),
)  # fmt: skip
PAIRS = _schema(
    ("doc_id_a", DOC_ID), ("doc_id_b", DOC_ID), ("jaccard", pa.float64()), ("containment", pa.float64()),
    ("bands_hit", pa.int32()), ("accepted", pa.bool_()),
)  # fmt: skip
CLUSTERS = _schema(("doc_id", DOC_ID), ("cluster_id", DOC_ID), ("survivor", pa.bool_()), ("why", pa.string()))
BANDS = _schema(
    ("doc_id", DOC_ID)
)  # and a column `band_000`, `band_001` … (uint64; 0: no shingle) a band: see `dedup/minhash.py`
BUCKETS = _schema(  # one row a band bucket over a fortieth of `dedup.bucket_limit`: what a later night looks at again
    ("band", pa.int32()),
    ("band_hash", pa.uint64()),
    ("documents", pa.int64()),
    ("cut", pa.int64()),  # documents of it that no further band could tell apart: only compared with the best of them
)
BOILERPLATE = _schema(("text", pa.large_string()), ("documents", pa.int64()), ("trimmed", pa.int64()))  # one row a line
SPLITS = _schema(("doc_id", DOC_ID), ("side", pa.string()))  # train | dev | test
SELECTION = _schema(
    ("doc_id", DOC_ID),
    ("side", pa.string()),
    ("domain", pa.string()),
    ("repeats", pa.int32()),
    ("role", pa.string()),  # new | replay | kept (kept: chosen on an earlier night, not trained on tonight)
    ("quality", pa.float64()),
    ("score", pa.float64()),
    ("est_tokens", pa.int64()),
)
CELLS = _schema(  # one row a cell that has a document to choose; amounts in the budget's unit: tokens or documents
    ("domain", pa.string()), ("length", pa.string()), ("quality", pa.string()), ("age", pa.string()),
    ("documents", pa.int64()),  # that may be chosen
    ("available", pa.int64()),
    ("wanted", pa.int64()),  # the part of its fair share that it keeps in any case
    ("without_refill", pa.int64()),  # what quality, diversity and balance alone would have chosen
    ("chosen", pa.int64()),
    ("lacking", pa.int64()),  # wanted and not there: the reserve is used up
)  # fmt: skip
CUTS = _schema(("doc_id", DOC_ID), ("start", pa.int64()), ("end", pa.int64()))  # bytes left out, by document and place, disjoint
STEPS = _schema(
    ("step", pa.int64()), ("loss", pa.float64()), ("lr", pa.float64()), ("grad_norm", pa.float64()),
    ("seconds", pa.float64()),  # evaluations and saves left out
    ("data_wait", pa.float64()),  # share of the step in which training waited for its batches
    ("tokens_per_second", pa.float64()), ("mfu", pa.float64()),
    ("memory_bytes", pa.int64()),  # peak so far
    ("utilisation", pa.float64()),  # share of the device, or of the processor's cores; null: cannot be read
    ("temperature", pa.float64()),  # °C; null: cannot be read
    ("first_sequence", pa.int64()), ("last_sequence", pa.int64()), ("attempt", pa.int32()), ("superseded", pa.bool_()),
)  # fmt: skip
EVENTS = _schema(("time", pa.string()), ("step", pa.int64()), ("kind", pa.string()), ("detail", pa.string()))
_WHOSE = (("attempt", pa.int32()), ("superseded", pa.bool_()))  # of a log's row: a resumed training made superseded ones again
LOSSES = _schema(  # parts of the loss of some steps (train) or an evaluation (dev); tokens and tokens × loss sum to the whole
    ("side", pa.string()), ("first_step", pa.int64()), ("step", pa.int64()), ("source", pa.string()), ("domain", pa.string()),
    ("tokens", pa.int64()),  # that were predicted
    ("loss", pa.float64()),  # mean of these, nats
    *_WHOSE,
)  # fmt: skip
LAYERS = _schema(  # of some steps
    ("step", pa.int64()),
    ("group", pa.string()),  # embeddings | layer 0 … | head | other | all
    ("grad_norm", pa.float64()),  # before clipping
    ("update_ratio", pa.float64()),  # norm of the step's change ÷ that of the weights, of ≤ 65,536 elements a parameter
    *_WHOSE,
)
SAMPLES = _schema(  # one row a prompt at an evaluation
    ("step", pa.int64()), ("prompt", pa.string()), ("text", pa.string()), ("tokens", pa.int64()),
    ("repetition", pa.float64()),  # share of 4-grams that stood there before; null: too short
    ("distinct_2", pa.float64()),  # different bigrams ÷ bigrams; null: too short
    *_WHOSE,
)  # fmt: skip
WORST = _schema(  # the dev documents with the highest mean loss at an evaluation
    ("step", pa.int64()), ("doc_id", DOC_ID), ("source", pa.string()), ("domain", pa.string()),
    ("tokens", pa.int64()),  # that were predicted
    ("loss", pa.float64()), *_WHOSE,
)  # fmt: skip
SCORES = _schema(  # one row an item, or in suite `language` a document
    ("suite", pa.string()),
    ("task", pa.string()),  # the item's category; the document's domain
    ("item", pa.string()),
    ("form", pa.string()),
    ("variant", pa.string()),  # the perturbation of the prompt, "" for none
    ("fact", pa.string()),
    ("region", pa.string()),
    ("score", pa.float64()),  # 1 right, 0 wrong; preference: 1 the stereotyped sentence; language: bits
    ("weight", pa.float64()),  # 1; language: bytes
    ("year", pa.int32()),  # language: of the document; null: unknown
    ("chance", pa.float64()),  # of a random guess
    ("majority", pa.float64()),  # of a guess at what is most often right in the category
    ("chosen", pa.int64()),  # index of the option that the model prefers; null: two are alike
    ("confidence", pa.float64()),  # the probability of that option among the options, by what decides between them
    ("probability", pa.float64()),  # … and of the right one
    ("log_probs", pa.list_(pa.float64())),  # of each option after the prompt, summed over its tokens, natural
    ("model", pa.string()),
)
OVERLAP = _schema(  # one row an item or test document that is long enough to tell
    ("suite", pa.string()), ("item", pa.string()),
    ("share", pa.float64()),  # of its n-grams, the part that the chosen training text contains
    ("contaminated", pa.bool_()),
)  # fmt: skip
ROWS = _schema(  # one row a document to pack, in packing order: the row number is what chunks call doc_row
    ("side", pa.string()),
    ("pass", pa.int32()),  # 0 for the first time a document is seen, 1 for its first repeat …
    ("document", pa.int64()),  # position in the documents table, its files one after the other
    ("doc_id", DOC_ID),
    ("domain", pa.string()),
    ("est_tokens", pa.int64()),
    ("text_hash", DOC_ID),  # as in the documents table: a document with another one is another document
    ("cuts", pa.list_(pa.int64())),  # start, end, start, end … of the bytes of the text that are left out; null: none
)
RANGES = _schema(  # one row a chunk: the source range it is a pure function of
    ("side", pa.string()),
    ("chunk", pa.int64()),
    ("first_row", pa.int64()),
    ("last_row", pa.int64()),  # included
    ("est_tokens", pa.int64()),
)
CHUNKS = _schema(  # one row a committed chunk
    ("side", pa.string()), ("chunk", pa.int64()), ("file_digest", pa.string()), ("content_digest", pa.string()),
    ("size", pa.int64()), ("sequences", pa.int64()), ("tokens", pa.int64()), ("documents", pa.int64()),
    ("cut_documents", pa.int64()), ("text_bytes", pa.int64()), ("cache", pa.string()),  # cache: the folder it lies in
)  # fmt: skip
TOMBSTONES = _schema(("row", pa.int64()))  # rows of a continued cache that are no longer selected, ascending
GONE = _schema(("side", pa.string()), ("sequence", pa.int64()))  # sequences of a side that hold nothing but tombstones
TRIALS = _schema(  # one row a trial of the search, in the order they were made
    ("number", pa.int32()),
    ("kind", pa.string()),  # baseline (the default) | warm (of a past search) | sampled | repeat (another seed)
    ("seed_of", pa.int32()),  # of a repeat: the trial whose point it has
    ("state", pa.string()),  # complete | pruned | failed | refused (never ran: the estimate said no)
    ("params", pa.string()),  # JSON object: the values trained with, and the factors they come from
    ("dev_loss", pa.float64()),  # null: none
    ("steps", pa.int64()),
    ("tokens", pa.int64()),  # that its last reading has seen
    ("spent_tokens", pa.int64()),  # trained in all, the decays of earlier readings included
    ("seconds", pa.float64()),
    ("error", pa.string()),
    ("curve", pa.string()),  # JSON: [[step, dev loss], …]
    ("rungs", pa.string()),  # JSON: [{rung, steps, tokens, spent_tokens, seconds, dev_loss}, …]
)

TABLES = {
    "documents": DOCUMENTS, "edits": EDITS, "ids": IDS, "quarantine": QUARANTINE, "suite_items": SUITE_ITEMS,
    "decisions": DECISIONS, "pairs": PAIRS, "clusters": CLUSTERS, "bands": BANDS, "buckets": BUCKETS, "boilerplate": BOILERPLATE,
    "splits": SPLITS, "selection": SELECTION, "cuts": CUTS,
    "cells": CELLS,
    "steps": STEPS, "events": EVENTS, "losses": LOSSES, "layers": LAYERS, "samples": SAMPLES, "worst": WORST,
    "scores": SCORES, "overlap": OVERLAP, "rows": ROWS, "ranges": RANGES, "chunks": CHUNKS,
    "tombstones": TOMBSTONES, "gone": GONE, "statistics": STATISTICS, "trials": TRIALS,
}  # fmt: skip
