"""The test side's text under the model: bits of each document, so that bits per byte follow for any part of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.dedup.texts import buffers_of
from pipeline_lib.tables.duck import connect
from pipeline_lib.tables.schemas import SCORES
from pipeline_lib.validation.scorer import Scorer

DOCUMENT_CHARACTERS = 8000  # of a test document, at most: many documents say more than few long ones
BITS = 1 / np.log(2)


def test_texts(documents: Sequence[Path], selection: Sequence[Path]) -> pa.Table:
    """The test side: item (hexadecimal id), domain, year (null: unknown), text; by domain and id, `DOCUMENT_CHARACTERS` each."""
    with connect({"documents": documents, "selection": selection}) as db:
        table: pa.Table = db.sql(
            """
            SELECT lower(hex(doc_id)) AS item, s.domain AS domain, year(created_at)::INTEGER AS year, left(text, ?) AS text
            FROM selection s JOIN documents USING (doc_id) WHERE s.side = 'test' ORDER BY s.domain, doc_id
            """,
            params=[DOCUMENT_CHARACTERS],
        ).to_arrow_table()
    return table


def language(texts: pa.Table, scorer: Scorer, budget: int) -> tuple[pa.Table, int]:
    """Score test documents, a budget of tokens shared evenly by the domains.

    Returns:
        Rows of `scores` (suite `language`, task the domain, score bits, NaN where the model gives none, weight bytes), and the
        tokens scored.
    """
    encoded = scorer.encode(texts["text"].to_pylist())
    share = budget // max(1, len(set(texts["domain"].to_pylist())))
    spent: dict[str, int] = {}
    chosen = []
    for row, domain in enumerate(texts["domain"].to_pylist()):
        if len(encoded[row]) and spent.get(domain, 0) < share:
            spent[domain] = spent.get(domain, 0) + len(encoded[row])
            chosen.append(row)
    spans = [(row, span) for row in chosen for span in scorer.windows(encoded[row])]
    sums = np.zeros(len(texts))
    np.subtract.at(sums, [row for row, _ in spans], scorer.log_probs([span for _, span in spans]) * BITS)
    picked = texts.take(pa.array(chosen, pa.int64()))
    columns = {
        "suite": pa.repeat(pa.scalar("language"), len(picked)), "task": picked["domain"], "item": picked["item"],
        "variant": pa.repeat(pa.scalar(""), len(picked)), "score": pa.array(sums[chosen]), "year": picked["year"],
        "weight": pc.binary_length(picked["text"]).cast(pa.float64()),
    }  # fmt: skip
    empty = {field.name: pa.nulls(len(picked), field.type) for field in SCORES if field.name not in columns}
    return pa.table(columns | empty).select(SCORES.names).cast(SCORES), sum(spent.values())


def byte_entropy(texts: pa.ChunkedArray) -> float:
    """Bits per byte of the best model that ignores order (Shannon's unigram entropy), over all texts together."""
    data, offsets = buffers_of(texts.combine_chunks())
    counts = np.bincount(data[offsets[0] : offsets[-1]], minlength=256)
    if not counts.sum():
        return 8.0
    shares = counts[counts > 0] / counts.sum()
    return round(float(-(shares * np.log2(shares)).sum()), 6)
