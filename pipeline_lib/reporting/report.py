"""The report of a run: one self-contained HTML file, and the same as Markdown. A view: rendered for every run, never reused."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import jinja2
import yaml

from pipeline_lib.config.resources import ResourcesConfig
from pipeline_lib.reporting import plots
from pipeline_lib.reporting.gather import Facts, gather
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
from pipeline_lib.workspace.files import write_atomic
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

VALIDATION = (
    certainty_table, bias_table, robustness_table, contamination_table, years_table, written_table, not_scored_table,
)  # fmt: skip


def report_folder(workspace: Workspace, run_id: str) -> Path:
    """Where a run's report lies."""
    return workspace.reports_folder / run_id


def write_report(workspace: Workspace, record: RunRecord, order: tuple[str, ...]) -> Path:
    """Render a run's report, whatever happened in it.

    Args:
        workspace: where the run's artifacts lie.
        record: the run.
        order: stage names in order of work (`pipeline_lib.stages.STAGES`).

    Returns:
        The HTML file; `report.md` and `model_card.md` lie beside it.
    """
    facts = gather(workspace, record, order)
    folder = report_folder(workspace, record.run_id)
    values = _values(facts)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = cell
    environment.filters["plain"] = plain
    pictures = {name: getattr(plots, name)(facts) for name in ("funnel", "loss", "speed", "trials")}
    write_atomic(folder / "report.html", environment.get_template("report.html.j2").render(**values, pictures=pictures))
    write_atomic(folder / "report.md", environment.get_template("report.md.j2").render(**values))
    if facts.scores:
        write_atomic(folder / "model_card.md", environment.get_template("model_card.md.j2").render(**values))
    return folder / "report.html"


def _values(facts: Facts) -> dict[str, Any]:
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
        "config": yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True),
        "commands": commands(record),
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


def stage_table(facts: Facts) -> SummaryTable:
    """Time, memory and identity of every stage."""
    rows: list[list[str | float | int]] = [
        [s.name, s.state, round(s.seconds, 1), round(s.peak_mib), s.digest[:12]] for s in facts.stages
    ]
    return SummaryTable(("stage", "state", "seconds", "peak MiB", "output digest"), rows, "Stages")


def limits_table(facts: Facts) -> SummaryTable:
    """What the run spent beside what `resources` allowed."""
    limits = ResourcesConfig.model_validate(facts.record.config["resources"])
    hours = facts.seconds / 3600
    kwh = limits.watts * hours / 1000
    money = limits.price_per_hour * hours + limits.price_per_kwh * kwh
    peak = max((stage.peak_mib for stage in facts.stages), default=0.0) / 1024
    search = next((stage.seconds for stage in facts.stages if stage.name == "tune" and stage.state == "made"), 0.0) / 60
    window = facts.window_seconds / 60
    rows: list[list[str | float | int]] = [
        ["time [minutes]", facts.seconds / 60, cell(window) if window else "none"],
        ["search [minutes]", search, cell(limits.search_share * window) if window else "none"],
        ["memory [GiB]", peak, cell(limits.memory_gib or 0.9 * float(facts.record.machine.get("memory_gib", 0)))],
    ]
    if limits.watts:
        rows.append(["energy [kWh]", kwh, "none"])
    if limits.price_per_hour or limits.price_per_kwh:
        rows.append([f"money [{limits.currency}]", money, cell(limits.money) if limits.money else "none"])
    return SummaryTable(("", "spent", "limit"), rows, "Spent and allowed")


def commands(record: RunRecord) -> list[tuple[str, str]]:
    """What to type next."""
    run = shlex.quote(record.run_id)
    return [
        ("See the run", f"millrace show {run}"),
        ("Make it again with the recorded decisions", f"millrace run --recorded {run}"),
        ("Run one stage again", f"millrace rerun {run} --stage train --force"),
        ("Ask the tables", f"millrace sql --run {run} 'FROM decisions LIMIT 20'"),
    ]


def cell(value: Any) -> str:
    """A table cell for people: thousands separated, long fractions cut, nothing else changed."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def plain(text: str) -> str:
    """Text from data in Markdown: one line, no markup, no control characters."""
    kept = "".join(c if c.isprintable() else " " for c in str(text))
    for mark in "\\`*_{}[]<>#|":
        kept = kept.replace(mark, "\\" + mark)
    return " ".join(kept.split())
