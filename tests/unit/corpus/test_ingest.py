from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_toy import config, files, ingest, jsonl, reasons, run, table, texts

from pipeline_lib.corpus.readers import read_files
from pipeline_lib.corpus.sources import file_digests, list_files, parts
from pipeline_lib.errors import ConfigError, NotFoundError, RefusedError, StageFailedError
from pipeline_lib.extensions import load_extensions
from pipeline_lib.stages import BY_NAME
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

GOOD = [{"text": f"good document number {i}", "id": f"g{i}"} for i in range(40)]


def zstd(data: bytes, codec: str = "zstd") -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def in_frames(data: bytes, codec: str = "zstd") -> bytes:
    """As `pzstd` writes it: before each frame one that says how long it is."""
    parts = [zstd(data[:900], codec), zstd(data[900:], codec)]
    return b"".join(b"\x50\x2a\x4d\x18\x04\0\0\0" + len(part).to_bytes(4, "little") + part for part in parts)


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.bz2", bz2.compress), ("a.jsonl.xz", lzma.compress),
     ("a.jsonl.zst", zstd), ("no_suffix", gzip.compress), ("b.jsonl.zst", in_frames),
     ("a.jsonl.lz4", lambda data: in_frames(data, "lz4"))],
)  # fmt: skip
def test_compression_is_told_by_content(tmp_path: Path, name: str, pack) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / name).write_bytes(pack(jsonl(*GOOD)))
    made = ingest(tmp_path / "w", files(tmp_path / name))
    assert texts(made) == [record["text"] for record in GOOD]
    assert made.manifest.counts == {
        "in": 40,
        "out": 40,
        "documents": 40,
        "quarantined": 0,
        "replaced": 0,
        "barred": 0,
        "left_out": 0,
    }


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_file_that_changes_after_it_was_listed_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(jsonl(*GOOD))
    settings_ = config(files(tmp_path / name)).ingest
    (source,) = settings_.sources
    (part,) = parts(source, list_files(source, 1), settings_)
    assert sum(batch.num_rows for batch in read_files(part, tmp_path)) > 0
    (tmp_path / name).write_bytes(jsonl(*GOOD[1:]))
    with pytest.raises(StageFailedError, match="changed while it was read"):
        list(read_files(part, tmp_path))


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    rows = [
        {"text": 'one "quoted"\nline, and ünïcode', "id": "1", "date": "2024-05-06", "title": 'a "b"'},
        {"text": "two", "id": "2"},
    ]
    rows = [{**{"date": "", "title": "none"}, **row} for row in rows]
    data = tmp_path / "data"
    data.mkdir()
    columns = pa.Table.from_pylist(rows)
    pq.write_table(columns, data / "a.parquet")
    pa.csv.write_csv(columns, data / "a.csv")
    (data / "a.jsonl").write_bytes(jsonl(*rows))
    found = {}
    for path in sorted(data.iterdir()):
        made = ingest(tmp_path / path.suffix, files(path, id_column="id", date_column="date", domain="d", licence="MIT"))
        found[path.suffix] = (
            table(made, "documents").drop_columns(["file", "file_digest", "byte_offset", "byte_length"]).to_pylist()
        )
    assert found[".jsonl"] == found[".csv"] == found[".parquet"]
    first = found[".jsonl"][0]
    assert first["text"] == rows[0]["text"]
    assert first["created_at"].isoformat() == "2024-05-06T00:00:00+00:00"
    assert json.loads(first["metadata"]) == {"title": 'a "b"'}
    assert (first["domain"], first["licence"], first["source"], first["kind"]) == ("d", "MIT", "toy", "text")


def test_what_cannot_be_read_is_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    lines = [
        b'{"text": "broken\n', b"[1, 2]\n", b'{"id": "x"}\n', b'{"text": null}\n', b'{"text": 7}\n', b'{"text": ""}\n',
        b'{"text": " \\t\\n "}\n', b'{"text": "\xff\xfe"}\n', b'{"text": "\\ud800"}\n', jsonl({"text": "x" * 3000}),
        b'{"text": {"a": 1}}\n', b'{"text": "a"} {"text": "b"}\n',
    ]  # fmt: skip
    (data / "mixed.jsonl").write_bytes(jsonl(*GOOD[:2]) + b"\n".join(lines) + b"\n\n" + jsonl(*GOOD[2:4]))
    (data / "nulls.jsonl").write_bytes(jsonl(GOOD[4], {"text": None}, {"other": 1}, {"text": "\u00ad" * 0}, {"text": "x" * 3000}))
    whole = gzip.compress(jsonl(*GOOD[5:35]), mtime=0)
    (data / "cut.jsonl.gz").write_bytes(whole[:-12])
    (data / "cut.jsonl.zst").write_bytes(zstd(jsonl(*GOOD))[:-20])
    (data / "bad.parquet").write_bytes(b"PAR1 this is no parquet file PAR1")
    (data / "bad.csv").write_bytes(b'text,id\n"fine, said csv",1\nonly one\ntoo,many,columns\n\xff\xfe,3\n')
    pq.write_table(pa.table({"text": pa.array(["parquet says", None, ""])}), data / "good.parquet")
    pq.write_table(pa.table({"text": pa.array([1, 2])}), data / "numbers.parquet")
    (data / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (data / "empty.md").write_bytes(b"")
    (data / "fine.md").write_bytes(b"# Fine\n")
    made = ingest(tmp_path / "w", files(data), quarantine_limit=1.0, max_document_mb=0.002)
    found = reasons(made)
    assert found == Counter({
        "broken JSON": 2, "not a JSON object": 1, "no text": 5, "text is not a string": 4, "empty text": 4, "not UTF-8": 3,
        "empty file": 1,
        "lone surrogate in a string": 1, "longer than max_document_mb": 2, "compressed file is cut or damaged": 2,
        "file cannot be read": 1, "wrong number of columns": 2,
    })  # fmt: skip
    counts = made.manifest.counts
    assert counts["in"] == counts["documents"] + counts["quarantined"] == counts["out"]
    assert counts["quarantined"] == found.total() == 28
    got = texts(made)
    assert {record["text"] for record in GOOD[:5]} | {"fine, said csv", "parquet says", "# Fine\n"} <= set(got)
    positions = dict(zip(*[table(made, "quarantine").column(c).to_pylist() for c in ("position", "reason")], strict=True))
    assert positions["mixed.jsonl:3"] == "broken JSON"
    assert positions["bad.csv:2"] == positions["bad.csv:3"] == "wrong number of columns"


def test_a_cut_file_gives_the_records_before_the_cut(tmp_path: Path) -> None:
    records = [{"text": f"{i} " * 4000} for i in range(100)]
    data = gzip.compress(jsonl(*records), mtime=0)
    (tmp_path / "a.jsonl.gz").write_bytes(data[: len(data) // 2])
    made = ingest(tmp_path / "w", files(tmp_path / "a.jsonl.gz"), quarantine_limit=0.5)
    got = texts(made)
    assert 20 < len(got) < 80
    assert got == [record["text"] for record in records[: len(got)]]
    assert reasons(made) == {"compressed file is cut or damaged": 1}


RECORD = st.fixed_dictionaries(
    {"text": st.text('ab é🙂"\\/', max_size=20).map("{}x".format)},
    optional={
        "id": st.integers(0, 10**9) | st.text("abc", max_size=3),
        "title": st.text(max_size=5) | st.none(),
        "x": st.floats(),
    },
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(RECORD, min_size=1, max_size=20))
def test_the_tolerant_reader_agrees_with_the_fast_one(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> None:
    folder = tmp_path_factory.mktemp("agree")
    fast = b"".join(json.dumps({**r, "x": 1}).encode() + b"\n" for r in records)
    (folder / "fast.jsonl").write_bytes(fast)
    (folder / "slow.jsonl").write_bytes(b"not json\n" + fast)
    found = []
    for name in ("fast", "slow"):
        made = ingest(folder / f"w{name}", files(folder / f"{name}.jsonl"), quarantine_limit=1.0)
        found.append(table(made, "documents").select(["text", "metadata"]).to_pylist())
    assert found[0] == found[1]
    assert [row["text"] for row in found[0]] == [record["text"] for record in records]


def test_offsets_lead_back_to_the_record(tmp_path: Path) -> None:
    data = b"\n" + jsonl(GOOD[0]) + b"   \n  " + jsonl(GOOD[1]) + b"\r\n" + jsonl(GOOD[2])[:-1]
    (tmp_path / "a.jsonl").write_bytes(data)
    made = table(ingest(tmp_path / "w", files(tmp_path / "a.jsonl")), "documents").to_pylist()
    assert [json.loads(data[r["byte_offset"] :][: r["byte_length"]])["text"] for r in made] == [r["text"] for r in made]
    assert [data[: r["byte_offset"]].count(b"\n") for r in made] == [r["record_index"] for r in made]


def test_too_many_bad_records_are_refused_with_redacted_examples(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        jsonl(*GOOD) + b'{"mail": "jane.doe@example.org", "api_key": "sk-abcdef1234567890abcdef"\n' * 4
    )
    with pytest.raises(RefusedError) as refused:
        ingest(tmp_path / "w", files(tmp_path / "a.jsonl"))
    assert "4 of 44" in refused.value.what
    assert "4 × broken JSON" in refused.value.what
    assert """a.jsonl:41: '{"xxxx": "[xxxxx]", "xxx_xxx": "[xxx]\"'""" in refused.value.what
    made = ingest(tmp_path / "w", files(tmp_path / "a.jsonl"), quarantine_limit=0.1)
    assert b"jane" not in table(made, "quarantine").column("head")[0].as_py()


def test_an_error_says_how_a_record_looks_and_not_what_it_says(tmp_path: Path) -> None:
    text = "Zoë 7 नमस्ते <b>"
    (tmp_path / "a.jsonl").write_text(f"{text}\n" * 9)
    with pytest.raises(RefusedError) as refused:
        ingest(tmp_path / "w", files(tmp_path / "a.jsonl"))
    assert "9 × broken JSON, e.g. a.jsonl:1: 'xxx 0 xxxxxx <x>'" in refused.value.what


def edited(folder: Path, *, large: bool) -> Path:
    """Three nights of articles; `large`: each file is a part of its own. Article 3 is edited twice, once within a file."""
    folder.mkdir()
    filler = [{"text": "x " * 2_200_000 if large else "x", "id": ""}]
    nights = [
        [{"text": "third, first", "id": "3"}, {"text": "one", "id": "1"}, {"text": "third, second", "id": "3"}],
        [{"text": "two", "id": "2"}],
        [{"text": "third, last", "id": "3"}, {"text": "\ta\x01", "id": "4"}],
    ]
    for number, night in enumerate(nights):
        (folder / f"{number}.jsonl").write_bytes(jsonl(*night, *({**f, "id": f"f{number}"} for f in filler)))
    return folder


@pytest.mark.parametrize("sample", [0, 100])
def test_the_last_record_with_an_id_is_the_document_in_any_layout(tmp_path: Path, sample: int) -> None:
    found = []
    for large in (False, True):
        source = files(edited(tmp_path / f"large{large}", large=large), id_column="id", max_mb=100)
        made = ingest(tmp_path / f"w{large}", source, sample=sample, workers=2)
        rows = table(made, "documents").select(["doc_id", "text", "record_index"]).to_pylist()
        found.append({row["doc_id"]: (row["text"], row["record_index"]) for row in rows if row["text"][0] != "x"})
        assert sorted(text for text, _ in found[-1].values()) == ["\ta", "one", "third, last", "two"]
        assert reasons(made) == {"replaced by a later record": 2}
        assert sorted(table(made, "quarantine").column("position").to_pylist()) == ["0.jsonl:1", "0.jsonl:3"]
        assert made.manifest.counts == {
            "in": 9,
            "out": 9,
            "documents": 7,
            "quarantined": 0,
            "replaced": 2,
            "barred": 0,
            "left_out": 0,
        }
    assert found[0] == found[1]


def test_a_night_with_an_edited_article_reads_the_parts_it_touches_only(tmp_path: Path) -> None:
    data = edited(tmp_path / "data", large=True)
    later = (data / "2.jsonl").read_bytes()
    (data / "2.jsonl").unlink()
    workspace = Workspace.open(tmp_path / "w")
    settings_ = config(files(data, id_column="id", max_mb=100))
    first = run(workspace, settings_)
    (data / "2.jsonl").write_bytes(later)
    second = run(workspace, settings_)
    assert second.metrics["replaced"] == 2
    documents = [e for e in workspace.store.artifact(second.key).manifest.files if e.table == "documents"]
    assert sorted(e.home for e in documents) == ["", "", first.key]  # the new part and the one that held the article
    (data / "3.jsonl").write_bytes(jsonl({"text": "five", "id": "5"}))
    third = run(workspace, settings_)
    entries = [e for e in workspace.store.artifact(third.key).manifest.files if e.table in ("documents", "ids")]
    assert sorted(bool(e.home) for e in entries) == [False] * 2 + [True] * 6


@pytest.mark.parametrize(("name", "data"), [("a.jsonl", b""), ("a.jsonl", b'{"text": ""}\n'), ("a.csv", b"text\n")])
def test_sources_without_a_document_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RefusedError, match="no document is left"):
        ingest(tmp_path / "w", files(tmp_path / name), quarantine_limit=1.0)


def test_ids_do_not_depend_on_place_layout_or_workers(tmp_path: Path) -> None:
    for folder in ("here", "there/deeper"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "a.jsonl").write_bytes(jsonl(*GOOD[:20]))
        (tmp_path / folder / "sub" / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(*GOOD[20:]), mtime=0))
        (tmp_path / folder / "sub" / "big.txt").write_text("word " * 900_000)
    made = [
        ingest(tmp_path / f"w{workers}", files(tmp_path / folder), workers=workers)
        for workers, folder in ((1, "here"), (2, "there/deeper"), (8, "here"))
    ]
    assert len({artifact.key for artifact in made}) == 1
    assert len({artifact.manifest.digest for artifact in made}) == 1
    assert len(made[0].files("documents")) == 2
    assert len(set(table(made[0], "documents").column("doc_id").to_pylist())) == 41


def test_a_second_night_reads_only_what_is_new(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("a", "b"):
        (data / f"{name}.jsonl").write_bytes(jsonl(*({"text": f"{name} {i} " * 200} for i in range(5000))))
    settings_ = config(files(data, max_mb=1000))
    workspace = Workspace.open(tmp_path / "w")
    first = run(workspace, settings_)
    assert run(workspace, settings_).reused
    (data / "c.jsonl").write_bytes(jsonl(GOOD[0]))
    second = run(workspace, settings_)
    assert not second.reused
    entries = [e for e in workspace.store.artifact(second.key).manifest.files if e.table == "documents"]
    assert sorted(e.home for e in entries) == ["", first.key, first.key]
    assert second.metrics["documents"] == 10_001
    (data / "a.jsonl").unlink()
    third = workspace.store.artifact(run(workspace, settings_).key)
    assert third.metrics["documents"] == 5001
    assert all(e.home for e in third.manifest.files)
    assert len(third.manifest.tombstones) == 1


def test_changed_content_is_noticed_and_a_changed_place_is_not(tmp_path: Path) -> None:
    seen = []
    for name, data in (("one", GOOD[:2]), ("two", GOOD[:2]), ("three", GOOD[1:3])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_bytes(jsonl(*data))
        seen.append(file_digests(ingest=config(files(tmp_path / name)).ingest))
    assert seen[0] == seen[1] != seen[2]


def test_remote_files_are_read_through_fsspec(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe(
        {
            "/toy/x/a.jsonl": jsonl(*GOOD[:3]),
            "/toy/x/b.csv": b"text\nfrom csv\n",
            "/toy/x/c.jsonl.gz": gzip.compress(jsonl(GOOD[3])),
        }
    )
    try:
        made = ingest(tmp_path / "w", files("memory://toy/x"))
        assert Counter(texts(made)) == Counter([*(r["text"] for r in GOOD[:4]), "from csv"])
        globbed = ingest(tmp_path / "v", files("memory://toy/x/*.jsonl"))
        assert texts(globbed) == [r["text"] for r in GOOD[:3]]
    finally:
        memory.rm("/toy", recursive=True)


def test_a_sample_is_the_same_documents_whatever_the_workers(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in "abc":
        (data / f"{name}.jsonl").write_bytes(jsonl(*({"text": f"{name} {i} " * 100} for i in range(8000))))
    made = [ingest(tmp_path / f"w{workers}", files(data, max_mb=1000), sample=500, workers=workers) for workers in (1, 4)]
    assert made[0].manifest.digest == made[1].manifest.digest
    assert made[0].manifest.counts == {
        "in": 24_000,
        "out": 24_000,
        "documents": 500,
        "quarantined": 0,
        "replaced": 0,
        "barred": 0,
        "left_out": 23_500,
    }
    shares = Counter(text[0] for text in texts(made[0]))
    assert min(shares.values()) > 110  # 166 each expected


def test_a_document_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "d" / "sub").mkdir(parents=True)
    for name in ("a.jsonl", "sub/b.jsonl"):
        (tmp_path / "d" / name).write_bytes(jsonl({"text": name}))
    rows = table(ingest(tmp_path / "w", files(tmp_path / "d")), "documents").to_pylist()
    assert {row["text"]: row["file"] for row in rows} == {"a.jsonl": "a.jsonl", "sub/b.jsonl": "sub/b.jsonl"}


def test_text_of_ones_own_is_not_cut_unasked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(*({"text": f"{i} " * 40_000} for i in range(100, 250))))
    made = ingest(tmp_path / "w", files(tmp_path / "a.jsonl"))
    assert made.metrics["megabytes"] > 20
    assert (made.metrics["documents"], made.metrics["left_out"]) == (150, 0)


def test_max_mb_limits_by_hash_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(*({"text": f"{i} " * 100} for i in range(10_000))))
    made = ingest(tmp_path / "w", files(tmp_path / "a.jsonl", max_mb=1))
    counts = made.manifest.counts
    assert counts["in"] == 10_000 == counts["documents"] + counts["left_out"]
    assert 0.75 < made.metrics["megabytes"] <= 1
    assert made.manifest.events[0]["kind"] == "limited"
    lines: list[str] = []
    less = config(files(tmp_path / "a.jsonl", max_mb=0.5))
    execute(Workspace.open(tmp_path / "w"), BY_NAME["ingest"], less, {}, services=Services(log=lines.append))
    assert any(line.startswith("WARNING: of source toy only ") and "max_mb is 0.5" in line for line in lines)


@pytest.mark.parametrize(
    ("sources", "error", "told"),
    [
        ([files("/nowhere/at/all")], NotFoundError, "no files"),
        ([files("PLACE/*.nothing")], NotFoundError, "no files"),
        ([files("PLACE"), files("PLACE")], ConfigError, "two sources"),
        ([files("PLACE/a.csv", text_column="body")], StageFailedError, "no column 'body'"),
        ([files("PLACE/a.parquet", text_column="body")], StageFailedError, "no column 'body'"),
    ],
)
def test_a_source_that_cannot_be_read_at_all_says_how_to_mend_it(tmp_path: Path, sources, error, told) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.csv").write_bytes(b"text\nx\n")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
    placed = [{**source, "path": source["path"].replace("PLACE", str(tmp_path))} for source in sources]
    with pytest.raises(error, match=told) as raised:
        ingest(tmp_path / "w", *placed)
    assert raised.value.fix


def test_links_out_of_a_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.txt").write_text("secret")
    (tmp_path / "data" / "a.txt").write_text("open")
    (tmp_path / "data" / "s.txt").symlink_to(tmp_path / "secret" / "s.txt")
    (tmp_path / "data" / "folder").symlink_to(tmp_path / "secret")
    for path in ("data", "data/*.txt", "data/**/*.txt", "dat?/*.txt"):
        found = texts(ingest(tmp_path / "w", files(tmp_path / path)))
        assert found == (["open", "secret"] if path == "dat?/*.txt" else ["open"])  # its literal root holds both folders


MODULE = """
from datetime import UTC, datetime
import pyarrow as pa
from pipeline_lib.extensions import extend

@extend.source("tickets")
def tickets(source):
    for n in range(3):
        row = {"text": f"ticket {n}", "id": str(n % 2), "domain": "support", "created_at": datetime(2024, 5, 6, tzinfo=UTC)}
        yield pa.RecordBatch.from_pylist([row])
"""


def test_a_module_yields_documents(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    made = ingest(
        tmp_path / "w",
        {"name": "tickets", "kind": "module"},
        extensions=[str(tmp_path / "mine.py")],
    )
    load_extensions([])
    rows = table(made, "documents")
    assert rows.column("text").to_pylist() == ["ticket 1", "ticket 2"]
    assert set(rows.column("domain").to_pylist()) == {"support"}
    assert {day.date().isoformat() for day in rows.column("created_at").to_pylist()} == {"2024-05-06"}
    assert reasons(made) == {"replaced by a later record": 1}


@pytest.mark.parametrize("saved", ["one", "splits", "files"])
def test_a_data_set_in_a_folder_gives_documents(tmp_path: Path, saved: str) -> None:
    import datasets

    place = tmp_path / "set"
    rows = [{"body": f"row {n}", "key": n % 1500, "day": f"2024-05-{n % 28 + 1:02d}"} for n in range(1600)]
    data = datasets.Dataset.from_list(rows)
    if saved == "files":
        place.mkdir()
        data.to_parquet(str(place / "train.parquet"))
    else:
        (data if saved == "one" else datasets.DatasetDict({"train": data, "test": data})).save_to_disk(str(place))
    source = {"name": "set", "kind": "dataset", "path": str(place), "text_column": "body"}
    made = ingest(tmp_path / "w", {**source, "id_column": "key", "date_column": "day", "domain": "d"})
    assert texts(made) == [row["body"] for row in rows[100:]]
    assert table(made, "documents").column("created_at")[0].as_py().day == 100 % 28 + 1
    assert made.manifest.counts["replaced"] == 100
    with pytest.raises(NotFoundError, match="no folder"):
        ingest(tmp_path / "w", {**source, "path": str(tmp_path / "none")})
