"""The report of a run: one self-contained HTML file, and the same as Markdown. A view: rendered for every run, never reused."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import jinja2
import yaml

from pipeline_lib.reporting import plots
from pipeline_lib.reporting.gather import Facts, gather
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
        "scores": scores_table(facts),
        "plan_table": plan_table(facts),
        "stage_table": stage_table(facts),
        "events": [(stage.name, event) for stage in facts.stages for event in stage.events],
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


def scores_table(facts: Facts) -> SummaryTable:
    """All scores with their intervals and what chance would give."""
    rows = [
        [name, round(s["value"], 4), f"{s['low']:.4f} to {s['high']:.4f}", s["chance"], s["n"]]
        for name, s in facts.scores.items()
    ]
    return SummaryTable(("score", "value", "95 % interval", "chance", "items"), rows, "Scores on the test side")


def plan_table(facts: Facts) -> SummaryTable:
    """What was planned beside what happened."""
    if not facts.plan or not facts.train:
        return SummaryTable((), (), "Plan and actual")
    rows: list[list[str | float | int]] = [["steps", facts.plan["steps"], facts.train["steps"]]]
    if "tokens_per_second" in facts.train:
        rows.append(["tokens/s", round(facts.plan["tokens_per_second"]), round(facts.train["tokens_per_second"])])
    promises = facts.plan.get("promises", {})
    actual = {
        "training_seconds": facts.train["seconds"],
        "final_dev_loss": facts.train["dev_loss"],
        "peak_memory_bytes": facts.train.get("peak_memory_bytes"),
    }
    for name, value in actual.items():
        if (promise := promises.get(name)) and value is not None:
            rows.append(
                [name.replace("_", " "), f"{cell(promise['value'])} ({cell(promise['low'])} to {cell(promise['high'])})", value]
            )
    return SummaryTable(("", "planned (90 % interval)", "actual"), rows, "Plan and actual")


def stage_table(facts: Facts) -> SummaryTable:
    """Time, memory and identity of every stage."""
    rows: list[list[str | float | int]] = [
        [s.name, s.state, round(s.seconds, 1), round(s.peak_mib), s.digest[:12]] for s in facts.stages
    ]
    return SummaryTable(("stage", "state", "seconds", "peak MiB", "output digest"), rows, "Stages")


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
