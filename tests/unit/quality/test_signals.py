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
from score_toy import reference, signal, signals

from pipeline_lib.quality import signals as signals_module
from pipeline_lib.quality.kernels import COLUMNS, measure
from pipeline_lib.quality.signals import NAMES, SIGNALS
from pipeline_lib.tables.buffers import text_buffers

PIECES = [
    *"abcdT.!?#-*{}();:=0123456789 \n\t'\"", "\n\n", " the ", " and ", " of ", "...", "…", "....", "é", "中", "。", "🙂", "×",
    "\u00a0", "\u3000", "•", "”", "‘", "–", " lorem ipsum ", "Lorem Ipsum", "a b c d e f g h i j k ", "x = f()\n", "if (a):\n",
    "same line again and again\n",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(PIECES), max_size=60).map("".join)


@settings(max_examples=400, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=4))
def test_signals_are_what_plain_python_says(texts: list[str]) -> None:
    got = signals(*texts).to_pylist()
    for text, row in zip(texts, got, strict=True):
        expected = reference(text)
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-12)


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
    data, offsets = text_buffers(column[1:3])
    part = np.empty((2, len(COLUMNS)))
    measure(data, offsets, part)
    whole = np.empty((4, len(COLUMNS)))
    measure(*text_buffers(column), whole)
    assert np.array_equal(part, whole[1:3])


@pytest.mark.parametrize(
    "text",
    ["the quick brown fox jumps over the lazy dog. " * 40, string.printable * 3, Path(signals_module.__file__).read_text(),
     "".join(map(chr, np.random.default_rng(0).integers(33, 126, 5000)))],
)  # fmt: skip
def test_compression_is_near_that_of_lz4(text: str) -> None:
    real = len(lz4.block.compress(text.encode(), store_size=False)) / len(text.encode())
    assert signal(text, "compression_ratio") == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize(
    ("text", "emails", "addresses"),
    [
        ("write to jane.doe+x@mail.example.org.", 1, 0), ("a@b", 0, 0), ("@home @work.example", 0, 0), ("x@y.z1 a@b.cd", 1, 0),
        ("at 192.168.0.1.", 0, 1), ("1.2.3.4", 0, 1), ("1.2.3.4.5", 0, 0), ("256.1.1.1", 0, 0), ("v1.2.3.4", 0, 0),
        ("10.0.0.1:80 and 10.0.0.2", 0, 2), ("1.2.3", 0, 0), ("1234.1.1.1", 0, 0), ("1.2.3.4567", 0, 0),
        ("price 1.5 or 2,000.75", 0, 0),
    ],
)  # fmt: skip
def test_what_looks_like_an_address(text: str, emails: int, addresses: int) -> None:
    row = signals(text).to_pylist()[0]
    assert (row["emails"], row["ip_addresses"]) == (emails, addresses)


def test_estimated_tokens_and_quality() -> None:
    prose = Path(signals_module.__file__).with_name("README.md").read_text()
    sizes = signals("abcdefgh", "a", prose).to_pylist()
    assert [row["est_tokens"] for row in sizes] == [2, 1, round(len(prose) / 4)]
    good = signal("The mill stands by the river, and people have to come with grain that will be ground. " * 3, "quality")
    shouting = signal("BUY NOW " * 100, "quality")
    noise = signal("".join(map(chr, np.random.default_rng(0).integers(33, 126, 900))), "quality")
    assert 0 <= max(noise, shouting) < 0.5
    assert 0.75 < good <= 1
    assert signal("\n \n", "quality") == 0


def test_the_page_lists_every_signal() -> None:
    page = Path(signals_module.__file__).with_name("README.md").read_text()
    rows = re.findall(r"(?m)^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", page)
    assert [row[0] for row in rows] == list(NAMES)
    assert rows == [(s.name, s.range, s.unit, s.meaning, s.source) for s in SIGNALS]
