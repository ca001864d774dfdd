"""Tables of a run as a whole: its headline, plan and actual, the gate, limits, licences, stages, versions; what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path

from pipeline_lib.reporting.efficiency import PROMISED, Spent
from pipeline_lib.reporting.gather import Facts
from pipeline_lib.reporting.page import cell
from pipeline_lib.workspace.artifact import SummaryTable

OUTCOMES = {
    "completed": "completed",
    "nothing_new": "nothing new to learn tonight",
    "failed": "failed",
    "cancelled": "cancelled by a person",
    "killed": "killed from outside",
    "running": "still running",
}
Rows = list[list[str | float | int]]


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
    rows: Rows = [
        ["steps", cell(facts.plan["steps"]), facts.train["steps"]],
        ["tokens/s", cell(speeds[0]), speeds[1]],
    ]
    actual = {
        "expected_end_seconds": facts.seconds if facts.record.stages["train"].state == "made" else None,
        "final_dev_loss": facts.train["dev_loss"],
        "peak_memory_bytes": facts.train.get("peak_memory_bytes"),
    }
    for name, value in actual.items():
        what, unit, size = PROMISED[name]
        if (promise := facts.plan.get("promises", {}).get(name)) and value is not None:
            planned, low, high = (cell(float(promise[key]) / size) for key in ("value", "low", "high"))
            rows.append([f"{what} [{unit}]", f"{planned} ({low} to {high})", float(value) / size])
    for part, seconds in facts.record.graded.get("parts", {}).items():
        rows.append([f"{part} [s]", cell(float(seconds["planned"])), float(seconds["actual"])])
    return SummaryTable(("", "planned (90 % interval)", "actual"), rows, "Plan and actual")


def gate_table(facts: Facts) -> SummaryTable:
    """What the gate compared: the candidate, and where there is one the champion on the same items."""
    verdict = facts.record.verdict
    sides = [(name, verdict.get(name)) for name in ("candidate", "champion", "difference")]
    rows: Rows = [
        [name, side["value"], f"{side['low']:.4f} to {side['high']:.4f}", side.get("n", "")]
        for name, side in sides
        if isinstance(side, dict) and {"value", "low", "high"} <= side.keys()
    ]
    return SummaryTable(("", "value", "95 % interval", "items"), rows, f"The gate on {verdict.get('metric', 'the test side')}")


def licences_table(facts: Facts) -> SummaryTable:
    """What was chosen, by licence."""
    rows: Rows = [[name, documents, tokens] for name, documents, tokens in facts.licences]
    return SummaryTable(("licence", "documents", "estimated tokens"), rows, "Chosen tokens by licence")


def credits_table(facts: Facts) -> SummaryTable:
    """Whose text was chosen, and how its sources want to be named."""
    rows: Rows = [[name, licence, documents, tokens, credit] for name, licence, documents, tokens, credit in facts.credits]
    columns = ("source", "licence", "documents", "estimated tokens", "attribution")
    return SummaryTable(columns, rows, "Sources, licences and attributions")


def digests_table(facts: Facts) -> SummaryTable:
    """Which artifacts the run is made of: key (with the fingerprint of its recipe) and digest of its content."""
    rows: Rows = [[stage.name, stage.key, stage.digest] for stage in facts.stages if stage.key]
    return SummaryTable(("stage", "artifact", "digest"), rows, "Artifacts")


def stage_table(facts: Facts) -> SummaryTable:
    """Time, memory and identity of every stage."""
    rows: Rows = [[s.name, s.state, round(s.seconds, 1), round(s.peak_mib), s.digest[:12]] for s in facts.stages]
    return SummaryTable(("stage", "state", "seconds", "peak MiB", "output digest"), rows, "Stages")


def limits_table(facts: Facts) -> SummaryTable:
    """What the run spent beside what `resources` allowed."""
    limits = facts.config.resources
    spent = Spent.of(facts.seconds, limits)
    peak = max((stage.peak_mib for stage in facts.stages), default=0.0) / 1024
    search = next((stage.seconds for stage in facts.stages if stage.name == "tune" and stage.state == "made"), 0.0) / 60
    window = facts.window_seconds / 60
    rows: Rows = [
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
    rows: Rows = [[name, ", ".join(sorted(found[name]))] for name in sorted(found)]
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
