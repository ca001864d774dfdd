"""Every format gives the same documents; large files are read in ranges; pages give their main text."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from ingest_toy import config, files, ingest, jsonl, reasons, run, table, texts

from pipeline_lib.corpus import ranges
from pipeline_lib.corpus.files import local_file
from pipeline_lib.errors import ConfigError, NotFoundError, RefusedError
from pipeline_lib.workspace.faults import POINTS
from pipeline_lib.workspace.workspace import Workspace

RECORDS = [{"text": 'one "quoted"\nline, and ünïcode', "key": 1}, {"text": "two", "key": 2}, {"text": "[3]", "key": 3}]


def write_stream(rows: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(str(path), rows.schema) as stream:
        stream.write_table(rows)


def as_views(rows: pa.Table) -> pa.Table:
    return rows.set_column(0, "text", rows["text"].cast(pa.string_view()))


FORMATS = {
    "lines.json": lambda path: path.write_bytes(jsonl(*RECORDS)),
    "array.json": lambda path: path.write_text(json.dumps(RECORDS)),
    "pretty.json": lambda path: path.write_text(json.dumps(RECORDS, indent=2)),
    "objects.json": lambda path: path.write_text("\n".join(json.dumps(record, indent=1) for record in RECORDS)),
    "file.arrow": lambda path: pyarrow.feather.write_feather(pa.Table.from_pylist(RECORDS), str(path), chunksize=2),
    "stream.arrow": lambda path: write_stream(pa.Table.from_pylist(RECORDS), path),
    "views.arrow": lambda path: write_stream(as_views(pa.Table.from_pylist(RECORDS)), path),
    "dictionary.parquet": lambda path: pq.write_table(
        pa.Table.from_pylist(RECORDS).set_column(0, "text", pa.array([r["text"] for r in RECORDS]).dictionary_encode()), path
    ),
    "no_suffix_lines": lambda path: path.write_bytes(jsonl(*RECORDS)),
    "no_suffix_array": lambda path: path.write_text(json.dumps(RECORDS)),
    "no_suffix_parquet": lambda path: pq.write_table(pa.Table.from_pylist(RECORDS), path),
    "no_suffix_arrow": lambda path: write_stream(pa.Table.from_pylist(RECORDS), path),
    "bom.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + jsonl(*RECORDS)),
    "crlf.jsonl": lambda path: path.write_bytes(jsonl(*RECORDS).replace(b"\n", b"\r\n")),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_form_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    FORMATS[name](tmp_path / name)
    made = ingest(tmp_path / "w", files(tmp_path / name, id_column="key"))
    assert texts(made) == [record["text"] for record in RECORDS]
    assert made.manifest.counts["in"] == 3
    (tmp_path / "plain.jsonl").write_bytes(jsonl(*RECORDS))
    plain = ingest(tmp_path / "w", files(tmp_path / "plain.jsonl", id_column="key"))
    assert table(made, "documents")["doc_id"] == table(plain, "documents")["doc_id"]


def test_json_values_lead_back_to_their_bytes(tmp_path: Path) -> None:
    data = json.dumps(RECORDS, indent=2).encode()
    (tmp_path / "a.json").write_bytes(data)
    for row in table(ingest(tmp_path / "w", files(tmp_path / "a.json")), "documents").to_pylist():
        assert json.loads(data[row["byte_offset"] :][: row["byte_length"]])["text"] == row["text"]


def test_texts_are_split_by_blank_lines_or_by_size(tmp_path: Path) -> None:
    text = "one\nmore of one\n\n \t\ntwo\r\n\r\nthree"
    (tmp_path / "a.txt").write_bytes(text.encode())
    made = ingest(tmp_path / "w", files(tmp_path / "a.txt", split_text="blank_lines"))
    assert texts(made) == ["one\nmore of one", "two", "three"]
    for row in table(made, "documents").to_pylist():
        assert text[row["byte_offset"] :][: row["byte_length"]] == row["text"]
    long = "".join(f"Zeile {n} mit Wörtern 日本\n" for n in range(400)) + "x" * 500 + "é" * 300
    (tmp_path / "b.md").write_text(long)
    pieces = texts(ingest(tmp_path / "w", files(tmp_path / "b.md", split_text="size", piece_kb=0.25)))
    assert "".join(pieces) == long
    assert max(len(piece.encode()) for piece in pieces) <= 250
    assert sum(piece.endswith("\n") for piece in pieces) > 0.9 * len(pieces) - 8


PAGE = """<!doctype html><html><head><title> A
 page </title><link rel="canonical" href="https://example.org/page"><script>var x = "secret script";</script></head><body>
<nav><a href="/">Home</a> <a href="/login">Log in</a></nav>
<article><h1>The heading</h1><p>{}</p><p>And a second paragraph, which is as long as a paragraph should be.</p></article>
<footer>All rights reserved, cookie settings</footer></body></html>"""
BODY = "Grüße aus der Mühle: this is the text that a reader of the page would want to read, at some length."


def test_a_page_gives_its_main_text(tmp_path: Path) -> None:
    pytest.importorskip("resiliparse")
    for encoding in ("utf-8", "windows-1252"):
        (tmp_path / "a.html").write_bytes(PAGE.format(BODY).encode(encoding))
        made = ingest(tmp_path / "w", files(tmp_path / "a.html"))
        (row,) = table(made, "documents").to_pylist()
        assert BODY in row["text"]
        assert "second paragraph" in row["text"]
        assert not any(word in row["text"] for word in ("Log in", "secret script", "cookie"))
        assert row["url"] == "https://example.org/page"
        assert json.loads(row["metadata"]) == {"title": "A page"}
        (edit,) = table(made, "edits").to_pylist()
        assert (edit["kind"], edit["start"], edit["end"]) == ("extract", 0, len(PAGE.format(BODY).encode(encoding)))


def warc(kind: str, body: bytes, content: str, day: str = "2024-05-06T07:08:09Z") -> bytes:
    head = f"WARC/1.1\r\nWARC-Type: {kind}\r\nContent-Type: {content}\r\nWARC-Date: {day}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"WARC-Target-URI: https://example.org/crawled\r\n\r\n" + body + b"\r\n\r\n"


@pytest.mark.parametrize("packed", [False, True])
def test_a_crawl_gives_its_pages_with_address_and_date(tmp_path: Path, packed: bool) -> None:
    pytest.importorskip("fastwarc")
    chunk = PAGE.format(BODY).replace("https://example.org/page", "").encode()
    http = "application/http; msgtype=response"
    chunked = b"%x\r\n" % len(chunk) + chunk + b"\r\n0\r\n\r\n"
    parts = [
        warc("warcinfo", b"software: x\r\n", "application/warc-fields"),
        warc("request", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
        warc(
            "response",
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
            http,
        ),
        warc(
            "response",
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(chunk),
            http,
        ),
        warc("conversion", b"text that somebody took out already", "text/plain", "2019-01-02T00:00:00Z"),
    ]
    data = b"".join(gzip.compress(part) for part in parts) if packed else b"".join(parts)
    path = tmp_path / ("a.warc.gz" if packed else "a.warc")
    path.write_bytes(data)
    made = ingest(tmp_path / "w", files(path))
    rows = table(made, "documents").to_pylist()
    assert [BODY in row["text"] for row in rows] == [True, True, False]
    assert rows[2]["text"] == "text that somebody took out already"
    assert {row["url"] for row in rows} == {"https://example.org/crawled"}
    assert [row["created_at"].date().isoformat() for row in rows] == ["2024-05-06", "2024-05-06", "2019-01-02"]
    plain = b"".join(parts)
    assert all(plain[row["byte_offset"] :].startswith(b"WARC/1.1\r\n") for row in rows)


def test_dates_and_addresses_from_columns_and_file_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    records = {"text": "a", "link": "https://x.org/a"}, {"text": "b", "day": "2020-01-02"}
    (tmp_path / "data" / "news-20240506.jsonl").write_bytes(jsonl(*records))
    source = files(tmp_path / "data", date_column="day", date_pattern="news-%Y%m%d", url_column="link")
    made = ingest(tmp_path / "w", source)
    rows = table(made, "documents").to_pylist()
    assert [row["created_at"].date().isoformat() for row in rows] == ["2024-05-06", "2020-01-02"]
    assert [row["url"] for row in rows] == ["https://x.org/a", ""]


@pytest.mark.parametrize("name", ["licence", "license"])
def test_licences_of_records_by_both_spellings(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": "a", name: "MIT"}, {"text": "b"}))
    made = ingest(tmp_path / "w", files(tmp_path / "a.jsonl"))
    assert table(made, "documents")["licence"].to_pylist() == ["MIT", ""]


@pytest.mark.parametrize("column", ["url", "title", "domain", "licence", "date", "id"])
def test_what_a_record_says_of_itself_is_left_out_where_it_is_not_utf8(tmp_path: Path, column: str) -> None:
    """Parquet does not check its strings; the text is good, so nothing else is wrong with the record."""
    said = pa.array([b"a\xffb", b"2020", None], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": ["first text", "second text", "third text"], column: said}), tmp_path / "a.parquet")
    names = {"date": {"date_column": "date"}, "id": {"id_column": "id"}}
    made = ingest(tmp_path / "w", files(tmp_path / "a.parquet", **names.get(column, {})))
    documents = table(made, "documents")
    documents.validate(full=True)
    assert documents["text"].to_pylist() == ["first text", "second text", "third text"]
    if column == "url":
        assert documents["url"].to_pylist() == ["", "2020", ""]


@pytest.mark.parametrize(
    ("line", "more"),
    [
        (b'{"text": "good", "other": "\xff"}', {}),
        (b'{"text": "good", "\xff": 1}', {}),
        (b'{"text": "good", "url": "\xff"}', {}),
        (b'{"text": "bad \xff"}', {}),
        (b'{"text": "twice", "text": "the last"}', {}),
        (b'{"text": "good", "id": 12345678901234567890}', {}),
        (b'{"text": "good", "id": 1.5}', {}),
        (b'{"messages": [null, {"role": "assistant", "content": "a"}]}', {"records": "instruct"}),
        (b'{"messages": [null], "prompt": "a", "response": "b"}', {"records": "instruct"}),
    ],
)
def test_a_json_line_does_not_depend_on_its_neighbours(tmp_path: Path, line: bytes, more: dict[str, str]) -> None:
    """Blocks of plain records are read by pyarrow, blocks with a broken one by a loop."""
    good = b'{"prompt": "a", "response": "b"}\n' if more else b'{"text": "fine"}\n'
    found = []
    for name, neighbour in (("plain", good), ("broken", good + b"broken\n")):
        (tmp_path / f"{name}.jsonl").write_bytes(line + b"\n" + neighbour)
        shutil.copy(tmp_path / f"{name}.jsonl", tmp_path / "a.jsonl")
        made = ingest(tmp_path / name, files(tmp_path / "a.jsonl", id_column="id", **more), quarantine_limit=1.0)
        documents = table(made, "documents").drop_columns(["file_digest"]).to_pylist()
        bad = [row["reason"] for row in table(made, "quarantine").to_pylist() if row["position"] == "a.jsonl:1"]
        found.append(([row for row in documents if row["record_index"] == 0], bad))
    assert found[0] == found[1]
    assert found[0][0] or found[0][1]


def test_any_names_will_do_with_a_format(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "app.log").write_bytes(jsonl(*RECORDS))
    with pytest.raises(NotFoundError, match="no files"):
        ingest(tmp_path / "w", files(tmp_path / "data"))
    made = ingest(tmp_path / "w", files(tmp_path / "data", format="jsonl"))
    assert len(texts(made)) == 3
    assert not made.manifest.events


def test_a_file_name_that_is_not_utf8_is_read(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in (b"a\xff.jsonl", b"a\xfe.jsonl"):
        Path(os.fsdecode(os.fsencode(tmp_path / "d") + b"/" + name)).write_bytes(jsonl({"text": "read"}) + b"broken\n")
    made = ingest(tmp_path / "w", files(tmp_path / "d"), quarantine_limit=1.0)
    assert texts(made) == ["read", "read"]
    assert len(set(table(made, "documents")["doc_id"].to_pylist())) == 2
    assert table(made, "quarantine")["position"].to_pylist() == ["a\\udcfe.jsonl:2", "a\\udcff.jsonl:2"]


def test_files_that_are_passed_over_are_told(tmp_path: Path) -> None:
    (tmp_path / "data" / ".git").mkdir(parents=True)
    for name in ("a.txt", "b.png", "c.PNG", "Makefile", ".hidden", ".git/config"):
        (tmp_path / "data" / name).write_text(name)
    made = ingest(tmp_path / "w", files(tmp_path / "data"))
    assert texts(made) == ["a.txt"]
    (event,) = made.manifest.events
    assert event["detail"] == {"source": "toy", "files": {"": 1, ".png": 2}}


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", 2_500_000)


def large(number: int, size: int = 12_000) -> bytes:
    return jsonl(*({"text": f"{number} {n} " + "word " * 180} for n in range(size)))


@pytest.mark.usefixtures("small_ranges")
def test_a_large_file_is_read_in_ranges(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(large(0))
    workspace, settings = Workspace.open(tmp_path / "w"), config(files(path, max_mb=100))
    first = workspace.store.artifact(run(workspace, settings).key)
    assert len(first.files("documents")) == 5
    rows = table(first, "documents")
    assert rows["record_index"].to_pylist() == list(range(12_000))
    data = path.read_bytes()
    for row in rows.slice(11_000, 3).to_pylist():
        assert json.loads(data[row["byte_offset"] :][: row["byte_length"]])["text"] == row["text"]
    with path.open("ab") as more:
        more.write(large(1, 50))
    second = workspace.store.artifact(run(workspace, settings).key)
    entries = [entry for entry in second.manifest.files if entry.table == "documents"]
    assert [bool(entry.home) for entry in entries] == [True] * 4 + [False]
    assert second.metrics["documents"] == 12_050
    assert table(second, "documents")["doc_id"][:12_000] == rows["doc_id"]
    assert {p.digest for p in ranges.ranges(local_file(path, path.name))} == set(
        table(second, "documents")["file_digest"].to_pylist()
    )


@pytest.mark.parametrize("last", [b"", b"\n", b"no end"])
def test_ranges_hold_every_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: bytes) -> None:
    monkeypatch.setattr(ranges, "RANGE_BYTES", 10)
    lines = [b"x" * (n % 23) + b"\n" for n in range(100)]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines) + last)
    data, at, first = (tmp_path / "a.jsonl").read_bytes(), 0, 0
    for found in ranges.ranges(local_file(tmp_path / "a.jsonl", "a.jsonl")):
        piece = data[found.start : found.stop]
        assert (found.start, found.first, found.size) == (at, first, len(piece))
        assert piece.endswith(b"\n") or found.stop == len(data)
        assert b"\n" not in piece[9:-1]  # no longer than it must be
        assert found.digest == blake3(piece).hexdigest()
        at, first = found.stop, first + piece.count(b"\n")
    assert at == len(data)


@pytest.mark.usefixtures("small_ranges")
def test_row_groups_are_ranges(tmp_path: Path) -> None:
    rows = pa.table({"text": [f"{n} " + "word " * 180 for n in range(12_000)]})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=1000, compression="none", use_dictionary=False)
    made = [ingest(tmp_path / f"w{workers}", files(tmp_path / "a.parquet", max_mb=100), workers=workers) for workers in (1, 2, 8)]
    assert len({artifact.manifest.digest for artifact in made}) == 1
    assert len(made[0].files("documents")) == 4
    assert table(made[0], "documents")["record_index"].to_pylist() == list(range(12_000))
    assert texts(made[0]) == rows["text"].to_pylist()


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ingest_toy import files, ingest
ingest(Path(sys.argv[2]), files(sys.argv[3], max_mb=100))
"""


def test_after_a_kill_only_missing_shards_are_made(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(3):
        (data / f"{number}.jsonl").write_bytes(large(number, 4600))
    assert "shard.after_commit" in POINTS
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path / "w"), str(data)]
    killed = subprocess.run(command, env={**os.environ, "MILLRACE_FAULT": "shard.after_commit:2"}, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "w" / "work").rglob("documents.parquet")}
    assert len(kept) == 2
    made = ingest(tmp_path / "w", files(data, max_mb=100))
    assert sorted(path.stat().st_mtime_ns for path in made.files("documents"))[:2] == sorted(kept.values())
    assert made.manifest.digest == ingest(tmp_path / "v", files(data, max_mb=100)).manifest.digest


def saved_on_hub(cache: Path, commit: str) -> None:
    """What the hub's client leaves in its cache: blobs, and a snapshot of links to them."""
    repository = cache / "datasets--toy--set"
    (repository / "blobs").mkdir(parents=True)
    (repository / "snapshots" / commit / "data").mkdir(parents=True)
    for split, record in (("train", RECORDS[0]), ("test", RECORDS[1])):
        (repository / "blobs" / split).write_bytes(jsonl(record))
        (repository / "snapshots" / commit / "data" / f"{split}.jsonl").symlink_to(repository / "blobs" / split)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_data_set_of_the_hub_is_read_from_its_cache_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    saved_on_hub(tmp_path / "hub", commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    source = {"name": "set", "kind": "dataset", "path": "hf://datasets/toy/set", "revision": commit, "split": split}
    assert texts(ingest(tmp_path / "w", source)) == [RECORDS[split == "test"]["text"]]


def test_a_data_set_of_the_hub_needs_a_commit_and_a_name() -> None:
    with pytest.raises(ValueError, match="needs `revision`"):
        config({"name": "set", "kind": "dataset", "path": "hf://datasets/toy/set"})


def test_a_data_set_may_not_name_files_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.jsonl").write_bytes(jsonl({"text": "secret"}))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: ../secret.jsonl\n---\n")
    source = {"name": "set", "kind": "dataset", "path": str(tmp_path / "set")}
    with pytest.raises(RefusedError, match="outside its folder"):
        ingest(tmp_path / "w", source)
    (tmp_path / "set" / "README.md").unlink()
    (tmp_path / "set" / "state.json").write_text('{"_data_files": [{"filename": "../secret.jsonl"}]}')
    with pytest.raises(RefusedError, match="outside its folder"):
        ingest(tmp_path / "w", source)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_bytes(jsonl(*RECORDS))
    source = {"name": "set", "kind": "dataset", "path": str(tmp_path / "set")}
    with pytest.raises(NotFoundError, match="no split 'dev'"):
        ingest(tmp_path / "w", {**source, "split": "dev"})
    with pytest.raises(ConfigError, match="no data set"):
        ingest(tmp_path / "w", {**source, "path": "s3://bucket/set", "revision": "0" * 40})


def test_links_and_empty_files_do_not_count_against_a_source(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("open")
    (tmp_path / "data" / "b.txt").write_text("")
    (tmp_path / "data" / "c.txt").symlink_to(tmp_path / "data" / "a.txt")
    made = ingest(tmp_path / "w", files(tmp_path / "data"), quarantine_limit=0.0)
    assert reasons(made) == {"empty file": 1, "link, not followed": 1}
