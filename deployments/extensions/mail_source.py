"""Example of a source: a mail archive (mbox). In the pipeline: `kind: module`, `name: mail`, `path: archive.mbox`."""

from __future__ import annotations

import mailbox
from collections.abc import Iterator
from datetime import UTC, datetime
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline_lib.errors import NotFoundError
from pipeline_lib.extensions import extend

if TYPE_CHECKING:
    from pipeline_lib.config.data import SourceConfig

BATCH = 1000
_SCHEMA = pa.schema({
    "text": pa.string(), "id": pa.string(), "domain": pa.string(), "licence": pa.string(),
    "created_at": pa.timestamp("us", "UTC"), "url": pa.string(), "subject": pa.string(),
})  # fmt: skip


@extend.source("mail")
def mail(source: SourceConfig) -> Iterator[pa.RecordBatch]:
    """The plain text of every message, in the archive's order, until `max_mb` are read; messages without any are left out."""
    path = Path(source.path)
    if not path.is_file():
        raise NotFoundError("there is no such mail archive", where=f"ingest.sources: {source.path!r}", fix="path: an mbox file")
    messages = _rows(path, source)
    while rows := list(islice(messages, BATCH)):
        yield pa.RecordBatch.from_pylist(rows, _SCHEMA)


def _rows(path: Path, source: SourceConfig) -> Iterator[dict[str, Any]]:
    left = source.limit_mb * 1e6
    archive = mailbox.mbox(path, create=False)
    parser = BytesParser(EmailMessage, policy=default)
    for number, key in enumerate(archive.iterkeys()):
        message = parser.parsebytes(archive.get_bytes(key))
        body = message.get_body(("plain",))
        text = body.get_content() if body else ""
        left -= len(text)
        if left < 0:
            return
        if text.strip():
            yield {
                "text": text, "id": message.get("Message-ID") or str(number), "domain": source.domain or "mail",
                "licence": source.licence, "created_at": _date(message), "url": "", "subject": message.get("Subject") or "",
            }  # fmt: skip


def _date(message: EmailMessage) -> datetime | None:
    try:
        date = parsedate_to_datetime(message["Date"])
    except (TypeError, ValueError):
        return None
    return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)
