"""Recall over run records: order, reasons, doubted records."""

import math

import pytest

from pipeline_lib.memory.possible import doubts
from pipeline_lib.memory.recall import guess_throughput, nearest
from pipeline_lib.workspace.runs import RunBook, RunRecord

ASKED = {"family": "llama", "cpu": "EPYC", "parameters": 2.0e6, "tokens": 5e6, "sequence_length": 256}


def record(run_id, **features):
    return RunRecord(run_id, "p", features={"tokens_per_second": 1e4, **ASKED, **features})


def test_the_same_run_is_nearest_and_its_reasons_say_why():
    past = [record("20260101-a", parameters=2e9), record("20260102-b"), record("20260103-c", family="gpt2")]
    found = nearest(ASKED, 3, past)
    assert [n.run_id for n in found] == ["20260102-b", "20260103-c", "20260101-a"]
    assert found[0].distance == 0
    assert "same family: llama" in found[0].reasons
    assert found[1].distance == pytest.approx(math.sqrt(1 / len(ASKED)))
    assert found[1].reasons[-1] == "family gpt2, asked llama"
    assert "×1e+03" in found[2].reasons[-1]


def test_sizes_are_compared_by_factor_not_by_amount():
    half, plus = record("half", parameters=1e6), record("plus", parameters=4e6)
    other = record("far", parameters=2e8)
    by_id = {n.run_id: n.distance for n in nearest(ASKED, 3, [half, plus, other])}
    assert by_id["half"] == pytest.approx(by_id["plus"])
    assert by_id["far"] > 3 * by_id["half"]


def test_equal_distance_goes_to_the_newest_and_k_is_respected():
    found = nearest(ASKED, 2, [record(f"2026010{day}-x") for day in (1, 3, 2)])
    assert [n.run_id for n in found] == ["20260103-x", "20260102-x"]
    assert nearest(ASKED, 0, [record("a")]) == []


def test_missing_and_impossible_values_are_kept_marked_and_never_guessed_from():
    lacking = RunRecord("20260101-lacking", "p", features={k: v for k, v in ASKED.items() if k != "tokens"})
    absurd = record("20260102-absurd", tokens_per_second=1e12)
    negative = record("20260103-negative", parameters=-5.0)
    good = record("20260104-good", parameters=4e6)
    found = {n.run_id: n for n in nearest(ASKED, 9, [lacking, absurd, negative, good, RunRecord("20260105-empty", "p")])}
    assert set(found) == {"20260101-lacking", "20260102-absurd", "20260103-negative", "20260104-good"}
    assert found["20260101-lacking"].doubts == ("tokens is missing",)
    assert "more than any machine" in found["20260102-absurd"].doubts[0]
    assert found["20260103-negative"].doubts == ("parameters = -5 is not positive",)
    guess = guess_throughput(ASKED, [lacking, absurd, negative, good])
    assert guess is not None
    assert guess.runs == ("20260104-good",)
    assert guess.value == pytest.approx(2e4)  # half the parameters of that run: twice its rate


def test_no_guess_from_another_machine():
    assert guess_throughput(ASKED, [record("a", cpu="M3")]) is None
    guess = guess_throughput(ASKED, [record("a", cpu="M3"), record("b"), record("c", tokens_per_second=3e4)])
    assert guess is not None
    assert (guess.low, guess.value, guess.high) == (1e4, 2e4, 3e4)


def test_not_a_number_is_doubted():
    assert doubts({"dev_loss": math.nan, "parameters": 0.0, "family": "x"}) == (
        "dev_loss = nan is not a number",
        "parameters = 0 is not positive",
    )


def test_records_come_from_the_run_book(tmp_path):
    book = RunBook(tmp_path)
    for index, parameters in enumerate((1e6, 2e6, 3e7)):
        book.save(record(f"2026010{index}-aa", parameters=parameters))
    assert [n.run_id for n in nearest(ASKED, 1, book.all())] == ["20260101-aa"]


def test_the_guess_follows_what_this_machine_does_between_its_runs():
    """Rates that fall more slowly than 1 / parameters, and by depth: a law alone would miss them by a half."""

    def rate(parameters, depth):
        return 1e8 * parameters**-0.5 / depth

    sizes = [(1e6 * 2**i, depth) for i in range(6) for depth in (2, 4, 8)]
    past = [record(f"2026{n:04d}-a", parameters=p, depth=d, tokens_per_second=rate(p, d)) for n, (p, d) in enumerate(sizes)]
    asked = {**ASKED, "parameters": 6e6, "depth": 6}
    guess = guess_throughput(asked, past)
    assert guess is not None
    assert guess.value == pytest.approx(rate(6e6, 6), rel=0.05)
