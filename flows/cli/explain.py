"""`millrace explain`: everything a run knows about one document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from flows.cli import show
from flows.cli.command import LOOK, Json, command, home, run_with
from flows.cli.trace import document_table


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "explain", example="millrace explain 3f2a…", panel=LOOK)(explain_document)


def explain_document(
    doc_id: Annotated[str, typer.Argument(metavar="DOC_ID", help="Document id: 32 hexadecimal digits, or the first of them.")],
    run: Annotated[str, typer.Option(metavar="RUN", help="Run id, the beginning of one, or `latest`.")] = "latest",
    source: Annotated[str, typer.Option(metavar="NAME", help="DOC_ID is the id that this source's own `id_column` has.")] = "",
    as_json: Json = False,
) -> None:
    """Explain one document: its source, signals, rule decisions, duplicates, side and selection, and the steps that read it."""
    from pipeline_lib.selection.explain import explain
    from pipeline_lib.trace import trace_document

    workspace = home()
    record = run_with(workspace, run, "ingest")
    found: dict[str, Any] = explain(workspace, record, doc_id, source=source)
    found["packed"] = trace_document(workspace, record, found["doc_id"]) if record.ref("fill_gaps") else None
    if as_json:
        show.json_out(found)
        return
    show.say(f"document {found['doc_id']} in run {found['run_id']}")
    show.say(found["verdict"])
    _one("Source", found["document"])
    _many("Edits", found["edits"])
    _one("Signals", found["signals"])
    _many("Rules", found["rules"])
    _many("Compared with", found["pairs"])
    _many("Duplicate cluster", found["cluster"])
    _many("Validation items in it", found["contamination"])
    _many("Decisions of dedup", found["duplicates"])
    _many("Cut out by dedup", found["cuts"])
    _one("Split", found["split"])
    _one("Likeness to the target sample", found["importance"])
    _one("Selection", found["selection"])
    _one("Not selected", found["rejection"])
    if found["packed"]:
        show.say()
        document_table(found["packed"])


def _one(title: str, row: Mapping[str, Any] | None) -> None:
    if row:
        show.say()
        show.table(["what", "value"], [[name, _shown(value)] for name, value in row.items()], title)


def _many(title: str, rows: Sequence[Mapping[str, Any]] | None) -> None:
    if rows:
        show.say()
        show.table(list(rows[0]), [[_shown(value) for value in row.values()] for row in rows], title)


def _shown(value: Any) -> show.Cell:
    return value if value is None or isinstance(value, str | int | float) else str(value)
