"""`millrace stats`: what the documents of a run are like."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flows.cli import show
from flows.cli.command import LOOK, Json, RunId, command, home, run_with


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "stats", example="millrace stats latest --by licence", panel=LOOK)(stats)


def stats(
    run_id: RunId = "latest",
    by: Annotated[str, typer.Option(metavar="COLUMN", help="source, domain, language or licence.")] = "domain",
    signal: Annotated[str, typer.Option(metavar="NAME", help="This signal's quantiles in each group.")] = "",
    as_json: Json = False,
) -> None:
    """Count documents, bytes and tokens by source, domain, language or licence; what each rule removes; signals' quantiles."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline_lib.errors import NotFoundError
    from pipeline_lib.quality.statistics import told

    workspace = home()
    record = run_with(workspace, run_id, "score")
    ref = record.ref("score")
    if ref is None:
        raise NotFoundError(f"run {record.run_id} has no scored documents", fix="let it run: `millrace run --until score`")
    artifact = workspace.artifact(ref.key)
    if "statistics" not in artifact.manifest.tables:
        raise NotFoundError("its documents were scored before there were statistics", fix="`millrace run --from score`")
    files = artifact.files("statistics")
    groups, whole = told(files, by), told(files)
    if signal and signal not in (known := [row["signal"] for row in whole["signals"]]):
        raise NotFoundError(f"there is no signal {signal!r}", fix="there are " + ", ".join(known))
    if as_json:
        show.json_out({"run_id": record.run_id, "by": by, "groups": groups, "all": whole})
        return
    _table(f"Documents by {by} (before and after the rules; tokens are estimated)", groups["groups"], by)
    _table("What each rule removes: if it were the only one, and after all others", whole["rules"], "")
    whole_numbers = {field.name for field in pq.read_schema(artifact.files("signals")[0]) if pa.types.is_integer(field.type)}
    for row in (*groups["signals"], *whole["signals"]):
        if row["signal"] in whole_numbers:
            row.update({name: round(value) for name, value in row.items() if isinstance(value, float)})
    chosen = [row for row in groups["signals"] if row["signal"] == signal] if signal else whole["signals"]
    _table(f"Quantiles of {signal or 'the signals'}, within 1 %", chosen, by if signal else "")


def _table(title: str, rows: list[dict[str, Any]], by: str) -> None:
    """Rows as a table; the column `name` is what they are divided by, or left out."""
    if rows:
        names = [name for name in rows[0] if name != "name" or by]
        show.table(
            [by if name == "name" else name for name in names], [[_cell(row[name]) for name in names] for row in rows], title
        )
        show.say()


def _cell(value: Any) -> show.Cell:
    return value if value != "" else "unknown"
