"""Users' validation sets: JSONL files of items, published forms, and folders of such files."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.validation.items import FORMS, Item
from pipeline_lib.validation.pararel import is_pararel, pararel_files, read_pararel
from pipeline_lib.validation.published import items_from, published_form, read_table_suite

ENDINGS = (".jsonl", ".csv", ".tsv")


def suite_files(path: Path) -> list[Path]:
    """The files of a suite: the file itself, or those of a folder that may hold items, in order of their names."""
    if is_pararel(path):
        return pararel_files(path)
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.suffix in ENDINGS and not file.name.startswith("occupations-stats"))
    return [path] if path.is_file() else []


def read_suite(path: Path) -> list[Item]:
    """The items of a file or folder, named like it.

    A JSONL file has one object a line: `options` (list of text) and `answer` (index), and optionally `prompt`, `form`,
    `category`, `item`, `text` (verbatim text to keep out of training data), `fact` (the same for items that ask the same in other
    words), `region`, `source`; or it has the fields of a published set (published.py), as a CSV or TSV file has.

    Raises:
        NotFoundError: there is no such file, or none in the folder.
        ConfigError: a line is malformed (file, line and field are named), two items of a file have one name, or there are none.
    """
    files = suite_files(path)
    if not files:
        raise NotFoundError("there is no suite file", where=str(path), fix="correct suites.paths")
    if is_pararel(path):
        items = list(read_pararel(path))
    else:
        items = _apart(path.stem, [(file, item) for file in files for item in _read(file)])
    if not items:
        raise ConfigError(
            "the suite has no items", where=str(path), fix='one JSON object a line: {"options": [...], "answer": 0}'
        )
    return items


def _apart(suite: str, found: Sequence[tuple[Path, Item]]) -> list[Item]:
    """The items of a suite, each with a name of its own: where files use the same ones, the file's name stands before them."""
    shared = max(Counter(item.item for _, item in found).values(), default=0) > 1
    several = len({file for file, _ in found}) > 1
    items = [
        replace(item, suite=suite, item=f"{file.stem}-{item.item}" if shared and several else item.item) for file, item in found
    ]
    first: dict[str, Item] = {}
    for item in items:
        if other := first.get(item.item):
            raise ConfigError(
                f"field 'item': two items are named {item.item!r}, here and in {other.source}", where=item.source,
                fix="a name of its own for each, or none: then it is the line number",
            )  # fmt: skip
        first[item.item] = item
    return items


def _read(file: Path) -> list[Item]:
    try:
        return _records(file) if file.suffix == ".jsonl" else read_table_suite(file)
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text: {error.reason} at byte {error.start}", where=str(file)) from None
    except csv.Error as error:
        raise ConfigError(f"not a table: {error}", where=str(file)) from None


def _records(file: Path) -> list[Item]:
    rows = []
    for number, line in enumerate(file.read_text("utf-8-sig").split("\n"), start=1):  # not at U+2028, which JSON may contain
        if line.strip():
            rows.append((number, _record(line, f"{file}:{number}")))
    reader = published_form(list(rows[0][1])) if rows else None
    if reader is not None:
        return items_from(reader, rows, file)
    return [_item(row, file, number) for number, row in rows]


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}", where=where) from None
    if not isinstance(row, dict):
        raise ConfigError(f"a {type(row).__name__} instead of an object", where=where)
    return row


def _item(row: dict[str, Any], path: Path, number: int) -> Item:
    where = f"{path}:{number}"
    options, answer = row.get("options"), row.get("answer")
    form = row.get("form", "choice")
    if form not in FORMS:
        raise ConfigError(f"field 'form' is {form!r}; it must be one of {', '.join(FORMS)}", where=where)
    least = FORMS[form].options
    if not (isinstance(options, list) and len(options) >= least and all(isinstance(o, str) and o for o in options)):
        raise ConfigError(f"field 'options' must be a list of at least {least} non-empty texts", where=where)
    if not (isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options)):
        raise ConfigError(f"field 'answer' is {answer!r}; it must be an index from 0 to {len(options) - 1}", where=where)
    texts = {}
    for name in ("prompt", "category", "item", "text", "fact", "region", "source"):
        texts[name] = row.get(name, "")
        if not isinstance(texts[name], str):
            raise ConfigError(f"field '{name}' must be text", where=where)
    suite = path.stem
    return Item(
        suite, texts["item"] or f"{number:06d}", form, texts["prompt"], options, answer, texts["category"] or suite,
        text=texts["text"], kind="verbatim" if texts["text"] else "template",
        fact=texts["fact"], region=texts["region"], source=texts["source"] or f"{path.name}:{number}",
    )  # fmt: skip
