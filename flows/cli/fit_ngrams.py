"""`millrace fit-ngrams`: another model of the n-gram signals, and a classifier from good examples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import show
from flows.cli.command import LOOK, Json, command, home, run_with

Files = Annotated[list[Path], typer.Option(help="Text file, or JSONL with `text`; may be repeated.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "fit-ngrams", example="millrace fit-ngrams own.npz --good examples.jsonl", panel=LOOK)(fit_ngrams)


def fit_ngrams(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the model (.npz); `score.ngram_model` names it.")],
    *,
    run: Annotated[str, typer.Option(metavar="RUN", help="Run whose kept and dropped documents are used.")] = "latest",
    domain: Annotated[list[str], typer.Option(help="Only documents of this domain; may be repeated.")] = [],  # noqa: B006
    reference: Files = [],  # noqa: B006 - typer copies it
    reject: Files = [],  # noqa: B006
    good: Files = [],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Fit the models of good and bad text that `score` uses, on a run or on files, and a classifier on good examples.

    With --reference, no run is read. The next run with another model measures all documents again.
    """
    from pipeline_lib.errors import NotFoundError
    from pipeline_lib.quality.fit import documents_by_decision, fit_model, texts_of

    if reference:
        sides = texts_of(reference), texts_of(reject)
    else:
        workspace = home()
        record = run_with(workspace, run, "score")
        refs = [ref for stage in ("ingest", "score") if (ref := record.ref(stage))]
        if len(refs) < 2:
            raise NotFoundError("the run has no scored documents", where=record.run_id, fix="`millrace runs` lists others")
        ingest, score = (workspace.store.artifact(ref.key) for ref in refs)
        sides = documents_by_decision(ingest, score, domain)
    fitted = fit_model(out, sides[0], [*sides[1], *(texts_of(reject) if not reference else [])], texts_of(good))
    if as_json:
        show.json_out({"file": str(out), **vars(fitted)})
        return
    show.say(f"{out}: fitted on {fitted.reference} reference and {fitted.reject} reject texts, {fitted.good} good examples")
    show.say(f"use it with --set score.ngram_model={out}")
