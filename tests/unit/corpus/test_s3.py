"""A bucket as a source, on a server of this machine that speaks S3 (needs the extra `s3`, and moto with its server)."""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ingest_toy import config, files, ingest, jsonl, texts

from pipeline_lib.corpus.sources import file_digests
from pipeline_lib.errors import MillraceError

pytestmark = pytest.mark.slow  # s3fs and moto are outside the lock


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import s3fs
    from moto import server as moto

    server = moto.ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "toy", "AWS_SECRET_ACCESS_KEY": "toy",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.makedirs("grain", exist_ok=True)  # the server forgets nothing while the process lives
    system.pipe({
        "grain/news/a.jsonl": jsonl({"text": "one"}, {"text": "two"}),
        "grain/news/sub/b.jsonl.gz": gzip.compress(jsonl({"text": "three"})),
        "grain/other.csv": b"text\nfour\n",
    })  # fmt: skip
    yield system
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_bucket_is_read_by_folder_glob_and_object(tmp_path: Path, bucket: Any) -> None:
    expected = {"news": ["one", "two", "three"], "news/*.jsonl": ["one", "two"], "other.csv": ["four"]}
    for number, (path, found) in enumerate(expected.items()):
        made = ingest(tmp_path / str(number), files(f"s3://grain/{path}"))
        assert Counter(texts(made)) == Counter(found)


def test_an_object_is_known_by_its_content(bucket: Any) -> None:
    source = config(files("s3://grain/news")).ingest
    first = file_digests(ingest=source)
    assert file_digests(ingest=source) == first
    bucket.pipe("grain/news/a.jsonl", jsonl({"text": "one"}, {"text": "2wo"}))
    type(bucket).clear_instance_cache()  # as another night's process
    assert file_digests(ingest=source) != first


def test_a_bucket_that_is_not_there_is_named(tmp_path: Path, bucket: Any) -> None:
    with pytest.raises(MillraceError, match="s3://chaff"):
        ingest(tmp_path, files("s3://chaff/x"))
