"""Documents that mean the same in other words: cosine similarity of embeddings by a model in a local folder. Off by default.

1. Every document is embedded once (table `embeddings`, a segment a file): the mean of the last layer over its first tokens, of
unit length. What lies behind `MOST_TOKENS` is not seen. 2. Up to `EXACT` documents all pairs are compared; of more only those
that share a bucket: the signs of some random projections, in so many tables that a pair at the threshold is found with
probability `FOUND` (Charikar 2002: two vectors at an angle θ have the same sign with probability 1 − θ/π). 3. The cosine of what
was found decides (table `semantic`); among the documents that nothing else drops the better one removes its direct neighbours.

The model is read from safetensors, nothing is downloaded, and no code of the model's folder runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.config.data import DedupConfig
from pipeline_lib.dedup import kernels
from pipeline_lib.dedup.conclude import Circumstances
from pipeline_lib.dedup.embedding_model import model_digest
from pipeline_lib.pretrained import read_model
from pipeline_lib.tables.ids import Ids, hex_column, id_column, ids_of, places_of
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import DECISIONS, DOC_ID
from pipeline_lib.workspace.stage import StageRun

SEMANTIC = pa.schema(
    [("doc_id_a", DOC_ID), ("doc_id_b", DOC_ID), ("cosine", pa.float64()), ("accepted", pa.bool_())]
)  # every pair within `NEAR` of the threshold, or above it
MOST_TOKENS = 512
BATCH = 32  # documents embedded at once
EXACT = 20_000  # documents; all pairs of so many are compared in seconds
FOUND = 0.99
NEAR = 0.02  # pairs so little below the threshold are evidence, too
IN_A_BUCKET = 64  # documents, on average
MOST_IN_A_BUCKET = 2_000  # a larger bucket is split by further signs
MOST_TABLES = 64
SEED = 2002  # of the projections: part of the method, never of a run
Numbers = NDArray[np.int64]
Vectors = NDArray[np.float32]


class Embedder:
    """A model and its tokenizer, from a folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self._model = read_model(folder, head=False)
        known = getattr(self._model.config, "max_position_embeddings", MOST_TOKENS)
        self._tokens = min(MOST_TOKENS, int(self._tokenizer.model_max_length), int(known))

    def __call__(self, texts: list[str]) -> Vectors:
        """Vectors of unit length [texts, dimensions]; 0 for a text without a token."""
        import torch

        parts = []
        with torch.inference_mode():
            for start in range(0, len(texts), BATCH):
                asked = self._tokenizer(
                    texts[start : start + BATCH], padding=True, truncation=True, max_length=self._tokens, return_tensors="pt"
                )
                last = self._model(**asked).last_hidden_state.float()
                seen = asked["attention_mask"].unsqueeze(-1)
                mean = (last * seen).sum(1) / seen.sum(1).clamp(min=1)
                parts.append(torch.nn.functional.normalize(mean, dim=1).numpy())
        return np.concatenate(parts)


def embed_file(item: tuple[str, str], folder: Path, *, model: str) -> dict[str, Any]:
    """Shard work: write `embeddings.parquet` of one documents file (path, digest), rows as there."""
    embedder, tables, count = Embedder(Path(model)), [], 0
    with pq.ParquetFile(item[0]) as file:
        for batch in file.iter_batches(batch_size=1024, columns=["doc_id", "text"]):
            vectors = embedder([text or "" for text in batch.column("text").to_pylist()])
            listed = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
            tables.append(pa.table({"doc_id": batch.column("doc_id"), "vector": listed}))
            count += len(batch)
    write_table(pa.concat_tables(tables) if tables else pa.table({"doc_id": pa.array([], DOC_ID)}), folder / "embeddings.parquet")
    return {"documents": count}


def vectors_of(column: pa.ChunkedArray) -> Vectors:
    """The column `vector` as [documents, dimensions]."""
    lists = column.combine_chunks()
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False), dtype=np.float32).reshape(len(lists), -1)


def tables_needed(threshold: float, bits: int) -> int:
    """With so many tables of signs a pair at the threshold shares a bucket with probability `FOUND` (at most `MOST_TABLES`)."""
    same = (1 - math.acos(min(threshold, 1.0)) / math.pi) ** bits
    return 1 if same >= FOUND else min(MOST_TABLES, math.ceil(math.log(1 - FOUND) / math.log(1 - same)))


def similar_pairs(vectors: Vectors, least: float, *, exact: int = EXACT) -> tuple[Numbers, Numbers, NDArray[np.float64]]:
    """Pairs (left < right) whose cosine is at least `least`, ordered, with the cosine to four digits.

    Args:
        vectors: [n, dimensions] of unit length.
        least: cosine similarity.
        exact: up to so many all pairs are compared, of more those that share a bucket.
    """
    n = len(vectors)
    groups = _all(n) if n <= exact else _buckets(vectors, least)
    found = [_within(vectors, rows, columns, least) for rows, columns in groups]
    codes = _distinct(np.concatenate([*found, np.empty(0, dtype=np.int64)]))
    left, right = codes >> 32, codes & 0xFFFFFFFF
    cosine = np.concatenate(
        [
            np.einsum("ij,ij->i", vectors[left[s : s + 65536]], vectors[right[s : s + 65536]], dtype=np.float64)
            for s in range(0, len(left), 65536)
        ]
        or [np.empty(0)]
    )
    return left, right, np.round(np.clip(cosine, -1.0, 1.0), 4)  # further digits depend on the batch a text was embedded in


def _all(n: int) -> Iterator[tuple[Numbers, Numbers]]:
    """Blocks of all pairs."""
    for start in range(0, n, 1024):
        yield np.arange(start, min(n, start + 1024)), np.arange(start, n)


def _buckets(vectors: Vectors, least: float) -> Iterator[tuple[Numbers, Numbers]]:
    """Documents with the same signs, table by table. A loop over buckets: each is a product of matrices."""
    rng = np.random.default_rng(SEED)
    bits = max(1, round(math.log2(len(vectors) / IN_A_BUCKET)))
    for _ in range(tables_needed(least, bits)):
        planes = rng.standard_normal((vectors.shape[1], 62), dtype=np.float32)
        code = ((vectors @ planes) > 0) @ (np.int64(1) << np.arange(61, -1, -1))
        order = np.argsort(code, kind="stable")
        yield from _split(order, code[order], 62 - bits)


def _split(order: Numbers, code: Numbers, shift: int) -> Iterator[tuple[Numbers, Numbers]]:
    """Runs of documents whose codes agree but for the last `shift` signs; large ones by more signs."""
    bounds = np.flatnonzero(np.diff(code >> shift)) + 1
    for begin, end in zip(np.append(0, bounds), np.append(bounds, len(code)), strict=True):
        if end - begin > MOST_IN_A_BUCKET and shift > 0:
            yield from _split(order[begin:end], code[begin:end], max(0, shift - 4))
        elif end - begin > 1:
            for start in range(begin, end, 1024):  # equal vectors share all signs: such a bucket is compared block by block
                yield order[start : min(end, start + 1024)], order[start:end]


def _within(vectors: Vectors, rows: Numbers, columns: Numbers, least: float) -> Numbers:
    """Pairs of a row and a column that are similar enough: 2^32 times the smaller number, and the larger."""
    a, b = np.nonzero(vectors[rows] @ vectors[columns].T >= least - 1e-4)  # the rounded cosine decides later
    one, other = rows[a], columns[b]
    different = one != other
    codes: Numbers = ((np.minimum(one, other) << 32) | np.maximum(one, other))[different]
    return _distinct(codes)


def _distinct(codes: Numbers) -> Numbers:
    """Sorted, each once: numpy 2.4's hashing `unique` takes a minute for what is sorted in a tenth of a second."""
    codes = np.sort(codes)
    return codes[np.append(True, codes[1:] != codes[:-1])] if len(codes) else codes


@dataclass(frozen=True)
class Same:
    """What the embeddings said: the table `semantic`, and rows of `decisions`."""

    pairs: pa.Table
    decisions: pa.Table


def same_meaning(
    run: StageRun, config: DedupConfig, around: Circumstances, dropped: Ids, files: Sequence[tuple[str, str]]
) -> Same:
    """Look for documents of the same meaning among those that nothing else drops.

    Args:
        run: the stage.
        config: its section.
        around: what decides about survivors.
        dropped: documents that are dropped already.
        files: (path, digest) of each documents file.
    """
    model = model_digest(config)
    if not model:
        return Same(SEMANTIC.empty_table(), DECISIONS.empty_table())
    shards = run.shards(
        files,
        partial(embed_file, model=config.semantic),
        key=lambda item: {"part": "embeddings", "model": model, "file": item[1]},
        unit="files",
    )
    table = pa.concat_tables(pq.read_table(shard.files["embeddings"]) for shard in shards)
    ids = ids_of(table["doc_id"])
    there = np.flatnonzero(places_of(ids, np.sort(dropped)) < 0)
    there = there[np.argsort(ids[there])]
    documents = around.corpus.read(np.sort(there))
    vectors = vectors_of(table["vector"].take(pa.array(there))) if len(there) else np.empty((0, 1), dtype=np.float32)
    return settle_meaning(documents.ids, around.rank(documents, config), vectors, config.semantic_threshold)


def settle_meaning(ids: Ids, rank: Numbers, vectors: Vectors, threshold: float) -> Same:
    """Who is removed as having the meaning of a better document.

    Args:
        ids: S16[n], sorted: the documents that nothing else has dropped.
        rank: their places in the order of survivors.
        vectors: [n, dimensions] of unit length.
        threshold: cosine similarity from which two documents mean the same.
    """
    left, right, cosine = similar_pairs(vectors, threshold - NEAR)
    accepted = cosine >= threshold
    a, b, value = left[accepted], right[accepted], cosine[accepted]
    ends, others = np.concatenate([a, b]), np.concatenate([b, a])
    by_end = np.argsort(ends, kind="stable")
    removed_by = np.full(len(ids), -1, dtype=np.int64)
    kernels.choose_survivors(np.argsort(rank), np.searchsorted(ends[by_end], np.arange(len(ids) + 1)), others[by_end], removed_by)
    score = np.zeros(len(ids))
    for loser, winner in ((a, b), (b, a)):
        decided = removed_by[loser] == winner
        score[loser[decided]] = value[decided]
    gone = np.flatnonzero(removed_by >= 0)

    def same(text: Any, kind: pa.DataType | None = None) -> pa.Array:
        return pa.repeat(pa.scalar(text, kind), len(gone))

    reason = pc.binary_join_element_wise(same("means the same as"), hex_column(ids[removed_by[gone]]), " ")
    columns = [id_column(ids[gone]), same("dedup"), same("semantic_duplicate"), same(False), reason, score[gone]]
    pairs = pa.table([id_column(ids[left]), id_column(ids[right]), cosine, accepted], schema=SEMANTIC)
    return Same(pairs, pa.table(columns, schema=DECISIONS))
