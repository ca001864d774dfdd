"""Suite items as rows: the three forms (minimal pair, choice, cloze), how they are made and how a user's file is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.tables.schemas import SUITE_ITEMS

FORMS = ("minimal_pair", "choice", "cloze")


@dataclass(frozen=True)
class Item:
    """One validation item.

    The model is asked which of `options` is likeliest after `prompt`. A *minimal pair* has two full sentences and is decided by
    their total log-probability; *choice* by log-probability per byte of the option, so that length does not decide; *cloze* like
    choice, and its prompt is a verbatim text with its end cut off. Items with one `fact` ask the same in other words, with the
    same options in the same order: they tell a wrong but stable answer from an unstable one, and are resampled together.
    """

    suite: str
    item: str
    form: str
    prompt: str
    options: Sequence[str]
    answer: int
    category: str
    text: str = ""
    kind: str = "template"
    entities: Sequence[str] = field(default_factory=tuple)
    fact: str = ""
    region: str = ""
    source: str = ""


def items_table(items: Iterable[Item]) -> pa.Table:
    """Items as a table with schema SUITE_ITEMS, in (suite, item) order."""
    rows = sorted((asdict(item) for item in items), key=lambda row: (row["suite"], row["item"]))
    return pa.Table.from_pylist(rows, schema=SUITE_ITEMS)


def read_user_suite(path: Path) -> list[Item]:
    """A user's JSONL file: one object a line with `options` (list of text) and `answer` (index), and optionally `prompt`, `form`,
    `category`, `item`, `text` (verbatim text to keep out of training data), `fact` (the same for items that ask the same in other
    words), `region`, `source`. The suite is named like the file.

    Raises:
        NotFoundError: the file does not exist.
        ConfigError: a line is malformed; names file, line and field, or the file is empty.
    """
    if not path.is_file():
        raise NotFoundError("suite file does not exist", where=str(path), fix="correct suites.paths")
    items = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        if line.strip():
            items.append(_user_item(line, path, number))
    if not items:
        raise ConfigError(
            "suite file has no items", where=str(path), fix='one JSON object a line: {"options": [...], "answer": 0}'
        )
    return items


def _user_item(line: str, path: Path, number: int) -> Item:
    where = f"{path}:{number}"
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}", where=where) from None
    if not isinstance(row, dict):
        raise ConfigError(f"a {type(row).__name__} instead of an object", where=where)
    options, answer = row.get("options"), row.get("answer")
    if not (isinstance(options, list) and len(options) >= 2 and all(isinstance(o, str) and o for o in options)):
        raise ConfigError("field 'options' must be a list of at least two non-empty texts", where=where)
    if not (isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options)):
        raise ConfigError(f"field 'answer' is {answer!r}; it must be an index from 0 to {len(options) - 1}", where=where)
    texts = {}
    for name in ("prompt", "category", "item", "text", "fact", "region", "source"):
        texts[name] = row.get(name, "")
        if not isinstance(texts[name], str):
            raise ConfigError(f"field '{name}' must be text", where=where)
    form = row.get("form", "choice")
    if form not in FORMS:
        raise ConfigError(f"field 'form' is {form!r}; it must be one of {', '.join(FORMS)}", where=where)
    suite = path.stem
    return Item(
        suite, texts["item"] or f"{number:06d}", form, texts["prompt"], options, answer, texts["category"] or suite,
        text=texts["text"], kind="verbatim" if texts["text"] else "template",
        fact=texts["fact"], region=texts["region"], source=texts["source"] or f"{path.name}:{number}",
    )  # fmt: skip
