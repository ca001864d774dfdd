"""What a stage shows in Prefect: its one summary table, and links. A server that cannot take it costs a log line, no run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from pipeline_lib.workspace.artifact import ArtifactRef, Manifest


def escape(text: str) -> str:
    """Text from data, made harmless in Markdown tables and HTML."""
    for character, replacement in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("`", "&#96;"), ("[", "&#91;")):
        text = text.replace(character, replacement)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def show_summary(manifest: Manifest, ref: ArtifactRef) -> None:
    """The stage's summary as a table artifact (or a line of Markdown where the stage has no table)."""
    key = f"millrace-{ref.stage.replace('_', '-')}"
    made = "reused" if ref.reused else f"made in {manifest.seconds:.1f} s"
    about = f"**{ref.stage}** {made} · `{ref.key}` · " + ", ".join(f"{k} {v}" for k, v in manifest.counts.items())
    table = manifest.summary
    if table.rows:
        rows = [
            {str(c): escape(v) if isinstance(v, str) else v for c, v in zip(table.columns, row, strict=True)}
            for row in table.rows
        ]
        title = f"{escape(table.title)} · " if table.title else ""
        _try(create_table_artifact, key=key, table=rows, description=title + about)
    else:
        _try(create_markdown_artifact, key=key, markdown=about)


def show_link(key: str, url: str, text: str) -> None:
    """A link: to the report, to the run in MLflow."""
    _try(create_link_artifact, key=f"millrace-{key}", link=url, link_text=text)


def _try(create: Callable[..., Any], **arguments: Any) -> None:
    try:
        create(**arguments)
    except Exception as error:  # showing is a courtesy: the work is published already
        logging.getLogger("prefect.millrace").warning("could not show %s in Prefect: %s", arguments["key"], error)
