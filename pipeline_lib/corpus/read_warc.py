"""WARC files (ISO 28500): the pages of a crawl, one record each. Needs the extra `web` (fastwarc, Apache-2.0)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline_lib.config.data import SourceConfig
from pipeline_lib.corpus.bounds import COUNT, NUMBER, USED
from pipeline_lib.corpus.files import SourceFile
from pipeline_lib.corpus.raw import EMPTY, NOT_A_PAGE, TOO_LONG, one_batch
from pipeline_lib.corpus.records import records
from pipeline_lib.corpus.redact import head
from pipeline_lib.corpus.streams import Caps, blocks
from pipeline_lib.corpus.web_page import page

BROKEN = "broken WARC record"
_START, _HEADER_END = b"WARC/1.", b"\r\n\r\n"
_MOST_HEADER = 1 << 16
_MARKUP = 20  # a page is mostly markup: this many times more bytes than its text
_ABOUT_OTHERS = (b"warcinfo", b"request", b"metadata", b"revisit", b"continuation")
_OTHER, _PAGE, _BROKEN = 0, 1, 2  # shapes
_HTML, _PLAIN = ("text/html", "application/xhtml+xml"), "text/plain"


def read_warc(file: SourceFile, source: SourceConfig, caps: Caps, longest: int) -> Iterator[pa.RecordBatch]:
    """The pages of `response`, `resource` and `conversion` records; other types are about others and hold no page."""
    stream = blocks(file.path, caps=caps)
    for found in records(file, stream, _search, longest=_MARKUP * longest, lines=False):
        if isinstance(found, pa.RecordBatch):
            yield found
            continue
        pages = [
            (row, _page(found.record(row), longest) if found.shape[row] == _PAGE else _broken(found.record(row)))
            for row in np.flatnonzero(found.shape != _OTHER)
        ]
        if pages:
            places = {name: values[[row for row, _ in pages]].tolist() for name, values in found.places().items()}
            yield one_batch([
                {"file": file.name, "file_digest": file.digest, **{name: places[name][at] for name in places}, **facts}
                for at, (_, facts) in enumerate(pages)
            ])  # fmt: skip


def _search(data: Any, final: bool, starts: Any, ends: Any, numbers: Any, shape: Any, state: Any) -> None:  # noqa: PLR0917
    """Bounds of WARC records, as the kernels of `bounds.py` find them; what is no record is one up to the next that begins.

    A loop over records: each costs an HTML parser anyway.
    """
    view = memoryview(data)
    bytes_ = bytes(view)
    count = at = used = 0
    while at < len(bytes_) and count < len(starts):
        if bytes_[at : at + 2] == b"\r\n":  # the two empty lines behind a record
            at += 2
            used = at
            continue
        end = -1
        header = bytes_.find(_HEADER_END, at, at + _MOST_HEADER)
        if bytes_.startswith(_START, at) and header > 0:
            length = _field(bytes_[at:header], b"content-length")
            if length.isdigit() and len(length) < 16:
                end = header + len(_HEADER_END) + int(length)
                kind = _field(bytes_[at:header], b"warc-type")
                shape[count] = _OTHER if kind in _ABOUT_OTHERS else _PAGE
        elif not final and len(bytes_) - at < _MOST_HEADER:
            break
        if end < 0 or (final and end > len(bytes_)):
            following = bytes_.find(b"\r\n" + _START, at + 1)
            if following < 0 and not final:
                break
            end = following + 2 if following >= 0 else len(bytes_)
            shape[count] = _BROKEN
        if end > len(bytes_):
            break
        starts[count], ends[count], numbers[count] = at, end, count
        count += 1
        at = used = end
    state[USED], state[COUNT], state[NUMBER] = used, count, count


def _field(header: bytes, name: bytes) -> bytes:
    for line in header.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip().lower()
    return b""


def _broken(record: bytes) -> dict[str, Any]:
    return {"problem": BROKEN, "head": head(record)}


def _page(record: bytes, longest: int) -> dict[str, Any]:
    """What one record says, as columns of `RAW`."""
    from fastwarc.warc import ArchiveIterator

    problem, text, facts = "", None, dict[str, str]()
    try:
        warc = next(iter(ArchiveIterator(io.BytesIO(record), parse_http=True, auto_decode="all", fsspec_args=False)))
        facts = {"url": (warc.headers.get("WARC-Target-URI") or "").strip("<>"), "date": warc.headers.get("WARC-Date") or ""}
        kind = (warc.http_content_type if warc.http_headers else warc.headers.get("Content-Type", "")) or ""
        kind = kind.partition(";")[0].strip().lower()
        good = warc.http_headers is None or warc.http_headers.status_code == 200
        if not good or (kind not in _HTML and kind != _PLAIN):
            problem = NOT_A_PAGE
        else:
            body = warc.reader.read(_MARKUP * longest + 1)
            if len(body) > _MARKUP * longest:
                problem = TOO_LONG
            elif kind in _HTML:
                text, told = page(body, warc.http_charset or "")
                facts = {**told, **{name: value for name, value in facts.items() if value}}
            else:
                text = body
            if text is not None and not text.strip():
                problem, text = EMPTY, None
    except (StopIteration, OSError, ValueError, EOFError, UnicodeError) as error:
        problem = problem or BROKEN
        facts = {} if isinstance(error, StopIteration) else facts
    return {
        "text": None if problem else text, "problem": problem or None, "head": head(record) if problem else None,
        "edit": None if problem else "extract", **facts,
    }  # fmt: skip
