"""`millrace runs`, `show`, `pin`, `unpin`: the runs of a workspace, from their records."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import show
from flows.cli.command import CARE, LOOK, Json, RunId, command, home

if TYPE_CHECKING:
    from pipeline_lib.workspace.runs import RunRecord
    from pipeline_lib.workspace.workspace import Workspace


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "runs", example="millrace runs --last 5", panel=LOOK)(runs)
    command(app, "show", example="millrace show latest", panel=LOOK)(show_run)
    command(app, "pin", example="millrace pin 20261120-054512", panel=CARE)(pin)
    command(app, "unpin", example="millrace unpin 20261120-054512", panel=CARE)(unpin)


def runs(
    last: Annotated[int, typer.Option(min=1, help="How many, newest last.")] = 20,
    as_json: Json = False,
) -> None:
    """List the runs of this workspace."""
    from pipeline_lib.workspace.runs import RunBook

    workspace = home()
    records = list(RunBook(workspace.runs_folder).all())[-last:]
    if as_json:
        show.json_out([record.to_json() for record in records])
        return
    if not records:
        show.say(f"no runs in {show.path(workspace.root)} yet; start one: millrace run")
        return
    rows: list[list[show.Cell]] = []
    for record in records:
        states = [entry.state for entry in record.stages.values()]
        rows.append([
            record.run_id, record.pipeline, record.outcome, show.seconds(_lasted(record)), states.count("made"),
            states.count("reused"), str(record.verdict.get("outcome", "")), "pinned" if record.pinned else "", record.goal[:60],
        ])  # fmt: skip
    show.table(["run", "pipeline", "outcome", "lasted", "made", "reused", "gate", "", "goal"], rows)


def show_run(
    run_id: RunId = "latest",
    recorded: Annotated[
        bool, typer.Option("--recorded", help="Print calibrate, tune and plan as a file for `millrace run --recorded FILE.json`.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show one run: what happened to each stage, the scores, the report."""
    from pipeline_lib.workspace.runs import RunBook

    workspace = home()
    record = RunBook(workspace.runs_folder).load(run_id)
    if recorded:
        from pipeline_lib.planning.replay import course_of
        from pipeline_lib.run import RECORDED
        from pipeline_lib.workspace.recorded import export_recorded

        show.json_out({**export_recorded(workspace, record, RECORDED), "course": course_of(workspace, record)})
    elif as_json:
        show.json_out(record.to_json())
    else:
        print_run(workspace, record)


def pin(run_id: RunId) -> None:
    """Keep a run and everything it needs, whatever `gc` does."""
    _set_pin(run_id, True)


def unpin(run_id: RunId) -> None:
    """Let `gc` treat a run like any other again."""
    _set_pin(run_id, False)


def _set_pin(run_id: str, pinned: bool) -> None:
    from pipeline_lib.workspace.runs import RunBook

    record = RunBook(home().runs_folder).pin(run_id, pinned=pinned)
    show.say(f"{record.run_id} is {'pinned' if pinned else 'no longer pinned'}")


def print_run(workspace: Workspace, record: RunRecord) -> None:
    """A run for people; the table of each stage that ends a section of the work follows."""
    show.say(f"run {record.run_id} · {record.pipeline} · {record.outcome} in {show.seconds(_lasted(record))}")
    for label, text in (("goal", record.goal), ("from run", record.parent), ("error", record.error)):
        if text:
            show.say(f"{label}: {text}")
    for name, meant in record.resolved.items():
        show.say(f"{name} meant {meant}")
    rows: list[list[show.Cell]] = [
        [name, entry.state, show.seconds(entry.seconds), entry.error or _headline(record, name)]
        for name, entry in record.stages.items()
    ]
    show.say()
    show.table(["stage", "state", "took", "what"], rows)
    for stage in ("select", "validate"):
        _print_summary(workspace, record, stage)
    _print_graded(record)
    if record.verdict:
        reasons = record.verdict.get("reasons", [])
        show.say(f"\ngate: {'; '.join(filter(None, (record.verdict.get('outcome', ''), record.decided)))}")
        for reason in reasons:
            show.say(f"  {reason}")
    show.say()
    for label, text in (
        ("report", record.report),
        ("Prefect", record.prefect.get("url", "")),
        ("MLflow", record.mlflow.get("url", "")),
        ("compared in MLflow", record.mlflow.get("compare_url", "")),
    ):
        if text:
            show.say(f"{label}: {show.path(text)}")


def _print_graded(record: RunRecord) -> None:
    """The plan's promises and parts beside what came of them."""
    from pipeline_lib.reporting.efficiency import PROMISED

    rows: list[list[show.Cell]] = []
    for name, one in record.graded.get("promises", {}).items():
        what, unit, size = PROMISED.get(name, (name.replace("_", " "), one["unit"], 1))
        value, low, high, came = (_digits(one[which] / size) for which in ("value", "low", "high", "actual"))
        rows.append([what, value, f"{low} to {high}", came, unit, "yes" if one["inside"] else "no"])
    parts = record.graded.get("parts", {})
    rows += [[part, _digits(one["planned"]), "", _digits(one["actual"]), "s", ""] for part, one in parts.items()]
    if rows:
        show.say()
        show.table(["planned", "value", "90 % interval", "came", "unit", "inside"], rows, "Plan and actual")


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _print_summary(workspace: Workspace, record: RunRecord, stage: str) -> None:
    from pipeline_lib.errors import MillraceError

    ref = record.ref(stage)
    if ref is None:
        return
    try:
        manifest = workspace.store.manifest(ref.key)
    except MillraceError:  # collected or damaged since; the record still says what happened
        return
    if manifest.summary.columns:
        show.say()
        show.summary(manifest.summary)


def _headline(record: RunRecord, stage: str) -> str:
    ref = record.ref(stage)
    shown = [f"{name} {_number(value)}" for name, value in list(ref.metrics.items())[:4]] if ref else []
    return ", ".join(shown)


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"


def _lasted(record: RunRecord) -> float:
    """Seconds from start to end, all attempts; until the last sign of life while it runs."""
    if not record.started:
        return 0.0
    started = datetime.fromisoformat(record.started)
    ended = datetime.fromisoformat(record.ended) if record.ended else datetime.now(started.tzinfo)
    return (ended - started).total_seconds()
