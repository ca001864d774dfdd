"""`millrace status`, `verify`, `gc`, `du`, `sql`: what the workspace holds, and whether it is sound."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import show
from flows.cli.command import CARE, LOOK, Json, Set, command, home

if TYPE_CHECKING:
    from pipeline_lib.config.pipeline import PipelineConfig
    from pipeline_lib.run import Selection
    from pipeline_lib.workspace.workspace import Workspace

_LONGEST, _CUT = 160, " …"  # characters of a cell of `sql`

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Pipeline YAML (default: the quickstart).")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "status", example="millrace status --set train.learning_rate=3e-4", panel=LOOK)(status)
    command(app, "sql", example='millrace sql "select domain, count(*) from documents group by domain"', panel=LOOK)(sql)
    command(app, "du", example="millrace du", panel=CARE)(du)
    command(app, "verify", example="millrace verify --full", panel=CARE)(verify)
    command(app, "gc", example="millrace gc --yes", panel=CARE)(gc)


def status(config: Config = None, overrides: Set = [], as_json: Json = False) -> None:  # noqa: B006 (typer copies it)
    """Say for every stage whether it would run or be reused, and why."""
    from flows.cli.pipelines import default_pipeline
    from pipeline_lib.config.load import load_config

    print_status(home(), load_config(config or default_pipeline(), overrides), as_json=as_json)


def print_status(
    workspace: Workspace, config: PipelineConfig, *, as_json: bool, chosen: Selection | None = None, recorded: str = ""
) -> None:
    """Every stage's state, for `status` and `run --dry-run` (which knows a selection)."""
    from pipeline_lib.status import status as status_of

    stages = status_of(workspace, config, chosen=chosen, recorded=recorded)
    if as_json:
        show.json_out([asdict(stage) for stage in stages])
    else:
        show.table(["stage", "state", "why"], [[stage.stage, stage.state, stage.why] for stage in stages])


def verify(
    full: Annotated[bool, typer.Option("--full", help="Digest every file, also those that look unchanged.")] = False,
    as_json: Json = False,
) -> None:
    """Check every artifact, run record and the champion; ends with code 4 when something is damaged."""
    from pipeline_lib.errors import DamagedError
    from pipeline_lib.workspace.verify import verify_all

    findings = verify_all(home(), full=full)
    if as_json:
        show.json_out([asdict(finding) for finding in findings])
    elif findings:
        show.table(["where", "what", "what to do"], [[finding.where, finding.what, finding.fix] for finding in findings])
    else:
        show.say(
            "everything is what it was when it was committed" + ("" if full else " (by size, time and inode; --full digests)")
        )
    if findings:
        raise typer.Exit(DamagedError.exit_code)


def gc(
    config: Config = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, only say what would go.")] = False,
    runs: Annotated[int | None, typer.Option(min=1, help="Newest runs whose artifacts stay (keep.runs).")] = None,
    days: Annotated[int | None, typer.Option(min=0, help="Runs younger than this stay (keep.days).")] = None,
    as_json: Json = False,
) -> None:
    """Show what nobody needs any more, and remove it with --yes.

    Champion, previous champion, pinned, newest, young and running runs keep everything they need.
    """
    from flows.cli.pipelines import default_pipeline
    from pipeline_lib.config.load import load_config
    from pipeline_lib.workspace.gc import apply_gc, plan_gc

    options = [("keep.runs", runs), ("keep.days", days)]
    overrides = [f"{name}={value}" for name, value in options if value is not None]
    workspace, keep = home(), load_config(config or default_pipeline(), overrides).keep
    plan = plan_gc(workspace, keep)
    things = apply_gc(workspace, plan) if yes else list(plan.doomed)
    total = sum(thing.bytes for thing in things)
    if as_json:
        show.json_out({"removed": yes, "bytes": total, "things": [asdict(thing) for thing in things], "kept": plan.kept})
        return
    if things:
        show.table(
            ["kind", "what", "size", "why"], [[thing.kind, thing.name, show.size(thing.bytes), thing.why] for thing in things]
        )
    stays = f"{len(plan.kept)} artifacts stay (runs: {keep.runs} newest, {keep.days} days)"
    if not things:
        show.say(f"nothing to remove; {stays}")
    elif yes:
        show.say(f"removed {len(things)} things, {show.size(total)}; {stays}")
    else:
        counted = "1 thing" if len(things) == 1 else f"{len(things)} things"
        show.say(f"{counted} would go, {show.size(total)}; {stays}; `millrace gc --yes` removes them")


def du(as_json: Json = False) -> None:
    """Show how much disk the workspace uses, by stage and folder."""
    from pipeline_lib.workspace.usage import disk_usage

    usage = disk_usage(home())
    if as_json:
        show.json_out([dict(zip(usage.columns, row, strict=True)) for row in usage.rows])
        return
    at = usage.columns.index("bytes")
    shown = [[*row[:at], show.size(float(row[at])), *row[at + 1 :]] for row in usage.rows]
    show.table(usage.columns, shown, usage.title)


def sql(
    statement: Annotated[str, typer.Argument(metavar="SELECT", help="One reading SQL statement (DuckDB's dialect).")],
    run_id: Annotated[str, typer.Option("--run", metavar="RUN", help="The run whose tables are asked.")] = "latest",
    limit: Annotated[int, typer.Option(min=0, help="Rows at most (0: all).")] = 100,
    as_json: Json = False,
) -> None:
    """Ask the tables of a run, read-only: documents, signals, decisions, pairs, selection, scores … and runs, artifacts.

    `show tables` lists them, `describe documents` their columns. Ids are bytes: where doc_id = unhex('3f2a…').
    """
    from pipeline_lib.workspace.sql import query

    found = query(home(), statement, run_id=run_id, limit=limit + 1 if limit else 0)
    cut = bool(limit) and found.num_rows > limit
    rows = (found.slice(0, limit) if limit else found).to_pylist()
    if as_json:
        show.json_out(rows)
        return
    cells = [[_cell(row[name]) for name in found.column_names] for row in rows]
    if many := len(rows) > 1 or len(found.column_names) > 1:  # one text alone is shown whole
        cells = [[_short(cell) for cell in row] for row in cells]
    show.table(found.column_names, cells)
    if many and any(isinstance(cell, str) and cell.endswith(_CUT) for row in cells for cell in row):
        show.warn(f"texts are cut at {_LONGEST} characters; one alone, or --json, is whole")
    if not rows and (named := re.search(r"'([0-9a-f]{32})'", statement)) and "unhex" not in statement:
        show.warn(f"no rows; ids are bytes: compare them with unhex('{named[1]}')")
    if cut:
        show.warn(f"only the first {limit:,} rows; --limit 0 shows all")


def _cell(value: object) -> show.Cell:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, bytes):  # an id or a digest; else the beginning of what could not be read
        return value.hex() if len(value) in {16, 32} else value.decode("utf-8", "replace")
    return str(value)


def _short(cell: show.Cell) -> show.Cell:
    return cell[: _LONGEST - len(_CUT)] + _CUT if isinstance(cell, str) and len(cell) > _LONGEST else cell
