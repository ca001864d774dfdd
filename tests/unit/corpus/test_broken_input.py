"""Broken input of every kind: nothing is lost, nothing is invented, and what is good goes on."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingest_toy import files, ingest, jsonl, reasons, table, texts

ONE, TWO = {"text": "first good text"}, {"text": "second good text"}
GOOD = ["first good text", "second good text"]
CUT = "compressed file is cut or damaged"
BROKEN, NOT_OBJECT, NO_TEXT, NOT_TEXT = "broken JSON", "not a JSON object", "no text", "text is not a string"
LONG, NOT_UTF8, EMPTY, BOMB = (
    "longer than max_document_mb",
    "not UTF-8",
    "empty text",
    "expands beyond max_expansion or max_file_gb",
)
COLUMNS, QUOTE = "wrong number of columns", "a quote is not closed"
FILE, GROUP = "file cannot be read", "part of the file cannot be read"
WARC, PAGE = "broken WARC record", "not a page of text"


def arrow_codec(name: str, data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, name) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def around(line: bytes) -> bytes:
    """A line between two good ones."""
    return jsonl(ONE) + line + b"\n" + jsonl(TWO)


def parquet(*tables: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, tables[0].schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
        for one in tables:
            writer.write_table(one)
    return sink.getvalue()


def arrow(*batches: pa.RecordBatch, file: bool = True) -> bytes:
    sink = io.BytesIO()
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(sink, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


def hit(data: bytes, mark: bytes, by: bytes) -> bytes:
    """The first place of a mark overwritten."""
    at = data.index(mark)
    return data[:at] + by + data[at + len(by) :]


def page(body: bytes, *, kind: str = "text/html", status: str = "200 OK", more: str = "", length: int | None = None) -> bytes:
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}\r\n".encode() + body
    size = len(http) if length is None else length
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: {size}\r\n"
        "WARC-Target-URI: http://a.b/c\r\nWARC-Date: 2024-05-06T07:08:09Z"
    )
    return head.encode() + b"\r\n\r\n" + http + b"\r\n\r\n"


def plain_page(text: str) -> bytes:
    return page(text.encode(), kind="text/plain")


def words(*texts: str) -> pa.Table:
    return pa.table({"text": list(texts)})


def batch(*texts: str) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"text": list(texts)})


WARCS = [plain_page(text) for text in GOOD]
ROWS = b'text,id\n"first good text",1\n'
LAST = b"second good text,2\n"
DEEP = b'{"text":' + b"[" * 50_000 + b"]" * 50_000 + b"}"


@dataclass
class Case:
    name: str
    data: bytes | Callable[[Path], Any]  # bytes of the file, or what makes the files
    found: dict[str, int]
    good: list[str] = field(default_factory=lambda: GOOD)
    source: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


def folder(**made: bytes) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        for name, data in made.items():
            (place / name.replace("_", ".")).write_bytes(data)

    return make


def loop(place: Path) -> None:
    (place / "a.jsonl").write_bytes(jsonl(ONE, TWO))
    (place / "round").symlink_to(place)


def dangling(place: Path) -> None:
    (place / "a.jsonl").write_bytes(jsonl(ONE, TWO))
    (place / "b.jsonl").symlink_to(place / "nowhere.jsonl")


def bomb(size: int) -> bytes:
    return jsonl(ONE) + b'{"text": "' + b"x" * size + b'"}\n' + jsonl(TWO)


MB = 1_000_000
# ruff: noqa: E501 - a table
CASES = [
    # JSON lines
    Case("cut-object.jsonl", around(b'{"text": "broken'), {BROKEN: 1}),
    Case("single-quotes.jsonl", around(b"{'text': 'no JSON'}"), {BROKEN: 1}),
    Case("trailing-comma.jsonl", around(b'{"text": "x",}'), {BROKEN: 1}),
    Case("two-on-a-line.jsonl", around(b'{"text": "a"} {"text": "b"}'), {BROKEN: 1}),
    Case("no-quotes.jsonl", around(b"{text: x}"), {BROKEN: 1}),
    Case("raw-control.jsonl", around(b'{"text": "a\x01b"}'), {BROKEN: 1}),
    Case("raw-nul.jsonl", around(b'{"text": "a\x00b"}'), {BROKEN: 1}),
    Case("bad-escape.jsonl", around(b'{"text": "\\x41"}'), {BROKEN: 1}),
    Case("half-escape.jsonl", around(b'{"text": "\\u12"}'), {BROKEN: 1}),
    Case("only-nuls.jsonl", around(b"\x00\x00\x00"), {BROKEN: 1}),
    Case("bare-word.jsonl", around(b"oops"), {BROKEN: 1}),
    Case("array-line.jsonl", around(b'["text"]'), {NOT_OBJECT: 1}),
    Case("number-line.jsonl", around(b"17"), {NOT_OBJECT: 1}),
    Case("null-line.jsonl", around(b"null"), {NOT_OBJECT: 1}),
    Case("string-line.jsonl", around(b'"text"'), {NOT_OBJECT: 1}),
    Case("missing-text.jsonl", around(b'{"id": "x"}'), {NO_TEXT: 1}),
    Case("null-text.jsonl", around(b'{"text": null}'), {NO_TEXT: 1}),
    Case("number-text.jsonl", around(b'{"text": 7}'), {NOT_TEXT: 1}),
    Case("list-text.jsonl", around(b'{"text": ["a", "b"]}'), {NOT_TEXT: 1}),
    Case("object-text.jsonl", around(b'{"text": {"a": 1}}'), {NOT_TEXT: 1}),
    Case("bool-text.jsonl", around(b'{"text": true}'), {NOT_TEXT: 1}),
    Case("empty-text.jsonl", around(b'{"text": ""}'), {EMPTY: 1}),
    Case("blank-text.jsonl", around(b'{"text": " \\t\\n "}'), {EMPTY: 1}),
    Case("only-controls.jsonl", around(b'{"text": "\\u0000\\u0007\\ufeff"}'), {EMPTY: 1}),
    Case("lone-surrogate.jsonl", around(b'{"text": "\\ud800"}'), {"lone surrogate in a string": 1}),
    Case("latin-1.jsonl", around(b'{"text": "caf\xe9"}'), {NOT_UTF8: 1}),
    Case("overlong-utf8.jsonl", around(b'{"text": "\xc0\xaf"}'), {NOT_UTF8: 1}),
    Case("cut-utf8.jsonl", around(b'{"text": "\xe2\x82"}'), {NOT_UTF8: 1}),
    Case("utf8-surrogate.jsonl", around(b'{"text": "\xed\xa0\x80"}'), {NOT_UTF8: 1}),
    Case("too-deep.jsonl", around(DEEP), {BROKEN: 1}),
    Case("huge-number.jsonl", around(b'{"text": "third", "id": ' + b"9" * 5000 + b"}"), {BROKEN: 1}, source={"id_column": "id"}),
    Case("too-long.jsonl", around(jsonl({"text": "x" * 2 * MB}).strip()), {LONG: 1}),
    Case("endless-line.jsonl", around(b'{"text": "' + b"x" * 40 * MB + b'"}'), {LONG: 1}, more={"max_document_mb": 1}),
    Case("endless-last-line.jsonl", jsonl(ONE, TWO) + b"x" * 40 * MB, {LONG: 1}),
    Case("cut-at-the-end.jsonl", jsonl(ONE, TWO) + b'{"text": "cut', {BROKEN: 1}),
    Case("utf-16.jsonl", folder(a_jsonl=jsonl(ONE, TWO), b_jsonl='{"text": "wide"}'.encode("utf-16")), {NOT_UTF8: 1}),
    Case("the-same-id-twice.jsonl", jsonl({"text": "old", "id": "1"}, {**ONE, "id": "1"}, {**TWO, "id": "2"}),
         {"replaced by a later record": 1}, source={"id_column": "id"}),
    # other JSON
    Case("array.json", b'[{"text": "first good text"}, 5, {"text": null}, [1], {"text": "second good text"}]', {NOT_OBJECT: 2, NO_TEXT: 1}),
    Case("array-never-closed.json", b'[{"text": "first good text"}, {"text": "second good text"}, {"text": "cut', {BROKEN: 1}),
    Case("pretty.json", b'{\n "text":\n "first good text"\n}\n{\n "text": 1\n}\n{\n "text": "second good text"\n}\n', {NOT_TEXT: 1}),
    Case("endless-value.json", b'[{"text": "first good text"}, {"text": "second good text"}, {"text": "' + b"x" * 40 * MB, {LONG: 1}),
    # CSV and TSV
    Case("few-columns.csv", ROWS + b"only one\n" + LAST, {COLUMNS: 1}),
    Case("many-columns.csv", ROWS + b"a,b,c\n" + LAST, {COLUMNS: 1}),
    Case("carriage-returns.csv", folder(a_csv=ROWS + LAST, b_csv=b"text,id\rold Mac,1\rlines,2\r"), {FILE: 1}),
    Case("open-quote.csv", ROWS + b'"never closed,3\n' + LAST, {QUOTE: 1}),
    Case("latin-1.csv", ROWS + b"caf\xe9,3\n" + LAST, {NOT_UTF8: 1}),
    Case("nul.csv", ROWS + b"\x00,3\n" + LAST, {EMPTY: 1}),
    Case("empty-field.csv", ROWS + b",3\n" + LAST, {EMPTY: 1}),
    Case("too-long.csv", ROWS + b"x" * 2 * MB + b",3\n" + LAST, {LONG: 1}),
    Case("endless-row.csv", ROWS + b"x" * 40 * MB + b",3\n" + LAST, {LONG: 1}),
    Case("odd-quotes.csv", ROWS + b'"so "called" text",3\n' + LAST, {}, good=[GOOD[0], 'so called" text"', GOOD[1]]),
    Case("too-many-tabs.tsv", b"text\tid\nfirst good text\t1\na\tb\tc\nsecond good text\t2\n", {COLUMNS: 1}),
    # Parquet and Arrow
    Case("no-parquet.parquet", folder(a_jsonl=jsonl(ONE, TWO), b_parquet=b"PAR1 this is none PAR1"), {FILE: 1}),
    Case("cut.parquet", folder(a_jsonl=jsonl(ONE, TWO), b_parquet=parquet(words("x"))[:-9]), {FILE: 1}),
    Case("broken-group.parquet", hit(parquet(words(GOOD[0]), words("x" * 99), words(GOOD[1])), b"x" * 99, b"\xff\xff\xff\xff"), {NOT_UTF8: 1}),
    Case("broken-page.parquet", lambda p: (p / "a.parquet").write_bytes(broken_page()), {GROUP: 1}),
    Case("null-text.parquet", parquet(pa.table({"text": [GOOD[0], None, "", GOOD[1]]})), {NO_TEXT: 1, EMPTY: 1}),
    Case("number-text.parquet", folder(a_jsonl=jsonl(ONE, TWO), b_parquet=parquet(pa.table({"text": [1, 2]}))), {NOT_TEXT: 2}),
    Case("bytes-text.parquet", parquet(pa.table({"text": [GOOD[0].encode(), b"\xff", GOOD[1].encode()]})), {NOT_UTF8: 1}),
    Case("no-arrow.arrow", folder(a_jsonl=jsonl(ONE, TWO), b_arrow=b"ARROW1\x00\x00 this is none ARROW1"), {FILE: 1}),
    Case("three-broken-rows.parquet", lambda p: (p / "a.parquet").write_bytes(broken_pages()), {GROUP: 3}, GOOD[:1]),
    Case("wild-offsets.arrow", lambda p: (p / "a.arrow").write_bytes(wild_offsets()), {GROUP: 1}),
    Case("cut-stream.arrow", arrow(batch(*GOOD), batch("x" * 999), file=False)[:-500], {GROUP: 1}),
    # text
    Case("latin-1.txt", folder(a_txt=GOOD[0].encode(), b_txt=GOOD[1].encode(), c_txt=b"caf\xe9"), {NOT_UTF8: 1}),
    Case("utf-16.txt", folder(a_txt=GOOD[0].encode(), b_txt=GOOD[1].encode(), c_txt="wide".encode("utf-16")), {NOT_UTF8: 1}),
    Case("binary.txt", folder(a_txt=GOOD[0].encode(), b_txt=GOOD[1].encode(), c_txt=bytes(range(256))), {NOT_UTF8: 1}),
    Case("only-nuls.md", folder(a_txt=GOOD[0].encode(), b_txt=GOOD[1].encode(), c_md=b"\x00" * 99), {EMPTY: 1}),
    Case("too-long.txt", folder(a_txt=GOOD[0].encode(), b_txt=GOOD[1].encode(), c_txt=b"x" * 30 * MB), {LONG: 1}),
    Case("bad-paragraph.txt", b"first good text\n\ncaf\xe9\n\nsecond good text\n", {NOT_UTF8: 1}, source={"split_text": "blank_lines"}),
    Case("endless-paragraph.txt", b"first good text\n\nsecond good text\n\n" + b"x" * 30 * MB, {LONG: 1}, source={"split_text": "blank_lines"}),
    Case("empty.txt", folder(a_txt=GOOD[0].encode(), b_txt=GOOD[1].encode(), c_txt=b""), {"empty file": 1}),
    Case("empty.jsonl", folder(a_jsonl=jsonl(ONE, TWO), b_jsonl=b""), {"empty file": 1}),
    # pages
    Case("no-text.html", folder(a_jsonl=jsonl(ONE, TWO), b_html=b"<html><script>alert(1)</script></html>"), {EMPTY: 1}),
    Case("nul.html", folder(a_jsonl=jsonl(ONE, TWO), b_html=b"\x00" * 50), {EMPTY: 1}),
    Case("rubbish-between.warc", WARCS[0] + b"rubbish\r\n\r\n" + WARCS[1], {WARC: 1}),
    Case("no-length.warc", WARCS[0] + b"WARC/1.0\r\nWARC-Type: response\r\n\r\n" + WARCS[1], {WARC: 1}),
    Case("wild-length.warc", WARCS[0] + page(b"x", length=10**12) + WARCS[1], {WARC: 1}, more={"max_document_mb": 10}),
    Case("cut.warc", WARCS[0] + WARCS[1] + plain_page("cut off")[:-9], {WARC: 1}),
    Case("picture.warc", WARCS[0] + page(b"\x89PNG", kind="image/png") + WARCS[1], {PAGE: 1}),
    Case("not-found.warc", WARCS[0] + page(b"<p>gone</p>", status="404 Not Found") + WARCS[1], {PAGE: 1}),
    Case("bad-encoding.warc", WARCS[0] + page(b"no gzip", more="Content-Encoding: gzip\r\n") + WARCS[1], {WARC: 1}),
    Case("page-bomb.warc", WARCS[0] + page(gzip.compress(b"x" * 30 * MB), more="Content-Encoding: gzip\r\n") + WARCS[1], {LONG: 1}),
    Case("empty-page.warc", WARCS[0] + page(b"<html></html>") + WARCS[1], {EMPTY: 1}),
    # compression
    Case("cut.gz.jsonl", gzip.compress(jsonl(ONE, TWO))[:-12], {CUT: 1}, good=GOOD[:1]),
    Case("checksum.gz.jsonl", folder(a_jsonl=jsonl(ONE, TWO), b_jsonl=gzip.compress(jsonl(ONE))[:-8] + b"\x00" * 8), {CUT: 1}),
    Case("rubbish-behind.gz.jsonl", gzip.compress(jsonl(ONE, TWO)) + b"rubbish", {CUT: 1}),
    Case("cut.bz2.jsonl", folder(a_jsonl=jsonl(ONE), b_jsonl=bz2.compress(jsonl(TWO))[:-5]), {CUT: 1}),
    Case("cut.xz.jsonl", lzma.compress(jsonl(ONE, TWO))[:-12], {CUT: 1}),
    Case("cut.zst.jsonl", folder(a_jsonl=jsonl(ONE, TWO), b_jsonl=arrow_codec("zstd", jsonl(ONE))[:-5]), {CUT: 1}),
    Case("cut.lz4.jsonl", arrow_codec("lz4", jsonl(ONE, TWO))[:-2], {CUT: 1}),
    Case("cut.gz.txt", folder(a_txt=GOOD[0].encode(), b_txt=GOOD[1].encode(), c_txt=gzip.compress(b"cut off" * 99)[:-9]), {CUT: 1}),
    Case("bomb.gz.jsonl", gzip.compress(jsonl(ONE, TWO) + b"\n" * 70 * MB), {BOMB: 1}),
    Case("bomb.zst.jsonl", arrow_codec("zstd", jsonl(ONE, TWO) + b"\n" * 70 * MB), {BOMB: 1}),
    Case("absolute-cap.gz.jsonl", gzip.compress(jsonl(ONE, TWO) + b"\n" * 3 * MB), {BOMB: 1}, more={"max_file_gb": 0.002}),
    # folders
    Case("directory-loop", loop, {"link, not followed": 1}),
    Case("dangling-link", dangling, {"link, not followed": 1}),
]  # fmt: skip


def broken_page() -> bytes:
    """Three row groups; the header of the second's page is nonsense."""
    data = parquet(words(GOOD[0]), words("y" * 40), words(GOOD[1]))
    at = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0).data_page_offset
    return data[:at] + b"\xff" * 8 + data[at + 8 :]


def broken_pages() -> bytes:
    """Two row groups, of which the second holds three rows that cannot be read."""
    data = parquet(words(GOOD[0]), words("y" * 40, "z" * 40, "x" * 40))
    at = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(1).column(0).data_page_offset
    return data[:at] + b"\xff" * 8 + data[at + 8 :]


def wild_offsets() -> bytes:
    """Three batches; the offsets of the second go beyond its bytes and back."""
    data = arrow(batch(GOOD[0]), batch("y" * 39, "z" * 5), batch(GOOD[1]))
    return hit(data, struct.pack("<iii", 0, 39, 44), struct.pack("<iii", 0, 60, 44))


def test_there_are_at_least_sixty_kinds() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_broken_is_counted_and_the_rest_goes_on(tmp_path: Path, case: Case) -> None:
    if case.name.endswith((".html", ".warc")):
        pytest.importorskip("resiliparse")
    data = tmp_path / "data"
    data.mkdir()
    if callable(case.data):
        case.data(data)
    else:
        (data / f"a{Path(case.name).suffix}").write_bytes(case.data)
    made = ingest(
        tmp_path / "w", files(data, max_mb=1000, **case.source), **{"max_document_mb": 0.5, "quarantine_limit": 1.0, **case.more}
    )
    assert texts(made) == case.good
    assert reasons(made) == Counter(case.found)
    counts = made.manifest.counts
    assert counts["in"] == counts["out"] == len(case.good) + sum(case.found.values())
    for row in table(made, "quarantine").to_pylist():
        assert row["position"].startswith(("a", "b", "c", "round"))
        assert len(row["head"]) <= 200
    assert json.dumps(made.manifest.details)
