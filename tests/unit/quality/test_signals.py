from __future__ import annotations

import re
import string
from pathlib import Path

import lz4.block
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_toy import PLAIN, reference, signal, signals, words_of

from pipeline_lib.quality import signals as signals_module
from pipeline_lib.quality.language import model_file
from pipeline_lib.quality.rule_kernel import COLUMNS, measure_rules
from pipeline_lib.quality.signals import NAMES, SIGNALS
from pipeline_lib.tables.buffers import text_buffers

PIECES = [
    *"abcdT.!?#-*{}();:=+/@$%_<>,&0123456789 \n\t'\"", "\n\n", " the ", " and ", " of ", "...", "…", "....", "é", "中文", "。",
    "🙂",     "×", "\u00a0", "\u3000", "•", "”", "‘", "’", "–", "—", "--", " lorem ipsum ", "Lorem Ipsum",
    "a b c d e f g h i j k ",
    "x = f()\n", "if (a):\n", "same line again and again.\n", " don't ", " can't've", " I'm", " cannot ", "Mr.", "e.g.", " U.S.",
    "10km", "5pm", "$5.00", " http://a.example.org/x-y?z=1 ", " me@b.example ", "state-of-the-art", "end.Next", "a/b",
    " javascript ", "Privacy policy ", "the terms of use ", "[12]", "[edit]",
    "\n\nOne more time, as before.\n\n", "She said so. ", "who's", "שלום ", "مرحبا؟ ",
    "नमस्ते दुनिया। ", "สวัสดี", "e\u0301", "👩‍👩‍👧", "II.", "x²",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_signals_are_what_plain_python_says(texts: list[str]) -> None:
    got = signals(*texts).to_pylist()
    for text, row in zip(texts, got, strict=True):
        expected = reference(text)
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "first one\n\nagain, again\n\nagain, again",  # the last paragraph repeats an inner one, the first one repeats below
        "again, again\n\nother\n\nagain, again\n\nlast one",
        "  again\n\nagain\n\nagain  \n",
        "\n\n".join(f"line {i % 40}\nline {i % 60} follows" for i in range(300)),  # many lines and paragraphs in one table
        "\n".join(f"    step_{i % 97}(value)\n" if i % 5 else "" for i in range(1500)),
    ],
)
def test_repeated_lines_and_paragraphs_are_all_found(text: str) -> None:
    expected = {name: value for name, value in reference(text).items() if name.startswith("duplicate_")}
    got = signals(text).to_pylist()[0]
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop, Mr. O'Neil's here (10km away).", "Do n't stop , Mr. O'Neil 's here ( 10 km away ) ."),
        ("see https://a.example.org/x-y, or me@b.example.", "see https://a.example.org/x-y , or me@b.example ."),
        ("well-known a/b x=y 3-4 end.Next U.S. $5", "well - known a / b x = y 3 - 4 end . Next U.S. $ 5"),
        ("中文没有空格。 שלום עולם! 🙂🙂 é", "中文没有空格 。 שלום עולם ! 🙂 🙂 é"),
    ],
)
def test_words_are_split_as_spacy_does(text: str, words: str) -> None:
    assert words_of(text) == words.split()
    assert signals(text).column("words_and_marks").to_pylist() == [len(words.split())]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=300), st.integers(0, 3))
def test_ngrams_of_few_words(words: list[str], first: int) -> None:
    """Three different words make every n-gram repeat, which is where tables and shortcuts go wrong."""
    text = " ".join(words)
    got = signals("warm up " * first, text).to_pylist()[1]
    expected = reference(text)
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_a_view_into_a_larger_column_is_measured_alike() -> None:
    column = pa.array(["first text", "the second text, and more", "", "third"], pa.large_string())
    whole = measure_rules(*text_buffers(column))
    assert np.array_equal(measure_rules(*text_buffers(column[1:3])), whole[1:3])
    assert whole.shape == (4, len(COLUMNS))


@pytest.mark.parametrize(
    "text",
    ["the quick brown fox jumps over the lazy dog. " * 40, string.printable * 3, Path(signals_module.__file__).read_text(),
     "".join(map(chr, np.random.default_rng(0).integers(33, 126, 5000)))],
)  # fmt: skip
def test_compression_is_near_that_of_lz4(text: str) -> None:
    real = len(lz4.block.compress(text.encode(), store_size=False)) / len(text.encode())
    assert signal(text, "compression_ratio") == pytest.approx(real, rel=0.1)


def test_personal_data_is_counted() -> None:
    text = "write to jane@mail.example.org or +49 30 1234567 from 10.0.0.1, key AKIAABCDEFGHIJKLMNOP."
    rows = signals("nothing", text).select(["emails", "ip_addresses", "phone_numbers", "keys"]).to_pylist()
    assert [list(row.values()) for row in rows] == [[0, 0, 0, 0], [1, 1, 1, 1]]


def test_turns_of_instruction_records() -> None:
    turns = [{"role": "user", "start": 0, "end": 4}, {"role": "assistant", "start": 6, "end": 9}]
    found = signals("text", "Why?\n\nSo.", turns=[None, turns]).select(["turns", "prompt_bytes", "response_bytes"])
    assert [list(row.values()) for row in found.to_pylist()] == [[0, 0, 0], [2, 4, 3]]


def test_estimated_tokens_and_quality() -> None:
    prose = Path(signals_module.__file__).with_name("README.md").read_text()
    sizes = signals("abcdefgh", "a", prose).to_pylist()
    assert [row["est_tokens"] for row in sizes] == [2, 1, round(len(prose) / 4)]
    good = signal("The mill stands by the river, and people have to come with grain that will be ground. " * 3, "quality")
    shouting = signal("BUY NOW " * 100, "quality")
    noise = signal("".join(map(chr, np.random.default_rng(0).integers(33, 126, 900))), "quality")
    assert 0 <= max(noise, shouting) < 0.5
    assert 0.7 < good <= 1
    assert signal("\n \n", "quality") == 0


@pytest.mark.skipif(model_file() is None, reason="needs the extra `language`")
def test_order_is_judged_in_english_only() -> None:
    german = "Der Müller mahlt das Korn des ganzen Dorfes zwischen zwei schweren Steinen, noch ehe die Sonne aufgeht. " * 3
    likeness = signals(PLAIN, german).column("likeness").to_pylist()
    assert likeness[0] > 0.5
    assert likeness[1] == 0.5


def test_the_page_lists_every_signal() -> None:
    page = Path(signals_module.__file__).with_name("README.md").read_text()
    rows = re.findall(r"(?m)^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", page)
    assert [row[0] for row in rows] == list(NAMES)
    assert rows == [(s.name, s.range, s.unit, s.meaning.replace("|", "\\|"), s.source) for s in SIGNALS]
