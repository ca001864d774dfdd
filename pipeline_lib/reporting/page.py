"""How values become text on a page: the templates, cells of tables, plain text in Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

from pipeline_lib.workspace.workspace import Workspace


def report_folder(workspace: Workspace, run_id: str) -> Path:
    """Where a run's report lies."""
    return workspace.reports_folder / run_id


def templates() -> jinja2.Environment:
    """The templates; text is escaped in HTML, and a name that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = cell
    environment.filters["plain"] = plain
    return environment


def cell(value: Any) -> str:
    """A table cell for people: thousands separated, long fractions cut, nothing else changed."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def plain(text: str) -> str:
    """Text from data in Markdown: one line, no markup, no control characters."""
    kept = "".join(c if c.isprintable() else " " for c in str(text))
    for mark in "\\`*_{}[]<>#|":
        kept = kept.replace(mark, "\\" + mark)
    return " ".join(kept.split())
