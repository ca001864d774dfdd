"""How things are shown in a terminal, and nowhere else: text from data is made harmless here, tables are drawn here.

Rich in a terminal, plain text elsewhere. Text never goes through rich's markup.
"""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pipeline_lib.terminal import clean, clean_json

if TYPE_CHECKING:
    from pipeline_lib.workspace.artifact import SummaryTable

Cell = str | float | int | None


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
    """A value as JSON for programs: bytes (ids) as hexadecimal digits, numbers that JSON does not know as null. People look at
    it, too."""
    return clean_json(json.dumps(_jsonable(value), indent=1, ensure_ascii=False, allow_nan=False, default=str))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]], title: str = "") -> None:
    """A table: drawn in a terminal, aligned columns elsewhere. Numbers stand right.

    In a terminal too narrow to show every word in one piece, each row is a block of lines `column  value`.
    """
    numeric = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(columns))]
    cells = [[_cell(value) for value in row] for row in rows]
    if in_terminal():
        _draw([clean(name) for name in columns], cells, numeric, clean(title))
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


def _draw(columns: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if title:
        console.print(Text(title, style="italic"))
    gap, widths = _widths([columns, *cells], console.width)
    if widths is None and cells and len(columns) > 2:
        for row in cells:
            block = Table.grid(padding=(0, 2, 0, 0))
            for name, cell in zip(columns, row, strict=True):
                block.add_row(Text(name, style="bold"), Text(cell, overflow="fold"))
            console.print(block)
            console.print()
        return
    # Gaps are columns: rich counts padding behind the last column as well, which costs a narrow terminal a table.
    drawn = Table(header_style="bold", box=None, padding=0, pad_edge=False)
    for number, (name, right) in enumerate(zip(columns, numeric, strict=True)):
        if number:
            drawn.add_column(width=gap)
        drawn.add_column(
            Text(name), justify="right" if right else "left", overflow="fold", width=widths[number] if widths else None
        )
    for row in cells:
        drawn.add_row(*[part for cell in row for part in (Text(), Text(cell))][1:])
    console.print(drawn)


def _widths(lines: Sequence[Sequence[str]], whole: int) -> tuple[int, list[int] | None]:
    """Gap and widths of columns that break between words only; None where the longest words do not fit side by side."""
    columns = list(zip(*lines, strict=True))
    natural = [max([1, *map(_width, cells)]) for cells in columns]  # rich wants one character of an empty column, too
    least = [max([1, *(_width(word) for cell in cells for word in cell.split())]) for cells in columns]
    gap = 2 if sum(least) + 2 * (len(columns) - 1) <= whole else 1
    spare = whole - sum(least) - gap * (len(columns) - 1)
    if spare < 0:
        return 2, None
    widths = least
    wishes = sorted(range(len(columns)), key=lambda n: natural[n] - least[n])
    for place, number in enumerate(wishes):  # who wants little gets it, the others share the rest
        more = min(natural[number] - least[number], spare // (len(wishes) - place))
        widths[number] += more
        spare -= more
    return gap, widths


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
