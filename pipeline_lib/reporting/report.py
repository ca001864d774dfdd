"""The report of a run: one self-contained HTML file, and the same as Markdown. A view: rendered for every run, never reused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline_lib.errors import MillraceError
from pipeline_lib.reporting import plots, tables
from pipeline_lib.reporting.analysis import numbers_table, recoveries_table
from pipeline_lib.reporting.gather import Facts, TrainingLog, gather
from pipeline_lib.reporting.page import report_folder, templates
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
from pipeline_lib.workspace.files import write_atomic, write_json
from pipeline_lib.workspace.recorded import export_recorded
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace

VERDICTS = {
    "pass": "Passed the gate",
    "fail": "Did not pass the gate",
    "not_enough_evidence": "Not enough evidence to promote",
    "same": "The model is the champion already",
    "": "No verdict: the gate was not asked",
}
PICTURES = ("funnel", "loss", "speed", "domains", "trials", "search", "landscape")
VALIDATION = (
    certainty_table, bias_table, robustness_table, contamination_table, years_table, written_table, not_scored_table,
)  # fmt: skip


def write_report(workspace: Workspace, record: RunRecord, order: Sequence[str], log: TrainingLog | None = None) -> Path:
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
        "verdict": "; ".join(filter(None, (VERDICTS[record.verdict.get("outcome", "")], record.decided))),
        "outcome": tables.OUTCOMES.get(record.outcome, record.outcome),
        "headline": tables.headline(facts),
        "failed": next((stage for stage in facts.stages if stage.state == "failed"), None),
        "scores": scores_table(facts, tasks=False),
        "tasks": scores_table(facts, tasks=True),
        "validation_tables": [table(facts) for table in VALIDATION],
        "plan_table": tables.plan_table(facts),
        "training_tables": [
            evaluations_table(facts.log),
            parts_table(facts.log, "domain"),
            parts_table(facts.log, "source"),
            samples_table(facts.log),
            worst_table(facts.log),
        ],
        "stage_table": tables.stage_table(facts),
        "findings": facts.analysis.findings,
        "numbers": numbers_table(facts.analysis),
        "recoveries": recoveries_table(facts.analysis),
        "gate": tables.gate_table(facts),
        "limits": tables.limits_table(facts),
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
        "licences": tables.licences_table(facts),
        "credits": tables.credits_table(facts),
        "digests": tables.digests_table(facts),
        "versions": tables.versions_table(facts),
        "config": yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True),
        "commands": tables.commands(facts, folder),
    }
