from __future__ import annotations

import datetime as dt
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_lib.corpus import kernels
from pipeline_lib.corpus.documents import dates, normalise, text_hashes
from pipeline_lib.corpus.redact import head
from pipeline_lib.tables.buffers import text_buffers

SINGLE = "ab é\n\r\t\x00\x07\x0b\x0c\x1b\x7f\x85\x9f\xa0\ufeff\u212bﬁ한🙂…"
ALPHABET = st.sampled_from([*SINGLE, "e\u0301", "\u1112\u1161\u11ab", "\r\n"])
TEXTS = st.lists(st.lists(ALPHABET, max_size=12).map("".join), min_size=1, max_size=6)


def mended(text: str) -> str:
    text = re.sub("\r\n|[\r\x0b\x0c]", "\n", text)
    text = re.sub("[\x00-\x08\x0e-\x1f\x7f\x80-\x9f\ufeff]", "", text)
    return unicodedata.normalize("NFC", text)


def flags_of(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    data, offsets = text_buffers(column)
    flags, bad_at = np.empty(len(column), np.uint8), np.empty(len(column), np.int64)
    kernels.inspect(data, offsets, flags, bad_at)
    return flags, bad_at


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_normalisation_is_what_plain_python_says(texts: list[str]) -> None:
    column = pa.array([text.encode() for text in texts], pa.large_binary())
    ids = pa.array([bytes([i] * 16) for i in range(len(texts))], pa.binary(16))
    got, edits = normalise(column, ids, flags_of(column)[0])
    assert got.to_pylist() == [mended(text) for text in texts]
    changed = {row["doc_id"][0] for row in edits.to_pylist()}
    assert changed == {i for i, text in enumerate(texts) if mended(text) != text}
    for row in edits.to_pylist():
        raw = texts[row["doc_id"][0]].encode()
        piece = raw[row["start"] : row["end"]].decode()
        assert mended(piece) != piece
        if row["kind"] == "line_ends":
            assert not re.search("[\r\x0b\x0c]", (raw[: row["start"]] + raw[row["end"] :]).decode())


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
        ("2024-13-01", None), ("yesterday", None), ("", None), (None, None), ("12345", None), ("05/06/2024", None),
    ],
)  # fmt: skip
def test_dates(told: str | None, day: str | None) -> None:
    (got,) = dates(pa.array([told], pa.string())).to_pylist()
    assert got == (dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC) if day else None)


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
