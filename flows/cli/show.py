"""How things are shown in a terminal, and nowhere else: text from data is made harmless here, tables are drawn here.

Rich in a terminal, plain text elsewhere. Text never goes through rich's markup.
"""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from pipeline_lib.workspace.artifact import SummaryTable

Cell = str | float | int | None

# Control characters (terminal escapes begin with one) and the marks that reorder text. https://www.unicode.org/reports/tr36/
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def clean(text: object) -> str:
    """Text from data as it may be shown: control characters become visible `\\x1b`, line ends and tabs stay."""
    return _HARMFUL.sub(lambda match: match[0].encode("unicode_escape").decode(), str(text).replace("\r\n", "\n"))


def say(text: object = "", *, file: TextIO | None = None) -> None:
    """One line to standard output, made harmless, written at once."""
    print(clean(text), file=file or sys.stdout, flush=True)


def warn(text: object) -> None:
    """One line to standard error."""
    say(text, file=sys.stderr)


def in_terminal() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout.isatty()


def json_out(value: Any) -> None:
    """A value as JSON for programs, to standard output."""
    print(to_json(value), flush=True)


def to_json(value: Any) -> str:
    """A value as JSON for programs: bytes (ids) as hexadecimal digits, numbers that JSON does not know as null."""
    return json.dumps(_jsonable(value), indent=1, ensure_ascii=False, allow_nan=False, default=str)


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], title: str = "") -> None:
    """A table: drawn in a terminal, aligned columns elsewhere. Numbers stand right."""
    numeric = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    cells = [[_cell(value) for value in row] for row in rows]
    if in_terminal():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(
            title=Text(clean(title)) if title else None, title_justify="left", header_style="bold", box=None, pad_edge=False
        )
        for name, right in zip(columns, numeric, strict=True):
            drawn.add_column(Text(clean(name)), justify="right" if right else "left", overflow="fold")
        for row in cells:
            drawn.add_row(*[Text(cell) for cell in row])
        Console(highlight=False).print(drawn)
        return
    if title:
        say(title)
    widths = [max(_width(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    for line in [list(columns), *cells]:
        padded = [
            " " * (width - _width(cell)) + cell if right else cell + " " * (width - _width(cell))
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        say("  ".join(padded).rstrip())


_STYLES = {"gone": "red strike", "new": "green", "left out": "dim"}
_MARKS = {"gone": "[-{}-]", "new": "{{+{}+}}"}


def differences(parts: Sequence[tuple[str, str]]) -> None:
    """Pieces of a text with what they are (same, gone, new, left out): in colour in a terminal, else as `[-gone-]{+new+}`."""
    if in_terminal():
        from rich.console import Console
        from rich.text import Text

        Console(highlight=False).print(Text.assemble(*((clean(text), _STYLES.get(kind, "")) for kind, text in parts)))
    else:
        say("".join(_MARKS.get(kind, "{}").format(text) for kind, text in parts))


def summary(shown: SummaryTable) -> None:
    """The one small table of a stage."""
    if shown.columns:
        table(shown.columns, shown.rows, shown.title)


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1e4
        else f"{value:,.0f}"
        if isinstance(value, float)
        else _line(value)
    )


def _line(text: str) -> str:
    return clean(text).replace("\n", " ⏎ ").replace("\t", " ")


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def size(n_bytes: float) -> str:
    """`1.5 GB` for a number of bytes (powers of ten, as disks are sold)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n_bytes) < 999.5 or unit == "TB":
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    raise AssertionError("unreachable")


def seconds(duration: float) -> str:
    """`4 s`, `2 min 5 s`, `3 h 10 min`."""
    if duration < 9.95:
        return f"{duration:.1f} s"
    whole = round(duration)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def path(place: Path | str) -> str:
    """A path, shortened to the current folder where it lies in it."""
    try:
        return str(Path(place).relative_to(Path.cwd()))
    except ValueError:
        return str(place)
