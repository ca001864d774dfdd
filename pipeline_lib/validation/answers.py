"""What a model answers: items and a scorer in, rows of the table `scores` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.tables.schemas import SCORES
from pipeline_lib.validation.items import FORMS
from pipeline_lib.validation.measures import majority
from pipeline_lib.validation.scorer import Scorer

NO_NUMBER = "the model gives no number"
Rows = Sequence[Mapping[str, Any]]


def answer(items: Rows, scorer: Scorer, *, variant: str = "") -> tuple[pa.Table, Rows]:
    """Score items.

    Args:
        items: rows of `suite_items`.
        scorer: of the model.
        variant: name of the perturbation that the prompts went through, "" for none.

    Returns:
        Rows of `scores` (without `model`), and the items that were not scored, each with its `reason`.
    """
    counts = [len(item["options"]) for item in items]
    ends = np.cumsum(counts)
    options = [option for item in items for option in item["options"]]
    prompts = [item["prompt"] for item in items for _ in item["options"]]
    spans = scorer.continuations(prompts, options)
    by = np.repeat([FORMS[item["form"]].by for item in items], counts)
    sums = scorer.log_probs(spans)
    values = sums / np.where(by == "byte", [len(option.encode()) for option in options], 1)
    if (prior := np.flatnonzero(by == "prior")).size:
        values[prior] -= scorer.log_probs(scorer.continuations([""] * len(prior), [options[index] for index in prior]))
    if (greedy := np.flatnonzero(by == "greedy")).size:
        values[greedy] = scorer.greedy([spans[index] for index in greedy])
    guesses = majority(items)
    rows, missing = [], []
    for number, (item, count, end) in enumerate(zip(items, counts, ends.tolist(), strict=True)):
        part = slice(end - count, end)
        if np.isfinite(sums[part]).all() and np.isfinite(values[part]).all():
            rows.append(_row(item, values[part], sums[part], guesses[number], variant))
        else:
            short = any(len(span.tokens) > scorer.context for span in spans[part])
            missing.append(
                {**item, "reason": f"longer than the model's context of {scorer.context} tokens" if short else NO_NUMBER}
            )
    return pa.Table.from_pylist(rows, schema=SCORES), missing


def _row(
    item: Mapping[str, Any], values: NDArray[np.float64], sums: NDArray[np.float64], guess: float, variant: str
) -> dict[str, Any]:
    """One item's answer. A tie chooses nothing: the right option must be strictly best."""
    form = FORMS[item["form"]]
    row = {
        "suite": item["suite"], "task": item["category"], "item": item["item"], "form": item["form"], "variant": variant,
        "fact": item["fact"], "region": item["region"], "weight": 1.0, "log_probs": sums,
    }  # fmt: skip
    if form.by == "greedy":
        return row | {"score": float(values[0]), "chance": 0.0, "majority": 0.0, "chosen": 0 if values[0] else None}
    best = int(values.argmax())
    alone = bool(values[best] > np.delete(values, best).max())
    chosen = best if alone else None
    if not form.judged:
        return row | {"score": float(best == 0) if alone else 0.5, "chance": 0.5, "majority": 0.5, "chosen": chosen}
    # Certainty goes by what decides: log-probabilities per byte count as for options of the mean length.
    scale = np.mean([len(option.encode()) for option in item["options"]]) if form.by == "byte" else 1.0
    shares = np.exp((values - values.max()) * scale)
    shares /= shares.sum()
    right = item["answer"]
    return row | {
        "score": float(best == right and alone), "chance": 1 / len(values), "majority": guess, "chosen": chosen,
        "confidence": shares[best], "probability": shares[right],
    }  # fmt: skip
