from __future__ import annotations

import datetime as dt
import unicodedata
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.corpus import kernels
from pipeline_lib.corpus.dates import dates, file_date
from pipeline_lib.corpus.documents import text_hashes
from pipeline_lib.corpus.redact import head
from pipeline_lib.tables.buffers import text_buffers


def flags_of(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    data, offsets = text_buffers(column)
    flags, bad_at = np.empty(len(column), np.uint8), np.empty(len(column), np.int64)
    kernels.inspect(data, offsets, flags, bad_at)
    return flags, bad_at


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.text(
            st.sampled_from("aB \t\n\u00c4\u00e4\u0416\u0436\u0130\u1e9e\u212b\uff21\u65e5\U0001f642\U00010400"), max_size=12
        ),
        min_size=1,
        max_size=6,
    )
)
def test_folding_is_what_plain_python_says(texts: list[str]) -> None:
    def lower(char: str) -> str:
        low = char.lower()
        return low if len(low.encode()) == len(char.encode()) and char < "\U00010000" and len(low) == 1 else char

    column = pa.array(texts, pa.large_string())
    data, offsets = kernels.fold(*text_buffers(column))
    got = [data[a:b].tobytes().decode() for a, b in pairwise(offsets)]
    assert got == [" ".join("".join(map(lower, text)).split()) for text in texts]


NEARLY = st.sampled_from([b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\x80", b"\xf0\x9f\x99"])


def first_bad(value: bytes) -> int:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        return error.start
    return -1


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=8) | st.text(max_size=4).map(str.encode) | NEARLY, min_size=1, max_size=5))
def test_utf8_is_judged_as_python_judges_it(values: list[bytes]) -> None:
    flags, bad_at = flags_of(pa.array(values, pa.large_binary()))
    assert bad_at.tolist() == [first_bad(value) for value in values]
    assert [bool(flag & kernels.INVALID) for flag in flags] == [at >= 0 for at in bad_at]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(" \t\n\rabAB", max_size=12), min_size=2, max_size=6))
def test_equal_hashes_mean_equal_words(texts: list[str]) -> None:
    hashes = text_hashes(pa.array(texts, pa.large_string())).to_pylist()
    words = [" ".join(text.lower().split()) for text in texts]
    for i in range(len(texts)):
        for j in range(i):
            assert (hashes[i] == hashes[j]) == (words[i] == words[j])


@pytest.mark.parametrize(
    ("told", "day"),
    [
        ("2024-05-06", "2024-05-06"), ("2024-05-06T12:00:00+02:00", "2024-05-06"), ("2024-05-06 23:59:59", "2024-05-06"),
        ("2024-05", "2024-05-01"), ("1999", "1999-01-01"), ("1789-04-30", "1789-04-30"), ("2024-02-31", None),
        ("2024/05/06", "2024-05-06"), ("20240506", "2024-05-06"), ("2024.05.06", "2024-05-06"), ("1714953600", "2024-05-06"),
        ("1714953600123", "2024-05-06"), (" 2024 ", "2024-01-01"), ("2024-13-01", None), ("yesterday", None),
        ("", None), (None, None), ("12345", None), ("05/06/2024", None),
    ],
)  # fmt: skip
def test_dates(told: str | None, day: str | None) -> None:
    (got,) = dates(pa.array([told], pa.string())).to_pylist()
    assert got == (dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC) if day else None)


@pytest.mark.parametrize(
    ("name", "pattern", "day"),
    [
        ("a/news-20240506.jsonl", "news-%Y%m%d", "2024-05-06"), ("2024/05/x.txt", "%Y/%m/", "2024-05"),
        ("y1999.md", "y%Y", "1999"),
        ("notes.txt", "%Y", ""), ("06-05-2024.txt", "%d-%m-%Y", "2024-05-06"), ("a.b2024", "a.b%Y", "2024"),
        ("aXb2024", "a.b%Y", ""),
    ],
)  # fmt: skip
def test_dates_in_file_names(name: str, pattern: str, day: str) -> None:
    assert file_date(name, pattern) == day


QUIET = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@settings(max_examples=300, deadline=None)
@given(st.lists(QUIET, min_size=1, max_size=5))
def test_what_is_not_looked_at_again_is_composed(values: list[str]) -> None:
    flags, _ = flags_of(pa.array([value.encode() for value in values], pa.large_binary()))
    for value, flag in zip(values, flags, strict=True):
        if not flag & kernels.COMPOSE:
            assert unicodedata.is_normalized("NFC", value)


def test_most_text_is_not_looked_at_again() -> None:
    texts = [
        "plain",
        "caf\u00e9 \u2014 \u2018so\u2019",
        "\u65e5\u672c\u8a9e",
        "\ud55c\uad6d",
        "\u0420\u0443\u0441\u0441",
        "\U0001f642",
    ]
    assert not any(flag & kernels.COMPOSE for flag in flags_of(pa.array([t.encode() for t in texts], pa.large_binary()))[0])


@pytest.mark.parametrize(
    ("data", "hidden"),
    [
        (b"mail jane.doe+x@mail.example.org now", b"jane"), (b"key AKIAIOSFODNN7EXAMPLE99 end", b"AKIA"),
        (b'{"password": "hunter2"}', b"hunter2"), (b"x" * 190 + b" someone@example.org", b"someone@"),
        (b"token=abc123", b"abc123"),
    ],
)  # fmt: skip
def test_heads_are_redacted(data: bytes, hidden: bytes) -> None:
    assert hidden not in head(data)
    assert len(head(data)) <= 200


def test_heads_leave_ordinary_words() -> None:
    text = b"an internationalisation-committee-meeting at 12:30 in 2024"
    assert head(text) == text
