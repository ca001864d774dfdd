"""Where a run's time and money went: speed, waiting, everything beside the steps, what recoveries cost, estimate and actual."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline_lib.config.resources import ResourcesConfig
from pipeline_lib.reporting.evidence import Evidence, percent, usual
from pipeline_lib.reporting.findings import Finding, Numbers

# Share of the time of all steps spent waiting for data, and seconds of it: tiny steps of milliseconds wait their tenth, too.
STALL_SHARE, STALL_SECONDS = 0.1, 2.0
BESIDE_SHARE = 0.5  # of the training's time not spent on steps
# Promise → what it is called here, unit, size of the unit.
PROMISED = {
    "expected_end_seconds": ("time of the whole run", "s", 1),
    "final_dev_loss": ("dev loss at the end", "nats per token", 1),
    "peak_memory_bytes": ("peak memory of training", "GiB", 2**30),
    "energy_kwh": ("energy", "kWh", 1),
}
LEAST_SECONDS = 60.0  # a shorter training is start-up anyhow


@dataclass(frozen=True)
class Spent:
    """Energy and money of some seconds, by the prices of `resources`."""

    kwh: float
    money: float

    @classmethod
    def of(cls, seconds: float, resources: ResourcesConfig) -> Spent:
        """At the configured power draw and prices; 0 where nothing is configured."""
        kwh = resources.watts * seconds / 3.6e6
        return cls(kwh, resources.price_per_hour * seconds / 3600 + resources.price_per_kwh * kwh)


def waiting(evidence: Evidence) -> float:
    """Share of the time of all steps in which training waited for data."""
    total = float(np.nansum(evidence.seconds))
    return float(np.nansum(evidence.seconds * evidence.waited)) / total if total else 0.0


def efficiency(evidence: Evidence) -> Numbers:
    """Numbers about speed and use of the machine."""
    took, stepping = evidence.took.get("train", 0.0), float(np.nansum(evidence.seconds)) + evidence.again_seconds
    numbers: Numbers = []
    if len(evidence.speed):
        numbers += [
            ("median speed", usual(evidence.speed), "tokens/s"),
            ("share of the machine's peak (MFU)", evidence.metric("train", "mfu"), "share"),
            ("waiting for data", waiting(evidence), "share of step time"),
        ]
    if took and stepping:
        numbers.append(("start-up, evaluations and saves", max(1 - stepping / took, 0.0), "share of training"))
    total = sum(evidence.took.values())
    if took and total:
        numbers.append(("training", took / total, "share of all work"))
    spent = Spent.of(total, evidence.config.resources)
    trained = evidence.metric("train", "tokens")
    if spent.kwh:
        numbers.append(("energy of all work", spent.kwh, "kWh"))
    if spent.money:
        numbers.append(("cost of all work", spent.money, evidence.config.resources.currency))
        if trained:
            numbers.append(("cost of a million training tokens", 1e6 * spent.money / trained, evidence.config.resources.currency))
    return numbers


def data_stall(evidence: Evidence) -> Iterator[Finding]:
    """Training waited for its batches."""
    share = waiting(evidence)
    lost = float(np.nansum(evidence.seconds * evidence.waited))
    if share <= STALL_SHARE or lost < STALL_SECONDS:
        return
    worst = int(np.nanargmax(evidence.seconds * evidence.waited))
    yield Finding(
        "data_stall", "trouble", "The training waited for its data.",
        f"{percent(share)} of the time of all steps, {lost:.3g} s; the longest wait was "
        f"{evidence.seconds[worst] * evidence.waited[worst]:.2g} s at step {int(evidence.steps[worst]):,}.",
        "pack.codec", "none or lz4, the workspace on a faster disk, or less work beside the training on the same cores.",
    )  # fmt: skip


def beside_steps(evidence: Evidence) -> Iterator[Finding]:
    """Most of the training's time was not training."""
    took, stepping = evidence.took.get("train", 0.0), float(np.nansum(evidence.seconds)) + evidence.again_seconds
    if took < LEAST_SECONDS or not stepping or 1 - stepping / took < BESIDE_SHARE:
        return
    yield Finding(
        "beside_steps", "advice", "Less than half of the training's time went into steps.",
        f"{stepping:.0f} s of {took:.0f} s; the rest was start-up, {len(evidence.dev)} evaluations and saves.",
        "train.evaluate_every, train.save_every", "Larger values: fewer evaluations and saves.",
    )  # fmt: skip


def recoveries(evidence: Evidence) -> list[tuple[int, str, str, str, str]]:
    """(step, signal, action, evidence, cost) of every recovery."""
    rows = []
    for event in evidence.said("recovery"):
        detail = event.detail
        action = str(detail.get("action", "")).replace("_", " ") + (f" ({detail['why']})" if "why" in detail else "")
        rows.append((
            event.step, str(detail.get("signal", "")).replace("_", " "), action,
            _pairs(detail.get("evidence", {})), _pairs(detail.get("cost", {})),
        ))  # fmt: skip
    return rows


def _pairs(values: object) -> str:
    if not isinstance(values, dict):
        return ""
    plain = {name: value for name, value in values.items() if isinstance(value, int | float | str)}
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in plain.items()
    )


def again(evidence: Evidence) -> Numbers:
    """What was done twice."""
    if not evidence.again_steps:
        return []
    return [("steps made again", float(evidence.again_steps), "steps"), ("time of them", evidence.again_seconds, "s")]


def promises(evidence: Evidence) -> Iterator[Finding]:
    """Promises of the plan that were not kept. Energy and price follow from the time: they are told with it."""
    missed = {name: one for name, one in evidence.record.graded.get("promises", {}).items() if not one["inside"]}
    if "expected_end_seconds" in missed:
        missed = {name: one for name, one in missed.items() if name not in ("energy_kwh", "price")}
    for name, one in missed.items():
        what, unit, size = PROMISED.get(name, (name.replace("_", " "), one["unit"], 1))
        value, low, high, actual = (one[key] / size for key in ("value", "low", "high", "actual"))
        yield Finding(
            f"promise_{name}", "advice", f"The plan was {percent(abs(one['error']))} off: {what}.",
            f"promised {value:.4g} ({low:.4g} to {high:.4g}) {unit}, came {actual:.4g}.",
            "calibrate.seconds", "A longer calibration; later plans learn from this run by themselves.",
        )  # fmt: skip
