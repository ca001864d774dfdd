"""`millrace metrics`: the numbers of a run's training, for a person, a program or a notebook; also while it is going."""

from __future__ import annotations

import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import show
from flows.cli.command import LOOK, RunId, command, home
from pipeline_lib.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN = 20  # latest rows that a person sees
HIDDEN = ("attempt", "superseded", "first_sequence", "last_sequence")


class Format(StrEnum):
    """How rows are written."""

    table = "table"
    json = "json"
    csv = "csv"
    parquet = "parquet"


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "metrics", example="millrace metrics latest --format csv > steps.csv", panel=LOOK)(metrics)


def metrics(
    run_id: RunId = "latest",
    *,
    table: Annotated[
        str, typer.Option(metavar="TABLE", help="steps, events, losses (by source and domain), layers, samples or worst.")
    ] = "steps",
    as_format: Annotated[
        Format, typer.Option("--format", help="table: the latest rows; json, csv and parquet: all of them.")
    ] = Format.table,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write (parquet needs one or a pipe).")] = None,
    superseded: Annotated[bool, typer.Option("--superseded", help="Also rows that a resumed training made again.")] = False,
) -> None:
    """Show or export what a run's training has logged: steps, events, losses by domain, samples; also while it is going."""
    from pipeline_lib.metrics import training_log
    from pipeline_lib.workspace.runs import RunBook

    workspace = home()
    found = training_log(workspace, RunBook(workspace.runs_folder).load(run_id), table, superseded=superseded)
    if as_format is Format.table:
        names = [name for name in found.column_names if name not in HIDDEN]
        latest = found.slice(max(0, found.num_rows - SHOWN)).to_pylist()
        show.table(names, [[_cell(name, row[name]) for name in names] for row in latest], f"{table}: {found.num_rows:,} rows")
    elif as_format is Format.json:
        text = show.to_json(found.to_pylist())
        print(text, flush=True) if out is None else out.write_text(text + "\n", "utf-8")
    else:
        _write(found, as_format, out)


def _write(table: pa.Table, as_format: Format, out: Path | None) -> None:
    if as_format is Format.parquet and out is None and sys.stdout.isatty():
        raise ConfigError("a parquet file is nothing for a terminal", fix="name a file with --out, or pipe it")
    target: Any = out if out is not None else sys.stdout.buffer
    if as_format is Format.csv:
        from pyarrow import csv

        csv.write_csv(_without_bytes(table), target)
    else:
        import pyarrow.parquet as pq

        pq.write_table(table, target)


def _without_bytes(table: pa.Table) -> pa.Table:
    """Ids as hexadecimal digits: CSV knows no bytes."""
    import pyarrow as pa

    for place, field in enumerate(table.schema):
        if pa.types.is_fixed_size_binary(field.type):
            digits = pa.array([value.hex() for value in table.column(place).to_pylist()], pa.string())
            table = table.set_column(place, field.name, digits)
    return table


def _cell(name: str, value: Any) -> show.Cell:
    """For people; the other formats keep every digit."""
    if isinstance(value, bytes):
        return value.hex()
    if name == "time":
        return str(value)[:19].replace("T", " ")
    if name == "detail":
        return re.sub(r"\d+\.\d{5,}(e[-+]?\d+)?", lambda number: f"{float(number[0]):.4g}", str(value))
    shown: show.Cell = value
    return shown
