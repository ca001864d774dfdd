from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_toy import config, run, signals, table

from pipeline_lib.errors import ConfigError
from pipeline_lib.quality.fit import documents_by_decision, fit_model, texts_of
from pipeline_lib.quality.ngrams import BIGRAMS, STEPS, UNIGRAMS, fit_tables, likelihoods, ngram_model, shuffled
from pipeline_lib.tables.buffers import text_buffers
from pipeline_lib.workspace.workspace import Workspace

GOOD = [
    f"The {a} stands by the {b}, and people bring their grain to it." for a in ("mill", "barn", "inn") for b in ("river", "road")
]
BAD = [f"buy cheap {a} now click {b} best price {a} {b}" for a in ("pills", "watches", "shoes") for b in ("here", "today")]


def hashed(text: str) -> list[tuple[int, int]]:
    """Buckets of a text in plain Python: (unigram, bigram or −1)."""
    found, previous = [], 0
    small = bytes(byte | 0x20 if 0x41 <= byte <= 0x5A else byte for byte in text.encode())
    for word in re.findall(rb"[a-z0-9\x80-\xff]+", small):
        value = 0xCBF29CE484222325
        for byte in word:
            value = (value ^ byte) * 0x100000001B3 % 2**64
        value = (value ^ value >> 32) * 0x9E3779B97F4A7C15 % 2**64
        both = (previous ^ value) * 0x9E3779B97F4A7C15 % 2**64
        found.append((value >> 40 & UNIGRAMS - 1, both >> 40 & BIGRAMS - 1 if found else -1))
        previous = (value ^ value >> 29) * 0x100000001B3 % 2**64
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("abA 1é,中\n", max_size=30), min_size=1, max_size=4))
def test_likelihoods_are_what_plain_python_says(texts: list[str]) -> None:
    model = ngram_model("")
    got = likelihoods(*text_buffers(pa.array(texts, pa.large_string())), model)
    for row, text in enumerate(texts):
        buckets = hashed(text)
        for name, tables in (("reference", model.reference), ("reject", model.reject)):
            ones = [int(tables[one]) for one, _ in buckets]
            twos = [int(tables[UNIGRAMS + two]) for _, two in buckets if two >= 0]
            assert got[f"{name}_unigram_logp"][row] == pytest.approx(-sum(ones) / STEPS / len(ones) if ones else 0)
            assert got[f"{name}_bigram_logp"][row] == pytest.approx(-sum(twos) / STEPS / len(twos) if twos else 0)
        assert np.isnan(got["classifier"][row])


def test_tables_are_probabilities() -> None:
    bits = fit_tables(pa.array(GOOD, pa.large_string())).astype(float) / STEPS
    for part in (bits[:UNIGRAMS], bits[UNIGRAMS:]):
        assert np.exp2(-part).sum() == pytest.approx(1, abs=0.1)


def test_order_of_words_and_junk_are_less_likely() -> None:
    text = "It should be easy to see that this is a sentence of the kind that people write in documentation."
    likely, mixed, junk = signals(text, *shuffled([text]), " ".join(BAD)).to_pylist()
    gain = [row["reference_bigram_logp"] - row["reject_bigram_logp"] for row in (likely, mixed, junk)]
    assert gain[0] > max(gain[1:])
    assert likely["quality"] > mixed["quality"]


def test_a_fitted_model_knows_its_examples_and_measures_again(tmp_path: Path) -> None:
    fitted = fit_model(tmp_path / "own.npz", GOOD, BAD, GOOD)
    assert (fitted.reference, fitted.reject, fitted.good) == (6, 12, 6)
    assert (tmp_path / "own.npz").stat().st_size < 1_000_000
    model = ngram_model(str(tmp_path / "own.npz"))
    found = likelihoods(
        *text_buffers(pa.array(["The barn stands by the river.", "buy cheap shoes today"], pa.large_string())), model
    )
    assert found["classifier"][0] > 0.6
    assert found["classifier"][1] < 0.4
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "The mill stands by the road."}\n')
    plain = table(run(tmp_path / "w", config(tmp_path / "a.jsonl")), "signals")
    own = table(run(tmp_path / "w", config(tmp_path / "a.jsonl", ngram_model=str(tmp_path / "own.npz"))), "signals")
    assert plain[0]["classifier"] is None
    assert own[0]["classifier"] > 0.5
    assert fit_model(tmp_path / "same.npz", GOOD, BAD, GOOD) == fitted
    assert np.array_equal(ngram_model(str(tmp_path / "same.npz")).classifier, model.classifier)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"no zip")
    with pytest.raises(ConfigError, match="is no n-gram model"):
        ngram_model(str(tmp_path / "x.npz"))
    with pytest.raises(ConfigError, match="no text to fit on"):
        fit_model(tmp_path / "y.npz", [], BAD)


def test_texts_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one\u2028and\x85more"}\n\n{"text": " "}\n', "utf-8")
    (tmp_path / "b.txt").write_text("two\nlines")
    assert texts_of([tmp_path / "a.jsonl", tmp_path / "b.txt"]) == ["one\u2028and\x85more", "two\nlines"]
    (tmp_path / "a.jsonl").write_text("[]\n")
    with pytest.raises(ConfigError, match="no object"):
        texts_of([tmp_path / "a.jsonl"])


def test_documents_to_fit_on_come_from_the_domains_that_are_named(tmp_path: Path) -> None:
    rows = [("a", "kept well"), ("a", "no"), ("b", "kept too"), ("c", "no")]
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "domain": d, "text": t}) + "\n" for i, (d, t) in enumerate(rows))
    )
    settings = config(tmp_path / "a.jsonl", rules={"*": "none"}, extra_rules={"two": "words >= 2"})
    made = run(tmp_path / "w", settings)
    ingest = Workspace.open(tmp_path / "w").store.artifact(made.manifest.inputs["ingest"]["key"])
    assert documents_by_decision(ingest, made) == (["kept well", "kept too"], ["no", "no"])
    assert documents_by_decision(ingest, made, ["a"]) == (["kept well"], ["no"])
    assert documents_by_decision(ingest, made, ["b", "c"]) == (["kept too"], ["no"])
