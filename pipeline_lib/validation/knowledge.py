"""Knowledge as multiple choice over reference tables that come with Python: four options, three drawn from the same table."""

from __future__ import annotations

import errno
import html.entities
import http
import mimetypes
import os
import unicodedata
from collections.abc import Iterator

Fact = tuple[str, str]  # subject, what is true of it


def http_status() -> tuple[str, list[Fact]]:
    """Status codes and their phrases (RFC 9110)."""
    return "The HTTP status code {} means", [(str(s.value), s.phrase) for s in http.HTTPStatus]


def system_errors() -> tuple[str, list[Fact]]:
    """Error names of the C library and what they say (those POSIX names, whose texts hardly differ between systems)."""
    common = ["EPERM", "ENOENT", "ESRCH", "EINTR", "EIO", "EBADF", "ECHILD", "ENOMEM", "EACCES", "EBUSY", "EEXIST", "ENOTDIR",
              "EISDIR", "EINVAL", "EMFILE", "EFBIG", "ENOSPC", "ESPIPE", "EROFS", "EPIPE"]  # fmt: skip
    return "The error {} means", [(name, os.strerror(getattr(errno, name))) for name in common]


def html_entities() -> tuple[str, list[Fact]]:
    """Named characters of HTML and their Unicode names."""
    named = sorted(html.entities.name2codepoint.items())
    return "The HTML entity &{}; is the character", [(name, unicodedata.name(chr(code)).lower()) for name, code in named]


def media_types() -> tuple[str, list[Fact]]:
    """File name endings and their media types, from the table inside Python (never the system's)."""
    known = mimetypes.MimeTypes(filenames=())
    return "A file that ends in {} has the media type", sorted(known.types_map[1].items())


def numbers() -> tuple[str, list[Fact]]:
    """Small sums."""
    return "The sum of {} is", [(f"{a} and {b}", str(a + b)) for a in range(2, 30) for b in range(2, 30)]


TABLES = (http_status, system_errors, html_entities, media_types, numbers)

ZEN = (
    ("Beautiful is better than", "ugly"), ("Explicit is better than", "implicit"), ("Simple is better than", "complex"),
    ("Complex is better than", "complicated"), ("Flat is better than", "nested"), ("Sparse is better than", "dense"),
)  # fmt: skip


def zen() -> Iterator[tuple[str, list[str], int, str]]:
    """PEP 20 as verbatim cloze items: prompt, options, answer, the text that must not be in training data."""
    endings = [end for _, end in ZEN]
    for number, (start, end) in enumerate(ZEN):
        others = [endings[(number + step) % len(endings)] for step in (1, 2, 3)]
        yield start, [f" {end}.", *(f" {other}." for other in others)], 0, "\n".join(f"{s} {e}." for s, e in ZEN)
