"""The test side's text under the model: bits of each document, so that bits per byte follow for any part of it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline_lib.errors import StageFailedError
from pipeline_lib.tables.duck import connect
from pipeline_lib.tables.schemas import SCORES
from pipeline_lib.validation.scorer import Scorer
from pipeline_lib.workspace.stage import StageRun

DOCUMENT_CHARACTERS = 8000  # of a test document, at most: many documents say more than few long ones
BITS = 1 / np.log(2)


def language(run: StageRun, scorer: Scorer, budget: int) -> tuple[pa.Table, int, float]:
    """Score test documents, a budget of tokens shared evenly by the domains.

    Returns:
        Rows of `scores` (suite `language`, task the domain, score bits, weight bytes), tokens scored, and bits per byte of a
        model that knows only byte frequencies.

    Raises:
        StageFailedError: the model gives NaN.
    """
    with connect(
        {"documents": run.input("ingest").files("documents"), "selection": run.input("select").files("selection")}
    ) as db:
        texts: pa.Table = db.sql(
            """
            SELECT lower(hex(doc_id)) AS item, s.domain AS domain, left(text, ?) AS text
            FROM selection s JOIN documents USING (doc_id) WHERE s.side = 'test' ORDER BY s.domain, doc_id
            """,
            params=[DOCUMENT_CHARACTERS],
        ).to_arrow_table()
    encoded = scorer.encode(texts["text"].to_pylist())
    share = budget // max(1, len(set(texts["domain"].to_pylist())))
    spent: dict[str, int] = {}
    chosen = []
    for row, domain in enumerate(texts["domain"].to_pylist()):
        if len(encoded[row]) and spent.get(domain, 0) < share:
            spent[domain] = spent.get(domain, 0) + len(encoded[row])
            chosen.append(row)
    spans = [(row, span) for row in chosen for span in scorer.windows(encoded[row])]
    run.progress(0, len(spans), "windows of test text")
    sums = np.zeros(len(texts))
    np.subtract.at(sums, [row for row, _ in spans], scorer.log_probs([span for _, span in spans]) * BITS)
    if not np.isfinite(sums).all():
        raise StageFailedError(
            "the model gives NaN on test text",
            where="stage validate",
            fix="`millrace show RUN`: the training's events say where it broke",
        )
    picked = texts.take(pa.array(chosen, pa.int64()))
    raw = [text.encode() for text in picked["text"].to_pylist()]
    domains, items = picked["domain"].to_pylist(), picked["item"].to_pylist()
    rows = [
        {"suite": "language", "task": domain, "item": item, "variant": "", "score": bits, "weight": float(len(text))}
        for domain, item, bits, text in zip(domains, items, sums[chosen].tolist(), raw, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCORES), sum(spent.values()), byte_entropy(b"".join(raw))


def byte_entropy(text: bytes) -> float:
    """Bits per byte of the best model that ignores order (Shannon's unigram entropy)."""
    if not text:
        return 8.0
    counts = np.bincount(np.frombuffer(text, np.uint8), minlength=256)
    shares = counts[counts > 0] / counts.sum()
    return round(float(-(shares * np.log2(shares)).sum()), 6)
