"""Importance resampling (DSIR, Xie et al. 2023): draw documents so that their words and word pairs come as in a target sample.

Words and word pairs are hashed into 10,000 buckets. A document's importance is the probability of its n-grams under the target
over that under the corpus; the draw without replacement is the Gumbel top-k (Vieira 2014): the largest sums of log importance
and a Gumbel number, which is a function of the document's id and the seed.

Three things are chosen here. The target's distribution is mixed with a tenth of the corpus' (Jelinek & Mercer 1980), so that an
n-gram which a small sample lacks costs a factor of ten and no more. A document's log importance is the mean over the n-grams of
its first thousand words, times at most 255: as if every document were a window of 128 words. And logarithms are whole multiples
of 2^-16, so that their sums are the same on every machine.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.config.data import SelectConfig
from pipeline_lib.dedup.texts import buffers_of
from pipeline_lib.selection import kernels
from pipeline_lib.selection.features import FIRST_WORDS, PIECE_ROWS
from pipeline_lib.selection.target import target_texts
from pipeline_lib.tables.ids import Ids, draw
from pipeline_lib.tables.parquet import read_tables, write_table
from pipeline_lib.tables.schemas import DOC_ID
from pipeline_lib.workspace.identity import fingerprint_of
from pipeline_lib.workspace.stage import StageRun

BUCKETS = 10_000
CORPUS_PART = 0.1  # of the corpus in the target's distribution
WINDOW = 255  # n-grams of 128 words
STEPS = 1 << 16  # a logarithm is a whole number of these parts of 1
GUMBEL_SALT = 0x44534952  # the draw is not the one that other stages make with the same seed

NGRAMS = pa.schema([("bucket", pa.int32()), ("count", pa.int64())])
IMPORTANCE = pa.schema([pa.field("doc_id", DOC_ID), pa.field("log_importance", pa.float64())])


def importance(run: StageRun, items: list[tuple[str, str]], select: SelectConfig) -> NDArray[np.float64]:
    """Log importance of all documents, in file order.

    Args:
        run: gets the tables `ngrams` (how often each bucket comes in each file) and `importance`.
        items: (path, digest) of the documents files.
        select: names the target sample.
    """
    counted = run.shards(items, count_file, key=lambda item: {"file": item[1], "ngrams": BUCKETS}, unit="files counted")
    corpus = sum(
        (read_tables([shard.files["ngrams"]])["count"].to_numpy() for shard in counted), start=np.zeros(BUCKETS, dtype=np.int64)
    )
    ratios = log_ratios(count_texts(target_texts(run, select)), corpus)
    mark = fingerprint_of(ratios.tolist())
    work = partial(weigh_file, ratios=ratios)
    weighed = run.shards(items, work, key=lambda item: {"file": item[1], "ratios": mark}, unit="files weighed")
    found = read_tables([shard.files["importance"] for shard in weighed], ["log_importance"])
    return np.asarray(found["log_importance"].to_numpy(), dtype=np.float64)


def log_ratios(target: NDArray[np.int64], corpus: NDArray[np.int64]) -> NDArray[np.int64]:
    """Log of each bucket's probability in the target over that in the corpus, in parts of 1/65,536.

    Args:
        target: counts by bucket.
        corpus: counts by bucket; a bucket that is empty here counts as one, because no document has it anyway.
    """
    raw = np.maximum(corpus, 1) / max(1, int(np.maximum(corpus, 1).sum()))
    wanted = target / max(1, int(target.sum()))
    mixed = (1.0 - CORPUS_PART) * wanted + CORPUS_PART * raw
    return np.array([round(math.log(ratio) * STEPS) for ratio in (mixed / raw).tolist()], dtype=np.int64)


def count_texts(texts: list[str]) -> NDArray[np.int64]:
    """How often each bucket comes in some texts."""
    counts = np.zeros(BUCKETS, dtype=np.int64)
    data, offsets = buffers_of(pa.array(texts, pa.large_string()))
    kernels.count_ngrams(data, offsets, FIRST_WORDS, counts)
    return counts


def count_file(item: tuple[str, str], folder: Path) -> dict[str, Any]:
    """Shard work: write `ngrams.parquet`, how often each bucket comes in one documents file (path, digest)."""
    counts = np.zeros(BUCKETS, dtype=np.int64)
    with pq.ParquetFile(item[0]) as file:
        for batch in file.iter_batches(batch_size=PIECE_ROWS, columns=["text"], use_threads=False):
            kernels.count_ngrams(*buffers_of(batch.column("text")), FIRST_WORDS, counts)
    write_table(pa.table([np.arange(BUCKETS, dtype=np.int32), counts], schema=NGRAMS), folder / "ngrams.parquet")
    return {"ngrams": int(counts.sum())}


def weigh_file(item: tuple[str, str], folder: Path, *, ratios: NDArray[np.int64]) -> dict[str, Any]:
    """Shard work: write `importance.parquet` of one documents file (path, digest)."""
    batches = []
    with pq.ParquetFile(item[0]) as file:
        for batch in file.iter_batches(batch_size=PIECE_ROWS, columns=["doc_id", "text"], use_threads=False):
            data, offsets = buffers_of(batch.column("text"))
            found = np.empty(batch.num_rows, dtype=np.float64)
            kernels.weigh_ngrams(data, offsets, FIRST_WORDS, WINDOW, ratios, 1.0 / STEPS, found)
            batches.append(pa.record_batch([batch.column("doc_id"), pa.array(found)], schema=IMPORTANCE))
    rows = write_table(pa.Table.from_batches(batches, schema=IMPORTANCE), folder / "importance.parquet")
    return {"documents": rows}


def drawn(ids: Ids, log_importance: NDArray[np.float64], costs: NDArray[np.int64], budget: int, seed: int) -> NDArray[np.bool_]:
    """Gumbel top-k: documents in the order of a weighted draw without replacement, as many as fit the budget."""
    uniform = np.clip(draw(ids, seed ^ GUMBEL_SALT), 2.0**-53, None)
    gumbel = np.round(-np.log(-np.log(uniform)) * STEPS)
    order = np.argsort(-(np.round(log_importance * STEPS) + gumbel), kind="stable")
    taken = np.zeros(len(ids), dtype=bool)
    taken[order] = np.cumsum(costs[order]) <= budget
    return taken
