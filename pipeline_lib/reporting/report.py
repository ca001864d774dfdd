"""The report of a run: one self-contained HTML file, and the same as Markdown. A view: rendered for every run, never reused."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml

from pipeline_lib.errors import MillraceError
from pipeline_lib.reporting import plots
from pipeline_lib.reporting.analysis import numbers_table, recoveries_table
from pipeline_lib.reporting.efficiency import Spent
from pipeline_lib.reporting.gather import Facts, TrainingLog, gather
from pipeline_lib.reporting.page import cell, report_folder, templates
from pipeline_lib.reporting.scores import (
    bias_table,
    certainty_table,
    contamination_table,
    not_scored_table,
    robustness_table,
    scores_table,
    written_table,
    years_table,
)
from pipeline_lib.reporting.training import evaluations_table, parts_table, samples_table, worst_table
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.files import write_atomic, write_json
from pipeline_lib.workspace.recorded import export_recorded
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace

VERDICTS = {
    "pass": "Passed the gate",
    "fail": "Did not pass the gate",
    "not_enough_evidence": "Not enough evidence to promote",
    "same": "The model is the champion already",
    "": "No verdict",
}
OUTCOMES = {
    "completed": "completed",
    "nothing_new": "nothing new to learn tonight",
    "failed": "failed",
    "cancelled": "cancelled by a person",
    "killed": "killed from outside",
    "running": "still running",
}

PICTURES = ("funnel", "loss", "speed", "domains", "trials", "search")
VALIDATION = (
    certainty_table, bias_table, robustness_table, contamination_table, years_table, written_table, not_scored_table,
)  # fmt: skip


def write_report(workspace: Workspace, record: RunRecord, order: tuple[str, ...], log: TrainingLog | None = None) -> Path:
    """Render a run's report, whatever happened in it.

    Args:
        workspace: where the run's artifacts lie.
        record: the run.
        order: stage names in order of work (`pipeline_lib.stages.STAGES`).
        log: reads the log of a training that published nothing (`pipeline_lib.metrics.training_log`); None: it is not shown.

    Returns:
        The HTML file; beside it lie `report.md`, `analysis.json`, `config.yaml`, `recorded.json` (what
        calibrate, tune and plan decided) and, with scores, `model_card.md`.
    """
    facts = gather(workspace, record, order, log)
    folder = report_folder(workspace, record.run_id)
    try:
        _write_recipe(workspace, facts, folder)
    except MillraceError as error:  # collected or damaged since
        facts.missing.append(f"recorded decisions: {error.what}")
    values = _values(facts, folder)
    environment = templates()
    pictures = {name: getattr(plots, name)(facts) for name in PICTURES}
    write_json(folder / "analysis.json", facts.analysis.to_json())
    write_atomic(folder / "report.html", environment.get_template("report.html.j2").render(**values, pictures=pictures))
    write_atomic(folder / "report.md", environment.get_template("report.md.j2").render(**values))
    if facts.scores:
        write_atomic(folder / "model_card.md", environment.get_template("model_card.md.j2").render(**values))
    return folder / "report.html"


def _write_recipe(workspace: Workspace, facts: Facts, folder: Path) -> None:
    """What makes the run again anywhere: its configuration, and what its recorded stages decided."""
    write_atomic(folder / "config.yaml", yaml.safe_dump(facts.record.config, sort_keys=False, allow_unicode=True))
    if decided := [stage.name for stage in facts.stages if stage.kind == "recorded"]:
        write_json(folder / "recorded.json", export_recorded(workspace, facts.record, decided))


def _values(facts: Facts, folder: Path) -> dict[str, Any]:
    record = facts.record
    return {
        "facts": facts,
        "record": record,
        "verdict": VERDICTS[record.verdict.get("outcome", "")],
        "outcome": OUTCOMES.get(record.outcome, record.outcome),
        "headline": headline(facts),
        "failed": next((stage for stage in facts.stages if stage.state == "failed"), None),
        "scores": scores_table(facts, tasks=False),
        "tasks": scores_table(facts, tasks=True),
        "validation_tables": [table(facts) for table in VALIDATION],
        "plan_table": plan_table(facts),
        "training_tables": [
            evaluations_table(facts.log),
            parts_table(facts.log, "domain"),
            parts_table(facts.log, "source"),
            samples_table(facts.log),
            worst_table(facts.log),
        ],
        "stage_table": stage_table(facts),
        "findings": facts.analysis.findings,
        "numbers": numbers_table(facts.analysis),
        "recoveries": recoveries_table(facts.analysis),
        "gate": gate_table(facts),
        "limits": limits_table(facts),
        "links": [
            (name, url)
            for name, url in (
                ("This run in Prefect", record.prefect.get("url")),
                ("This run in MLflow", record.mlflow.get("url")),
                ("Compared in MLflow", record.mlflow.get("compare_url")),
            )
            if url
        ],
        "events": [(stage.name, event) for stage in facts.stages for event in stage.events if event["kind"] != "evaluated"],
        "versions": versions_table(facts),
        "config": yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True),
        "commands": commands(facts, folder),
    }


def headline(facts: Facts) -> list[tuple[str, str]]:
    """The few numbers everybody asks for first."""
    lines = [("Outcome", OUTCOMES.get(facts.record.outcome, facts.record.outcome))]
    numbers = dict(facts.funnel)
    if "documents" in numbers:
        lines.append(("Documents", f"{numbers['documents']:,} in, {numbers.get('chosen for train', 0):,} chosen for training"))
    if facts.train:
        train = facts.train
        lines.append(("Model", f"{train['parameters']:,} parameters, {train['steps']:,} steps, {train['tokens_seen']:,} tokens"))
        lines.append(("Dev loss", f"{train['dev_loss']:.3f} nats per token"))
    if "bits_per_byte" in facts.scores:
        score = facts.scores["bits_per_byte"]
        lines.append(("Test", f"{score['value']:.3f} bits per byte ({score['low']:.3f} to {score['high']:.3f})"))
    spent = f"{facts.seconds / 60:.1f} minutes"
    lines.append(("Time", f"{spent} of a window of {facts.window_seconds / 60:.1f}" if facts.window_seconds else spent))
    return lines


def plan_table(facts: Facts) -> SummaryTable:
    """What was planned beside what happened."""
    if not facts.plan or not facts.train:
        return SummaryTable((), (), "Plan and actual")
    speeds = round(facts.plan["tokens_per_second"]), round(facts.train["tokens_per_second"])
    rows: list[list[str | float | int]] = [
        ["steps", cell(facts.plan["steps"]), facts.train["steps"]],
        ["tokens/s", cell(speeds[0]), speeds[1]],
    ]
    mib = 2**20
    actual = {  # promise → (what it is called here, its actual value, divisor)
        "expected_end_seconds": ("whole run [s]", facts.seconds if facts.record.stages["train"].state == "made" else None, 1),
        "final_dev_loss": ("final dev loss [nats per token]", facts.train["dev_loss"], 1),
        "peak_memory_bytes": ("peak memory of training [MiB]", facts.train.get("peak_memory_bytes"), mib),
    }
    for name, (label, value, unit) in actual.items():
        if (promise := facts.plan.get("promises", {}).get(name)) and value is not None:
            planned, low, high = (cell(float(promise[key]) / unit) for key in ("value", "low", "high"))
            rows.append([label, f"{planned} ({low} to {high})", float(value) / unit])
    for part, seconds in facts.record.graded.get("parts", {}).items():
        rows.append([f"{part} [s]", cell(float(seconds["planned"])), float(seconds["actual"])])
    return SummaryTable(("", "planned (90 % interval)", "actual"), rows, "Plan and actual")


def gate_table(facts: Facts) -> SummaryTable:
    """What the gate compared: the candidate, and where there is one the champion on the same items."""
    verdict = facts.record.verdict
    sides = [(name, verdict.get(name)) for name in ("candidate", "champion", "difference")]
    rows: list[list[str | float | int]] = [
        [name, side["value"], f"{side['low']:.4f} to {side['high']:.4f}", side.get("n", "")]
        for name, side in sides
        if isinstance(side, dict) and {"value", "low", "high"} <= side.keys()
    ]
    return SummaryTable(("", "value", "95 % interval", "items"), rows, f"The gate on {verdict.get('metric', 'the test side')}")


def stage_table(facts: Facts) -> SummaryTable:
    """Time, memory and identity of every stage."""
    rows: list[list[str | float | int]] = [
        [s.name, s.state, round(s.seconds, 1), round(s.peak_mib), s.digest[:12]] for s in facts.stages
    ]
    return SummaryTable(("stage", "state", "seconds", "peak MiB", "output digest"), rows, "Stages")


def limits_table(facts: Facts) -> SummaryTable:
    """What the run spent beside what `resources` allowed."""
    limits = facts.config.resources
    spent = Spent.of(facts.seconds, limits)
    peak = max((stage.peak_mib for stage in facts.stages), default=0.0) / 1024
    search = next((stage.seconds for stage in facts.stages if stage.name == "tune" and stage.state == "made"), 0.0) / 60
    window = facts.window_seconds / 60
    rows: list[list[str | float | int]] = [
        ["time [minutes]", facts.seconds / 60, cell(window) if window else "none"],
        ["search [minutes]", search, cell(limits.search_share * window) if window else "none"],
        ["memory [GiB]", peak, cell(limits.memory_gib or 0.9 * float(facts.record.machine.get("memory_gib", 0)))],
    ]
    if limits.watts:
        rows.append(["energy [kWh]", spent.kwh, "none"])
    if limits.price_per_hour or limits.price_per_kwh:
        rows.append([f"money [{limits.currency}]", spent.money, cell(limits.money) if limits.money else "none"])
    return SummaryTable(("", "spent", "limit"), rows, "Spent and allowed")


def versions_table(facts: Facts) -> SummaryTable:
    """The libraries that the stages ran with, and the code."""
    found: dict[str, set[str]] = {}
    for stage in facts.stages:
        for name, version in stage.versions.items():
            found.setdefault(name, set()).add(version)
    rows: list[list[str | float | int]] = [[name, ", ".join(sorted(found[name]))] for name in sorted(found)]
    return SummaryTable(("library", "version"), rows, "Versions")


def commands(facts: Facts, folder: Path) -> list[tuple[str, str]]:
    """What to type next."""
    run, recipe = shlex.quote(facts.record.run_id), shlex.quote(str(folder / "config.yaml"))
    again = f"millrace run --config {recipe}"
    if any(stage.kind == "recorded" for stage in facts.stages):
        again += f" --recorded {shlex.quote(str(folder / 'recorded.json'))}"
    return [
        ("See the run", f"millrace show {run}"),
        ("Make it again, here or in another workspace, with the recorded decisions", again),
        ("Run one stage again", f"millrace rerun {run} --stage train --force"),
        ("Ask the tables", f"millrace sql --run {run} 'FROM decisions LIMIT 20'"),
    ]
