"""The recipe: what a text becomes, and that every byte of it leads back to the bytes it came from."""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_toy import files, ingest, jsonl, table, texts

from pipeline_lib.corpus import kernels
from pipeline_lib.corpus.changes import Changes, original, then
from pipeline_lib.corpus.normalise import Recipe, normalise
from pipeline_lib.tables.buffers import text_buffers

SINGLE = "ab é\n\r\t\x00\x07\x0b\x0c\x1b\x7f\x85\x9f\xa0\ufeff\u212bﬁ한🙂…"
PIECES = [*SINGLE, "e\u0301", "\u1112\u1161\u11ab", "\r\n", "a.b@c.de", "10.0.0.1", " "]
TEXTS = st.lists(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), min_size=1, max_size=6)
EVERYTHING = ("email", "ip", "phone", "key")


def cleaned(text: str) -> str:
    text = re.sub("\r\n|[\r\x0b\x0c]", "\n", text)
    return re.sub("[\x00-\x08\x0e-\x1f\x7f\x80-\x9f\ufeff]", "", text)


PLAIN = Recipe()


def made(texts: list[str], recipe: Recipe = PLAIN) -> tuple[list[str], list[pa.Table]]:
    """What texts become, and the edits of each."""
    column = pa.array([text.encode() for text in texts], pa.large_binary())
    flags, bad_at = np.empty(len(texts), np.uint8), np.empty(len(texts), np.int64)
    kernels.inspect(*text_buffers(column), flags, bad_at)
    ids = pa.array([bytes([i] * 16) for i in range(len(texts))], pa.binary(16))
    got, edits = normalise(column, ids, flags, recipe)
    return got.to_pylist(), [edits.filter(pa.compute.equal(edits["doc_id"], i)) for i in ids]


@settings(max_examples=80, deadline=None)
@given(TEXTS)
def test_normalisation_is_what_plain_python_says(texts: list[str]) -> None:
    got, edits = made(texts)
    assert got == [unicodedata.normalize("NFC", cleaned(text)) for text in texts]
    assert [bool(len(rows)) for rows in edits] == [now != text for now, text in zip(got, texts, strict=True)]


def replayed(text: bytes, rows: list[tuple[int, int, int]], now: bytes) -> bytes:
    """The text of today made again: untouched bytes from the original, changed ones from today's text."""
    out, at = b"", 0
    for start, end, length in rows:
        out += text[at:start]
        out += now[len(out) : len(out) + length]
        at = end
    return out + text[at:]


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_edits_tell_every_change(texts: list[str]) -> None:
    got, edits = made(texts, Recipe(redact=EVERYTHING))
    for text, now, found in zip(texts, got, edits, strict=True):
        rows = list(zip(*(found.column(name).to_pylist() for name in ("start", "end", "length")), strict=True))
        assert rows == sorted(rows)
        assert all(end <= after for (_, end, _), (after, _, _) in pairwise(rows))
        assert replayed(text.encode(), rows, now.encode()) == now.encode()
        for place in range(len(now.encode())):
            start, end = original(place, found)
            if not any(a <= start and end <= b for a, b, _ in rows):
                assert text.encode()[start:end] == now.encode()[place : place + 1]


def hunks(size: int) -> st.SearchStrategy[list[tuple[int, int, int]]]:
    """Changes of a text of `size` bytes."""
    cuts = st.lists(st.integers(0, size), max_size=8, unique=True).map(sorted)
    pairs = cuts.map(lambda c: list(zip(c[::2], c[1::2], strict=False)))
    return pairs.flatmap(
        lambda p: st.tuples(*[st.integers(0, 4)] * len(p)).map(lambda n: [(a, b, m) for (a, b), m in zip(p, n, strict=True)])
    )


def changes(rows: list[tuple[int, int, int]]) -> Changes:
    numbers = np.array(rows, np.int64).reshape(-1, 3)
    return Changes(np.zeros(len(rows), np.int64), *numbers.T.copy(), np.zeros(len(rows), np.uint8))


def applied(text: str, rows: list[tuple[int, int, int]], fill: str) -> str:
    out, at = "", 0
    for start, end, length in rows:
        out, at = out + text[at:start] + fill * length, end
    return out + text[at:]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_two_steps_are_as_good_as_one(data: st.DataObject) -> None:
    text = "".join(chr(0x4E00 + n) for n in range(20))
    first = data.draw(hunks(20))
    middle = applied(text, first, "+")
    second = data.draw(hunks(len(middle)))
    last = applied(middle, second, "-")
    both = then(changes(first), changes(second))
    rows = list(zip(both.start.tolist(), both.end.tolist(), both.length.tolist(), strict=True))
    assert applied(text, rows, "?") == "".join("?" if char in "+-" else char for char in last)


PERSONAL = [
    ("mail a.b+c@mail.example.org now", "mail [email] now"), ("<x@y.info>, z", "<[email]>, z"), ("end x@y.de.", "end [email]."),
    ("not a@b", "not a@b"), ("not @b.de", "not @b.de"), ("a@b.c1", "a@b.c1"), ("two@x.de,three@y.de", "[email],[email]"),
    ("at 192.168.0.1:80 up", "at [ip]:80 up"), ("1.2.3.4", "[ip]"), ("256.1.1.1", "256.1.1.1"), ("1.2.3.4.5", "1.2.3.4.5"),
    ("version 1.2.3", "version 1.2.3"), ("x1.2.3.4", "x1.2.3.4"), ("fe80::1:2:3 there", "[ip] there"),
    ("2001:db8:0:0:0:0:0:1", "[ip]"), ("std::vector", "std::vector"), ("a::b", "a::b"), ("12:34:56", "12:34:56"),
    ("dead::beef::cafe", "dead::beef::cafe"), ("call +49 30 1234567 now", "call [phone] now"), ("+1 (212) 555-0100", "[phone]"),
    ("(212) 555-0100", "[phone]"), ("212-555-0100", "[phone]"), ("212.555.0100", "[phone]"), ("112-555-0100", "112-555-0100"),
    ("2+3", "2+3"), ("+1234567", "+1234567"), ("+1234567890123456", "+1234567890123456"), ("2024-05-06", "2024-05-06"),
    ("1-212-555-0100-9", "1-212-555-0100-9"), ("212-555-0100@x.de", "[email]"), ("id AKIAIOSFODNN7EXAMPLE end", "id [key] end"),
    ("ghp_" + "a1" * 18, "[key]"), ("sk-" + "a" * 40 + ".", "[key]."), ("sk-ip", "sk-ip"), ("task-force " * 4, "task-force " * 4),
    ("eyJhbGciOiJIUzI1NiJ9." + "e30" * 20 + ".c2ln", "[key]"), ("xAKIAIOSFODNN7EXAMPLE", "xAKIAIOSFODNN7EXAMPLE"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----\nrest", "[key]\nrest"),
    ("-----BEGIN CERTIFICATE-----\nMII\n", "-----BEGIN CERTIFICATE-----\nMII\n"), ("日本 a@b.jp 語", "日本 [email] 語"), ("", ""),
]  # fmt: skip


@pytest.mark.parametrize(("text", "now"), PERSONAL)
def test_personal_data_goes_and_the_rest_stays(text: str, now: str) -> None:
    assert made([text], Recipe(redact=EVERYTHING))[0] == [now]


def test_only_what_is_asked_for_goes() -> None:
    text = "a@b.de 1.2.3.4 212-555-0100 AKIAIOSFODNN7EXAMPLE"
    for kind in EVERYTHING:
        (now,), (edits,) = made([text], Recipe(redact=(kind,)))
        assert now.count("[") == 1
        assert f"[{kind}]" in now
        assert edits["kind"].to_pylist() == [kind]


def test_mojibake_is_repaired_line_by_line() -> None:
    pytest.importorskip("ftfy")
    scrambled = "naïve café".encode().decode("latin-1")
    (now, plain), (edits, none) = made([f"one\n{scrambled}\r\nthree", "naïve"], Recipe(mojibake=True))
    assert now == "one\nnaïve café\nthree"
    assert plain == "naïve"
    assert not len(none)
    assert set(edits["kind"].to_pylist()) == {"mojibake", "line_ends"}


def test_a_run_counts_what_it_changed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": "one\r\ntwo\r\n"}, {"text": "mail x@y.de or z@y.de"}, {"text": "e\u0301"}))
    result = ingest(tmp_path / "w", files(tmp_path / "a.jsonl"), redact=["email"])
    assert texts(result) == ["one\ntwo\n", "mail [email] or [email]", "é"]
    assert result.manifest.details["recipe"] == {"version": 2, "edits": {"line_ends": 2, "nfc": 1, "email": 2}}
    ids = dict(zip(texts(result), table(result, "documents")["doc_id"].to_pylist(), strict=True))
    edits = table(result, "edits")
    mine = edits.filter(pa.compute.equal(edits["doc_id"], ids["mail [email] or [email]"]))
    assert original("mail [email] or [email]".index(" or"), mine) == (11, 12)
    assert original(6, mine) == (5, 11)
    assert ingest(tmp_path / "w", files(tmp_path / "a.jsonl")).key != result.key
