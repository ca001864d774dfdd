"""Hide what looks like a person's address or a secret, before bytes of unread records are stored or shown."""

from __future__ import annotations

import re

HEAD_BYTES = 200
SHAPE_CHARACTERS = 60
_LETTER, _DIGIT = re.compile(r"[A-Za-z]|[^\x00-\x7f]"), re.compile(r"[0-9]")

_PATTERNS = (
    (re.compile(rb"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+"), b"[email]"),
    (re.compile(rb"(?i)((?:password|passwd|secret|token|api[_-]?key)[\"']?\s*[:=]\s*[\"']?)[^\s\"',}]+"), rb"\1[key]"),
    # unbroken runs that mix letters and digits: access keys, hashes, encoded blobs
    (re.compile(rb"(?=[A-Za-z_+/=-]*[0-9])(?=[0-9_+/=-]*[A-Za-z])[A-Za-z0-9_+/=-]{20,}"), b"[key]"),
)


def redact(data: bytes) -> bytes:
    """The bytes with e-mail addresses as `[email]` and what may be a password or key as `[key]`."""
    for pattern, replacement in _PATTERNS:
        data = pattern.sub(replacement, data)
    return data


def head(data: bytes) -> bytes:
    """The first 200 bytes of a record, redacted.

    Redaction sees some bytes more, so that an address cut by the end is still an address.
    """
    return redact(data[: HEAD_BYTES + 100])[:HEAD_BYTES]


def shape(data: bytes) -> str:
    """What the beginning of a record looks like without what it says: letters as `x`, digits as `0`.

    For texts that are kept where no one can take a record out of them again, such as errors and logs.
    """
    return _DIGIT.sub("0", _LETTER.sub("x", data.decode("utf-8", "replace")))[:SHAPE_CHARACTERS]
