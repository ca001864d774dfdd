"""`millrace trace`: from a training step to its documents and source lines, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from flows.cli import show
from flows.cli.command import LOOK, Json, RunId, command, home
from pipeline_lib.errors import ConfigError

HEAD_CHARACTERS = 60


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "trace", example="millrace trace latest 120", panel=LOOK)(trace)


def trace(
    run: RunId,
    step: Annotated[int | None, typer.Argument(metavar="[STEP]", help="Training step, from 1.")] = None,
    document: Annotated[
        str,
        typer.Option("--document", metavar="DOC_ID", help="The other way: sequences and steps of a document; its id may be cut."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Trace a training step to its sequences, documents and source lines, or a document to the steps that read it."""
    from pipeline_lib.trace import trace_document, trace_step
    from pipeline_lib.workspace.runs import RunBook

    if (step is None) == (not document):
        raise ConfigError("name a step, or a document with --document", fix="millrace trace latest 120")
    workspace = home()
    record = RunBook(workspace.runs_folder).load(run)
    if step is None:
        pieces = trace_document(workspace, record, document)
        if as_json:
            show.json_out({"run_id": record.run_id, "doc_id": document, "sequences": pieces})
        elif pieces:
            document_table(pieces)
        else:
            show.say(f"document {document} was not packed in run {record.run_id}")
        return
    found = trace_step(workspace, record, step)
    if as_json:
        show.json_out(found)
        return
    loss = "" if found["loss"] is None else f", loss {found['loss']:.4f}"
    show.say(
        f"step {step} of run {found['run_id']}: {len(found['sequences'])} sequences, epoch {_numbers(found['epochs'])}{loss}"
    )
    show.table(
        ["sequence", "document", "tokens", "from token", "domain", "source", "line", "file", "begins"],
        [
            [one["sequence"], row["doc_id"], row["tokens"], row["offset"], row["domain"], row["source"], row["line"], row["file"],
             row["head"][:HEAD_CHARACTERS]]
            for one in found["sequences"] for row in one["documents"]
        ],
    )  # fmt: skip


def document_table(pieces: Sequence[Mapping[str, Any]]) -> None:
    """The pieces of a document (`trace_document`) as a table."""
    show.table(
        ["side", "sequence", "chunk", "pass", "from token", "tokens", "read by steps"],
        [
            [row["side"], row["sequence"], row["chunk"], row["pass"], row["offset"], row["tokens"], _numbers(row["steps"])]
            for row in pieces
        ],
        "Packed",
    )


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(f"{value:,}" for value in values)
