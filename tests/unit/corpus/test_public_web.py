"""Sources on the web: private addresses are refused, also behind names and redirects; sizes and redirects have a limit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from ingest_toy import files, ingest, jsonl, texts

from pipeline_lib.corpus.public_web import ALLOWED, may_be_asked
from pipeline_lib.errors import MillraceError, RefusedError, StageFailedError

DATA = jsonl({"text": "from the web"}, {"text": "and more"})


class Handler(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def answer(self, body: bool) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path.startswith("/round"):
            self.send_response(302)
            self.send_header("Location", "/round/a.jsonl")
            self.end_headers()
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            if body:
                self.wfile.write(DATA)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Handler.asked.clear()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_private_addresses_are_refused_also_by_name(tmp_path: Path, web: str, host: str) -> None:
    with pytest.raises(MillraceError):
        ingest(tmp_path / "w", files(f"http://{host}:{web.partition(':')[2]}/a.jsonl"))
    assert Handler.asked == []


def test_allowed_networks_are_read_within_limits(tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED, "127.0.0.0/8")
    assert texts(ingest(tmp_path / "w", files(f"http://{web}/a.jsonl"))) == ["from the web", "and more"]
    assert texts(ingest(tmp_path / "v", files(f"http://{web}/to//a.jsonl", format="jsonl"))) == ["from the web", "and more"]
    with pytest.raises(StageFailedError, match="max_file_gb"):
        ingest(tmp_path / "u", files(f"http://{web}/b.jsonl"), max_file_gb=10e-9)


def test_a_redirect_to_a_private_address_or_without_end_is_refused(
    tmp_path: Path, web: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ALLOWED, "127.0.0.1")
    inside = f"http://127.0.0.2:{web.partition(':')[2]}/secret.jsonl"
    with pytest.raises(MillraceError):
        ingest(tmp_path / "w", files(f"http://{web}/to/{inside}", format="jsonl"))
    assert not any("secret" in path and not path.startswith("/to/") for path in Handler.asked)
    Handler.asked.clear()
    with pytest.raises(MillraceError):
        ingest(tmp_path / "v", files(f"http://{web}/round.jsonl"))
    assert len(Handler.asked) < 30


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True), ("2001:4860:4860::8888", True), ("127.0.0.1", False), ("10.1.2.3", False), ("192.168.0.1", False),
        ("172.16.0.1", False), ("169.254.169.254", False), ("0.1.2.3", False), ("100.64.0.1", False), ("224.0.0.1", False),
        ("64:ff9b::10.0.0.1", False), ("64:ff9b::8.8.8.8", True), ("2002:a00:1::1", False), ("2002:808:808::1", True),
        ("::10.0.0.1", False), ("fec0::1", False), ("::", False),
        ("::1", False), ("fe80::1%eth0", False), ("fc00::1", False), ("::ffff:10.0.0.1", False), ("255.255.255.255", False),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address: str, allowed: bool) -> None:
    assert may_be_asked(address) is allowed


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/a.jsonl", "sftp://me@localhost/a.jsonl", "simplecache::webhdfs://127.0.0.1:9870/a"]
)
def test_other_protocols_do_not_reach_private_addresses(tmp_path: Path, url: str) -> None:
    with pytest.raises(RefusedError, match="is no public address"):
        ingest(tmp_path / "w", files(url, format="jsonl"))
