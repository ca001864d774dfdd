"""Recall of past runs: the nearest run records by their features, and careful guesses from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline_lib.workspace.runs import RunRecord

Features = Mapping[str, float | str]

# Sizes and rates differ by factors, not by amounts: compared on a log scale, recognised by the last word of their name.
LOG_WORDS = frozenset(
    {"tokens", "parameters", "second", "seconds", "bytes", "documents", "sequences", "steps", "size", "length", "rate", "width",
     "depth", "cores", "gib", "batch"}
)  # fmt: skip
UNEQUAL = 1.0  # distance of two unlike categories, or of a value that one side lacks: one standard deviation
# A factor of e counts as one standard deviation at least: among nearly equal runs, noise must not be blown up to distance.
SMALLEST_LOG_SPREAD = 1.0
# Fastest dense bf16 rate of one accelerator today (2.25e15, NVIDIA B200 data sheet) × 8 in a machine.
MOST_FLOPS_PER_SECOND = 1.8e16


@dataclass(frozen=True)
class Neighbour:
    """A past run like the one asked about. `doubts` says what is missing or cannot be true; a doubted run backs no guess."""

    run_id: str
    distance: float
    features: dict[str, float | str]
    reasons: tuple[str, ...]
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Guess:
    """A number guessed from past runs: the median, the range seen, and which runs said so."""

    value: float
    low: float
    high: float
    runs: tuple[str, ...] = field(default=())


def nearest(features: Features, k: int, records: Iterable[RunRecord]) -> list[Neighbour]:
    """The k run records most like `features`, nearest first; equal distances by run id, newest first.

    Distance is the root mean square over the asked features of: standardised difference (numbers; logs for sizes and rates),
    0 or 1 (categories), 1 where the record lacks the value or has an impossible one.
    """
    candidates = [record for record in records if record.features]
    usable = {record.run_id: _possible(record.features) for record in candidates}
    spreads = {name: _spread(name, value, usable.values()) for name, value in features.items() if not isinstance(value, str)}
    found = [_compare(features, record, usable[record.run_id], spreads) for record in candidates]
    newest_first = sorted(found, key=lambda neighbour: neighbour.run_id, reverse=True)
    return sorted(newest_first, key=lambda neighbour: neighbour.distance)[: max(k, 0)]


def guess_throughput(features: Features, records: Iterable[RunRecord], *, k: int = 5) -> Guess | None:
    """Tokens a second that training will reach, from up to k past runs on the same processor and accelerator.

    A run's rate is scaled by its parameters over those asked for: operations a token are 6·N. None when no past run can tell.
    """
    same_machine = [
        record for record in records if all(record.features.get(name, "") == features.get(name, "") for name in ("cpu", "gpu"))
    ]
    rates: dict[str, float] = {}
    for neighbour in nearest(features, k, same_machine):
        rate, parameters = neighbour.features.get("tokens_per_second"), neighbour.features.get("parameters")
        if neighbour.doubts or not isinstance(rate, int | float) or not isinstance(parameters, int | float):
            continue
        wanted = features.get("parameters", parameters)
        if isinstance(wanted, int | float) and wanted > 0:
            rates[neighbour.run_id] = rate * parameters / wanted
    if not rates:
        return None
    values = list(rates.values())
    return Guess(statistics.median(values), min(values), max(values), tuple(rates))


def doubts(features: Features) -> tuple[str, ...]:
    """What in a record's features cannot be true, in words; empty when all may be."""
    found = []
    for name, value in sorted(features.items()):
        if isinstance(value, str):
            continue
        if isinstance(value, bool) or not math.isfinite(value):
            found.append(f"{name} = {value} is not a number")
        elif _logarithmic(name) and (value < 0 or (value == 0 and not name.endswith("seconds"))):  # a stage may take no time
            found.append(f"{name} = {value:g} is not positive")
        elif name.endswith("loss") and value < 0:
            found.append(f"{name} = {value:g} is negative")
    rate, parameters = features.get("tokens_per_second"), features.get("parameters")
    if isinstance(rate, int | float) and isinstance(parameters, int | float) and 6 * rate * parameters > MOST_FLOPS_PER_SECOND:
        found.append(f"tokens_per_second = {rate:g} at {parameters:g} parameters is more than any machine computes")
    return tuple(found)


def _logarithmic(name: str) -> bool:
    return name.rpartition("_")[2] in LOG_WORDS


def _possible(features: Features) -> dict[str, float | str]:
    bad = {text.split(" ")[0] for text in doubts(features)}
    return {name: value for name, value in features.items() if name not in bad}


def _scaled(name: str, value: float) -> float:
    return math.log(value) if _logarithmic(name) else float(value)


def _number(name: str, value: float | str | None) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and (not _logarithmic(name) or value > 0)


def _spread(name: str, asked: float | str, rows: Iterable[Features]) -> float:
    """Standard deviation of a feature over the records, with a floor that keeps equal records from dividing by zero."""
    values = [_scaled(name, float(row[name])) for row in rows if _number(name, row.get(name))]
    deviation = statistics.pstdev(values) if len(values) > 1 else 0.0
    floor = SMALLEST_LOG_SPREAD if _logarithmic(name) else max(abs(float(asked)) * 0.1, 1e-9)
    return max(deviation, floor)


def _compare(asked: Features, record: RunRecord, usable: Features, spreads: Mapping[str, float]) -> Neighbour:
    parts: list[tuple[float, str]] = []
    missing: list[str] = []
    for name, value in asked.items():
        other = usable.get(name)
        if other is None:
            parts.append((UNEQUAL, f"{name} unknown there"))
            missing.append(f"{name} is missing")
        elif isinstance(value, str) or isinstance(other, str):
            parts.append((0.0, f"same {name}: {value}") if value == other else (UNEQUAL, f"{name} {other}, asked {value}"))
        elif not _number(name, value):
            parts.append((UNEQUAL, f"{name} = {value} cannot be compared"))
        else:
            difference = abs(_scaled(name, float(value)) - _scaled(name, float(other))) / spreads[name]
            parts.append((difference, _difference(name, float(value), float(other))))
    distance = math.sqrt(sum(part**2 for part, _ in parts) / len(parts)) if parts else 0.0
    reasons = tuple(text for _, text in sorted(parts, key=lambda part: part[0]))
    return Neighbour(record.run_id, distance, dict(record.features), reasons, _once([*doubts(record.features), *missing]))


def _difference(name: str, asked: float, other: float) -> str:
    if asked == other:
        return f"same {name}: {asked:g}"
    times = f" (×{other / asked:.2g})" if asked and _logarithmic(name) else ""
    return f"{name} {other:g}, asked {asked:g}{times}"


def _once(texts: Sequence[str]) -> tuple[str, ...]:
    """Without a "missing" for what is already called impossible."""
    said: dict[str, str] = {}
    for text in texts:
        said.setdefault(text.split(" ")[0], text)
    return tuple(said.values())
