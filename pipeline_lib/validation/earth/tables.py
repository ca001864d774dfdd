"""A user's reference table as facts: a row an entity, a column a property.

The first column names the entity. A column `region` puts it somewhere: distractors are from the same region. A column in which
every value is a number gives comparisons, of entities whose numbers differ by half at least; any other gives single facts. Empty
cells are not known. The names of columns are what the statements call the property.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline_lib.errors import ConfigError
from pipeline_lib.validation.earth.facts import Comparison, Fact, Single

RATIO = 1.5  # two numbers are compared when one is at least so many times the other
STEPS = (1, 2, 5)  # neighbours in the order of the table
REGION = "region"
Row = Mapping[str, str]


def facts_of(path: Path) -> dict[str, list[Fact]]:
    """Column → facts, of a CSV or TSV file in UTF-8 with a header.

    Raises:
        ConfigError: no columns or rows, a row that is too long, an entity twice or without a name (with file, line and field).
    """
    rows, name = _read(path)
    found: dict[str, list[Fact]] = {}
    for column in rows[0]:
        if column in {name, REGION}:
            continue
        known = [(number, row) for number, row in enumerate(rows, start=2) if row[column]]
        numbers = [_number(row[column]) for _, row in known]
        make = _singles if None in numbers else _comparisons
        if facts := list(make(path, name, column, known)):
            found[column] = facts
    return found


def _read(path: Path) -> tuple[list[Row], str]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        columns = list(reader.fieldnames or ())
        if len(set(columns) - {REGION}) < 2 or len(set(columns)) < len(columns):
            raise ConfigError("a table needs a column of names and one of values, each once", where=f"{path}:1")
        rows: list[Row] = []
        seen: set[str] = set()
        for row in reader:
            where = f"{path}:{reader.line_num}"
            if None in row:
                raise ConfigError(f"a row has more than {len(columns)} fields", where=where)
            clean = {column: (row[column] or "").strip() for column in columns}
            if not clean[columns[0]] or clean[columns[0]] in seen:
                raise ConfigError(f"field {columns[0]!r} must name the entity, once in the table", where=where)
            seen.add(clean[columns[0]])
            rows.append(clean)
    if not rows:
        raise ConfigError("the table has no rows", where=str(path))
    return rows, columns[0]


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def _singles(path: Path, name: str, column: str, known: list[tuple[int, Row]]) -> Iterator[Fact]:
    templates = (f"The {column} of {{subject}} is {{answer}}.", f"For {{subject}} the {column} is {{answer}}.")
    for place, (number, row) in enumerate(known):
        around = itertools.chain(known[place + 1 :], known[:place])
        near = [
            other[column] for _, other in around if other.get(REGION, "") == row.get(REGION, "") and other[column] != row[column]
        ]
        wrong = tuple(dict.fromkeys(near))[:3]
        if len(wrong) == 3:
            yield Single(
                "tables", f"{path.stem}/{column}", row[name], row[column], wrong, templates, row.get(REGION, ""),
                f"{path.name}: line {number}",
            )  # fmt: skip


def _comparisons(path: Path, name: str, column: str, known: list[tuple[int, Row]]) -> Iterator[Fact]:
    templates = (f"The {column} of {{more}} is larger than that of {{less}}.", f"{{less}} has a smaller {column} than {{more}}.")
    for step in STEPS:
        for (first, one), (second, two) in zip(known, known[step:], strict=False):
            less, more = sorted((one, two), key=lambda row: _number(row[column]) or 0.0)
            low, high = (_number(row[column]) or 0.0 for row in (less, more))
            if low > 0 and high >= RATIO * low:
                yield Comparison(
                    "tables", f"{path.stem}/{column}", more[name], less[name], templates, more.get(REGION, ""),
                    f"{path.name}: lines {first}, {second}",
                )  # fmt: skip
