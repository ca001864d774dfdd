"""`millrace export`: the model of a run for other programs, compared with the live one before it is handed out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import show
from flows.cli.command import DECIDE, Json, RunId, command, home

if TYPE_CHECKING:
    from pipeline_lib.trainings import Entry
    from pipeline_lib.workspace.workspace import Workspace


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "export", example="millrace export latest --to hf my-model", panel=DECIDE)(export)


def export(
    run_id: RunId,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    to: Annotated[str, typer.Option("--to", help="hf: safetensors, tokenizer, templates; gguf: one file for llama.cpp.")] = "hf",
    as_json: Json = False,
) -> None:
    """Write the final model of a run: reloaded in a fresh process, its logits, greedy text and stop token compared first.

    Refuses on a mismatch; then DIR is not written.
    """
    from pipeline_lib.export import export_run
    from pipeline_lib.workspace.runs import RunBook

    workspace = home()
    report = export_run(workspace, RunBook(workspace.runs_folder).load(run_id), folder, to=to)
    _tell(report, folder, as_json=as_json)


def write(workspace: Workspace, entry: Entry, *, to: str, folder: Path) -> None:
    """Export a checkpoint."""
    from pipeline_lib.export import export_checkpoint

    _tell(export_checkpoint(workspace, entry, folder, to=to), folder, as_json=False)


def _tell(report: dict[str, str], folder: Path, *, as_json: bool) -> None:
    if as_json:
        show.json_out(report)
        return
    show.say(f"exported to {show.path(folder.absolute())}")
    rows: list[list[show.Cell]] = [[name, value] for name, value in report.items()]
    show.table(["checked", ""], rows)
