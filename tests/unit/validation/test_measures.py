"""The measures of models with known behaviour are what arithmetic says."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline_lib.tables.schemas import SCORES
from pipeline_lib.validation.intervals import design_effect, estimate
from pipeline_lib.validation.measures import calibration_error, majority, measures

ITEMS = 400


def answers(chosen, answer, confidence, facts=None):
    """Scores of a model over items with four options."""
    rows = []
    for number, (pick, right, sure) in enumerate(zip(chosen, answer, confidence, strict=True)):
        probability = sure if pick == right else (1 - sure) / 3
        rows.append(
            {"suite": "s", "task": "t", "item": str(number), "form": "choice", "fact": facts[number] if facts else "",
             "score": float(pick == right), "weight": 1.0, "chosen": pick, "confidence": sure, "probability": probability}
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=SCORES)


def test_an_oracle_a_liar_and_a_coin():
    truth = [n % 4 for n in range(ITEMS)]
    oracle = measures(answers(truth, truth, [1.0] * ITEMS))
    assert oracle == {"brier": 0, "calibration_error": 0, "hallucination": 0}
    liar = measures(answers([(t + 1) % 4 for t in truth], truth, [1.0] * ITEMS))
    assert (liar["brier"], liar["calibration_error"], liar["hallucination"]) == (1, 1, 1)
    coin = measures(answers([0] * ITEMS, truth, [0.25] * ITEMS))
    assert coin == {"brier": 0.75**2, "calibration_error": pytest.approx(0, abs=0.02), "hallucination": 0}


def test_consistency_tells_a_stable_error_from_an_unstable_one():
    truth = [0] * 9
    facts = ["a"] * 3 + ["b"] * 3 + ["c"] * 3
    found = measures(answers([0, 0, 0, 2, 2, 2, 0, 1, 0], truth, [0.4] * 9, facts))
    assert found["consistency"] == pytest.approx(2 / 3)
    assert found["stable_wrong"] == pytest.approx(1 / 3)
    assert "consistency" not in measures(answers([0, 1], [0, 0], [0.4] * 2, ["a", "b"]))  # asked once each


def test_the_calibration_error_of_an_overconfident_model_is_its_overconfidence():
    draw = np.random.default_rng(0)
    right = draw.random(20_000) < 0.7
    assert calibration_error(np.full(20_000, 0.9), right) == pytest.approx(0.2, abs=0.01)
    sure = draw.random(20_000)
    assert calibration_error(sure, draw.random(20_000) < sure) < 0.02


def test_documents_have_no_measures():
    rows = pa.Table.from_pylist([{"suite": "language", "item": "x", "score": 10.0, "weight": 5.0}], schema=SCORES)
    assert measures(rows) == {}


def test_a_guesser_at_the_commonest_answer():
    def item(options, answer, number, fact=""):
        return {
            "suite": "s",
            "category": "c",
            "item": str(number),
            "form": "choice",
            "fact": fact,
            "options": options,
            "answer": answer,
        }

    asked = [item(["Africa", "Asia"], int(n >= 8), n) for n in range(10)]
    assert majority(asked) == [1.0] * 8 + [0.0] * 2
    assert majority([item([f"a{n}", f"b{n}"], 0, n) for n in range(4)]) == [0.5] * 4
    worded = [item([f"a{n // 2}", f"b{n // 2}"], 0, n, f"fact {n // 2}") for n in range(4)]
    assert majority(worded) == [0.5] * 4, "another wording of the same fact gives it away"


def test_wordings_of_one_fact_count_as_what_they_are():
    """200 facts in three wordings with one answer each say as much as 200 items, not as 600."""
    right = (np.random.default_rng(3).random(200) < 0.6).astype(float)
    groups = np.repeat(np.arange(200), 3)
    thrice = estimate(np.repeat(right, 3), np.ones(600), n_resamples=10, groups=groups)
    once = estimate(right, np.ones(200), n_resamples=10)
    assert (thrice.value, thrice.n) == (once.value, 600)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high), abs=2e-3)
    assert design_effect(np.repeat(right, 3), groups) == pytest.approx(3, rel=0.01)
    alone = estimate(np.repeat(right, 3), np.ones(600), n_resamples=10, groups=np.arange(600))
    assert alone.high - alone.low < 0.7 * (thrice.high - thrice.low)


def test_clustered_intervals_cover_the_truth():
    draw = np.random.default_rng(5)
    hits = 0
    for _ in range(500):
        ability = draw.beta(2, 2, 120)  # of each fact: its wordings are related, not equal
        scores = (draw.random((120, 3)) < ability[:, None]).astype(float).ravel()
        found = estimate(scores, np.ones(360), n_resamples=10, groups=np.repeat(np.arange(120), 3))
        hits += found.low <= 0.5 <= found.high
    assert 0.92 <= hits / 500 <= 0.98
