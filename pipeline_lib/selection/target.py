"""The sample of text that a selection leans toward: a file, or statements about the world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.compute as pc

from pipeline_lib.config.data import SelectConfig
from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.identity import file_digest
from pipeline_lib.workspace.stage import StageRun

WORLD = "world"
MOST_MB = 100  # a sample: what is larger is a corpus


def file_digests(*, select: SelectConfig) -> dict[str, str]:
    """What the sample is: part of the stage's fingerprint. A missing file is told of when it is read."""
    if select.toward in {"none", WORLD}:
        return {"toward": select.toward}
    path = Path(select.toward)
    return {"toward": file_digest(path) if path.is_file() else ""}


def target_texts(run: StageRun, select: SelectConfig) -> list[str]:
    """The sample's texts.

    Raises:
        NotFoundError: the file does not exist.
        ConfigError: it holds no text, is too large, or a line of it is not as it should be.
    """
    if select.toward == WORLD:
        return world_statements(run)
    path = Path(select.toward)
    if not path.is_file():
        raise NotFoundError(f"no file {path}", where="select.toward", fix="a JSONL file with `text`, or a text file")
    if path.stat().st_size > MOST_MB * 10**6:
        raise ConfigError(f"{path} is larger than {MOST_MB} MB", where="select.toward", fix="a few thousand texts are enough")
    content = path.read_text("utf-8", errors="replace")
    texts = _lines(path, content) if path.suffix == ".jsonl" else [text for text in content.split("\n\n") if text.strip()]
    if not any(text.strip() for text in texts):
        raise ConfigError(f"{path} holds no text", where="select.toward")
    return texts


def world_statements(run: StageRun) -> list[str]:
    """Statements from the reference tables about entities that no validation item asks for."""
    held_out = read_tables(run.input("suites").files("suite_items"), ["entities"])["entities"]
    statements: Sequence[str] = run.use(WORLD)(set(pc.list_flatten(held_out).to_pylist()))
    if not statements:
        raise ConfigError(
            "validation asks for every entity of the reference tables: none is left to lean toward",
            where="select.toward",
            fix="a file of your own, or fewer items: suites.level, suites.names",
        )
    return list(statements)


def _lines(path: Path, content: str) -> list[str]:
    texts = []
    for number, line in enumerate(content.split("\n"), 1):  # JSON may hold what `splitlines` takes for a line end
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"not JSON: {error.msg}", where=f"{path}, line {number}") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise ConfigError("no `text`", where=f"{path}, line {number}", fix='{"text": "…"}')
        texts.append(row["text"])
    return texts
