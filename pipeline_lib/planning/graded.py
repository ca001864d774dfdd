"""Promises of the plan against what came of them, once a run is over; and how past promises were kept."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipeline_lib.errors import MillraceError

if TYPE_CHECKING:
    from pipeline_lib.workspace.runs import RunRecord
    from pipeline_lib.workspace.workspace import Workspace

AFTER_RUNS, AFTER_SAFETY, AFTER_RANGE = 5, 1.1, (0.4, 2.0)
AFTER_USUAL = 0.6  # of what is reserved, before any run has told
SLOWED = 0.3  # beyond the usual drift of 8–12 %: something else was at work
MADE = "made"  # a training that was reused kept no promise of this run


def grade(workspace: Workspace, record: RunRecord, *, until: datetime | None = None) -> dict[str, Any]:
    """Every promise of a run's plan beside what came of it, and the planned seconds beside the actual ones, by part.

    Args:
        workspace: where the run's artifacts lie.
        record: a run that has ended.
        until: when the report was written and the servers had everything; None: when the record was closed, which is before.

    Returns:
        {"promises": {name: {value, low, high, unit, actual, error, inside}}, "parts": {part: {planned, actual}}, "time_error",
        "speed_error" (of the training against the calibrated speed), "speed_error_from_memory" (against what past runs alone let
        expect); None where unknown}; `error` is (actual − promised) / promised. Empty where the run did not train by a plan of
        its own, or did not end well.
    """
    train, planned = record.ref("train"), record.ref("plan")
    if record.outcome != "completed" or train is None or planned is None or record.stages["train"].state != MADE:
        return {}
    try:
        plan, trained = workspace.store.manifest(planned.key).details, workspace.store.manifest(train.key)
    except MillraceError:
        return {}
    begun = datetime.fromisoformat(record.window_from or record.started)
    seconds = ((until or datetime.fromisoformat(record.ended)) - begun).total_seconds()
    resources = record.config["resources"]
    kwh = resources["watts"] * seconds / 3600 / 1000
    actual = {
        "expected_end_seconds": seconds if record.stages["plan"].state == MADE else None,
        "final_dev_loss": trained.metrics.get("dev_loss"),
        "peak_memory_bytes": trained.metrics.get("peak_memory_bytes"),
        "energy_kwh": kwh,
        "price": resources["price_per_hour"] * seconds / 3600 + resources["price_per_kwh"] * kwh,
    }
    promises = {
        name: _graded(promise, float(actual[name]))
        for name, promise in plan.get("promises", {}).items()
        if actual.get(name) is not None
    }
    speed, recalled = trained.metrics.get("tokens_per_second"), plan.get("recalled", {}).get("tokens_per_second", {}).get("value")
    from_memory = round(float(speed) / recalled - 1, 5) if speed and recalled else None
    calibrated = plan.get("tokens_per_second")
    slowed = round(float(speed) / calibrated - 1, 5) if speed and calibrated else None
    told = {"speed_error": slowed, "speed_error_from_memory": from_memory}
    return {"promises": promises, **told, **_parts(record, plan, seconds)}


def slowed_down(graded: Mapping[str, Any]) -> bool:
    """Whether a training was far slower than what had been calibrated just before it."""
    return (graded.get("speed_error") or 0.0) < -SLOWED


def _graded(promise: Mapping[str, Any], actual: float) -> dict[str, Any]:
    told = {name: promise[name] for name in ("value", "low", "high", "unit")}
    error = (actual - promise["value"]) / promise["value"] if promise["value"] else 0.0
    return {**told, "actual": actual, "error": round(error, 5), "inside": promise["low"] <= actual <= promise["high"]}


def _parts(record: RunRecord, plan: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Training, and what comes after it: the parts that a plan foresees. What lay before it had already happened."""
    window = dict(plan.get("window", []))
    if record.stages["plan"].state != MADE or "spent before the plan" not in window or len(record.attempts) > 1:
        return {"parts": {}, "time_error": None}
    apart = {"spent before the plan", "validation and report", "margin", "unused"}
    training = sum(s for part, s in window.items() if part not in apart)
    after = float(plan["reserve"].get("after_expected", window["validation and report"]))
    trained = record.stages["train"].seconds
    parts = {
        "training": {"planned": round(training, 3), "actual": round(trained, 3)},
        "validation and report": {
            "planned": round(after, 3),
            "estimated": round(float(plan["reserve"].get("after_estimated", 0.0)), 3),
            "actual": round(max(seconds - window["spent before the plan"] - trained, 0.0), 3),
        },
    }
    planned_seconds = training + after
    return {
        "parts": parts,
        "time_error": round((seconds - window["spent before the plan"] - planned_seconds) / planned_seconds, 5),
    }


def after_factors(records: Iterable[RunRecord], cpu: str) -> tuple[float, float]:
    """What to multiply an estimate of validation and report by, to reserve time for them and to expect their end.

    To reserve: the largest that the newest runs on this processor needed, and a little more. That more is needed is believed at
    once; that less is enough by one part in `AFTER_RUNS` with every run that says so, since one quiet run says nothing of a busy
    night. To expect: the median of these runs.

    Returns:
        (reserved, expected); (1, `AFTER_USUAL`) when none has told.
    """
    told = [
        float(part["actual"]) / float(part["estimated"])
        for record in records
        if record.machine.get("cpu") == cpu
        and (part := record.graded.get("parts", {}).get("validation and report", {})).get("estimated")
    ][-AFTER_RUNS:]
    if not told:
        return 1.0, AFTER_USUAL
    low, high = AFTER_RANGE
    factor = min(max(AFTER_SAFETY * max(told), low), high)
    return max(factor, 1 - (1 - factor) * len(told) / AFTER_RUNS), statistics.median(told)


def coverage(records: Iterable[RunRecord]) -> dict[str, dict[str, float]]:
    """How past promises were kept: {name: {"runs", "inside" (share of their 90 % intervals), "error" (median, absolute)}}."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        for name, graded in record.graded.get("promises", {}).items():
            found.setdefault(name, []).append(graded)
    return {
        name: {
            "runs": len(all_graded),
            "inside": round(sum(g["inside"] for g in all_graded) / len(all_graded), 4),
            "error": round(statistics.median(abs(g["error"]) for g in all_graded), 5),
        }
        for name, all_graded in found.items()
    }


def in_metrics(graded: Mapping[str, Any]) -> dict[str, float]:
    """As numbers for the tracker: `plan_error/…` by promise and part, and the share of promises inside their interval."""
    promises, parts = graded.get("promises", {}), graded.get("parts", {})
    numbers = {f"plan_error/{name}": float(one["error"]) for name, one in promises.items()}
    for part, one in parts.items():
        if one["planned"]:
            numbers[f"plan_error/{part.replace(' ', '_')}"] = (one["actual"] - one["planned"]) / one["planned"]
    if promises:
        numbers["plan_promises_inside"] = sum(one["inside"] for one in promises.values()) / len(promises)
    return numbers
