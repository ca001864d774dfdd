"""Example of a source: the release notes that installed packages carry (`CHANGES`, `CHANGELOG`, `NEWS`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline_lib.extensions import extend

if TYPE_CHECKING:
    from pipeline_lib.config.data import SourceConfig

_NOTES = re.compile(r"(changes|changelog|news|history)(\.(md|rst|txt))?", re.IGNORECASE)
_SCHEMA = pa.schema({
    "text": pa.string(), "id": pa.string(), "domain": pa.string(), "licence": pa.string(),
    "created_at": pa.timestamp("us", "UTC"), "url": pa.string(),
})  # fmt: skip


@extend.source("changelogs")
def changelogs(source: SourceConfig) -> Iterator[pa.RecordBatch]:
    """One batch a file, packages, in name order, until `max_mb` are read."""
    left = source.max_mb * 1e6
    for package in sorted(distributions(), key=lambda found: found.name):
        for file in sorted(file for file in package.files or () if _NOTES.fullmatch(file.name)):
            path = Path(file.locate())
            try:
                text = path.read_text("utf-8")
            except (OSError, UnicodeDecodeError):
                continue  # listed but not installed, or in an old encoding
            left -= len(text)
            if left < 0:
                return
            row = {
                "text": text, "id": f"{package.name}/{file}", "domain": source.domain or "changelog",
                "licence": source.licence or (package.metadata.get_all("License-Expression") or [""])[0],
                "created_at": datetime.fromtimestamp(path.stat().st_mtime, UTC), "url": f"pypi:{package.name}",
            }  # fmt: skip
            yield pa.RecordBatch.from_pylist([row], _SCHEMA)
