"""Plain text and Markdown: a document a file, or a file split by blank lines or by size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline_lib.config.data import SourceConfig
from pipeline_lib.corpus import bounds
from pipeline_lib.corpus.files import SourceFile
from pipeline_lib.corpus.machine_text import EXTRACT
from pipeline_lib.corpus.raw import BOMB, CUT_FILE, EMPTY_FILE, LINK, NO_PERMISSION, TOO_LONG, raw_batch
from pipeline_lib.corpus.records import records
from pipeline_lib.corpus.redact import head
from pipeline_lib.corpus.streams import BrokenStreamError, Caps, TooLargeError, blocks
from pipeline_lib.corpus.web_page import page

NOT_READ = {"link": LINK, "unreadable": NO_PERMISSION}  # forms of files that are listed only


def read_split(file: SourceFile, source: SourceConfig, caps: Caps, longest: int) -> Iterator[pa.RecordBatch]:
    """Paragraphs, or pieces of `piece_kb`, of a text file."""
    by_size = source.split_text == "size"
    search, mode = (bounds.pieces, int(source.piece_kb * 1000)) if by_size else (bounds.paragraphs, 0)
    for found in records(file, blocks(file.path, caps=caps), search, longest=max(longest, mode), mode=mode):
        yield found if isinstance(found, pa.RecordBatch) else raw_batch(file, len(found), text=found.texts(), **found.places())


def whole_file(file: SourceFile, caps: Caps, longest: int) -> dict[str, Any]:
    """A file that is one document, as a row of `RAW`. It is read no further than a document may be long."""
    text: bytes | None = None
    data, facts, problem = b"", dict[str, str](), ""
    try:
        if file.form in NOT_READ:
            raise ValueError(NOT_READ[file.form])
        for block in blocks(file.path, caps=caps):
            data += block
            if len(data) > longest * (20 if file.form == "html" else 1):  # a page is mostly markup
                raise ValueError(TOO_LONG)
        if not data:
            raise ValueError(EMPTY_FILE)
        if file.form == "html":
            text, facts = page(data)
        elif file.form in EXTRACT:
            text, facts["date"] = EXTRACT[file.form](data)
        else:
            text = data
    except TooLargeError:
        problem = BOMB
    except BrokenStreamError:
        problem = CUT_FILE
    except ValueError as error:
        problem = str(error)
    return {
        "text": text, "problem": problem or None, "head": head(data) if problem else None, "file": file.name,
        "file_digest": file.digest, "index": 0, "offset": 0, "length": len(data), "domain": file.domain, "licence": file.licence,
        "edit": None if text is data or problem else "extract", **facts,
    }  # fmt: skip
