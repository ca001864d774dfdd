"""What a model's answers say beyond right and wrong: calibration, consistency over paraphrases, guesses without a model.

All over columns of the table `scores`; rows without a probability (suite `language`) have no place here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.validation.items import FORMS

BINS = 10  # of equal mass, for the calibration error
PARAPHRASED = pa.array([name for name, form in FORMS.items() if form.wordings])
FEWEST = 20  # items a bin, at least: with fewer items there are fewer bins


def measures(rows: pa.Table) -> dict[str, float]:
    """The measures of a set of items, as shares; empty for rows without probabilities.

    - `brier`: mean squared distance of the probability of the right option from 1 (Brier 1950, for the event "is right")
    - `calibration_error`: expected calibration error of the chosen option's probability over bins of equal mass (Nguyen and
      O'Connor 2015; bins of equal width are empty where a model is never sure)
    - `hallucination`: share of items where a wrong option has more than half of the probability
    - `consistency`: share of facts asked in several wordings whose answer is the same in all; `stable_wrong`: of these facts, the
      share that is the same and wrong in all
    """
    rows = rows.filter(pc.is_valid(rows["confidence"]))
    if not rows.num_rows:
        return {}
    probability, confidence = rows["probability"].to_numpy(), rows["confidence"].to_numpy()
    right = rows["score"].to_numpy() > 0
    found = {
        "brier": float(np.mean((1 - probability) ** 2)),
        "calibration_error": calibration_error(confidence, right),
        "hallucination": float(np.mean(~right & (confidence > 0.5))),
    }
    return found | _consistency(rows.filter(pc.is_in(rows["form"], PARAPHRASED)))


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Mean distance between confidence and accuracy over bins of equal mass, weighted by their items."""
    bins = max(1, min(BINS, len(confidence) // FEWEST))
    order = np.argsort(confidence, kind="stable")
    parts = np.array_split(order, bins)
    return float(sum(len(part) * abs(confidence[part].mean() - right[part].mean()) for part in parts) / len(confidence))


def _consistency(rows: pa.Table) -> dict[str, float]:
    rows = rows.filter(pc.not_equal(pc.fill_null(rows["fact"], ""), ""))
    if not rows.num_rows:
        return {}
    answers, correct = pc.fill_null(rows["chosen"], -1).to_numpy(), rows["score"].to_numpy() > 0
    fact = related(rows["fact"])
    wordings = np.bincount(fact)
    lowest, highest = np.full(len(wordings), np.iinfo(np.int64).max), np.full(len(wordings), -1)
    np.minimum.at(lowest, fact, answers)
    np.maximum.at(highest, fact, answers)
    several = wordings > 1
    if not several.any():
        return {}
    same = (lowest == highest)[several]
    wrong = (np.bincount(fact, weights=correct) == 0)[several]
    return {"consistency": float(same.mean()), "stable_wrong": float((same & wrong).mean())}


def related(facts: pa.ChunkedArray) -> NDArray[np.int64]:
    """A number for each fact, from 0 without gaps, int64 [items]; an item without a fact is alone."""
    named = pc.fill_null(facts, "").combine_chunks().dictionary_encode()
    codes = np.asarray(named.indices, np.int64)
    alone = np.asarray(pc.equal(pc.fill_null(facts, ""), ""))
    codes[alone] = codes.max(initial=0) + 1 + np.arange(alone.sum())
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)


def majority(items: Sequence[Mapping[str, Any]]) -> list[float]:
    """How often a guesser is right who always takes the option that is most often the right one in its category.

    Args:
        items: rows of `suite_items`.

    Returns:
        For each item 1 or 0, or a share where several options are equally common (in texts that are right only once: chance).
    """
    common: Counter[tuple[str, str, str]] = Counter()
    told: set[tuple[str, str]] = set()
    for item in items:
        fact = (item["suite"], item["fact"] if item["fact"] and FORMS[item["form"]].wordings else item["item"])
        if fact not in told:  # a fact in several wordings is one
            told.add(fact)
            common[item["suite"], item["category"], item["options"][item["answer"]]] += 1
    guesses = []
    for item in items:
        counts = [common[item["suite"], item["category"], option] for option in item["options"]]
        counts[item["answer"]] -= 1  # it has not seen this one
        best = [index for index, count in enumerate(counts) if count == max(counts)]
        guesses.append((item["answer"] in best) / len(best))
    return guesses
