"""What the Python API hands back: typed, readable by key, and JSON both ways."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from pipeline_lib.config.explain import nearest


def finite(value: object) -> float | None:
    """A number that JSON can hold; None for what is none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@dataclass(frozen=True)
class Result:
    """Every result names the run that stands behind it (`millrace show RUN`), and its report."""

    run_id: str
    report: str = ""
    notes: tuple[str, ...] = ()  # what was asked and could not be had, and why

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            near = nearest(name, list(self.keys()))
            raise KeyError(f"{name!r}" + (f"; did you mean {near}?" if near else f"; there are {', '.join(self.keys())}"))
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> tuple[str, ...]:
        """What can be read by key."""
        return tuple(item.name for item in fields(self))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "notes": list(self.notes)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """From `to_json`'s output."""
        return cls(**{**value, "notes": tuple(value.get("notes", ()))})


@dataclass(frozen=True)
class PreparedData(Result):
    """Documents chosen and packed."""

    total_examples: int = 0  # documents chosen for training
    total_tokens: int = 0
    quality_score: float = 0.0  # their mean quality, 0 to 1
    diversity_score: float = 0.0  # Vendi score: how many wholly different documents would be as diverse
    domains: dict[str, int] = field(default_factory=dict)  # documents by domain


@dataclass(frozen=True)
class Optimized(Result):
    """What a search found, and the plan made of it."""

    optimal_config: dict[str, Any] = field(default_factory=dict)
    best_metrics: dict[str, float | None] = field(default_factory=dict)  # by the names that were asked for
    trials: int = 0
    gain: float = 0.0  # share of the dev loss, over the starting values


@dataclass(frozen=True)
class Training(Result):
    """A training that was started, or has ended. `run_id` is empty until its process has opened the run."""

    id: str = ""
    state: str = "starting"  # starting | running | completed | nothing_new | failed | cancelled | killed
    model_path: str = ""
    dev_loss: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Monitored(Result):
    """A look at a training."""

    id: str = ""
    state: str = ""
    stage: str = ""
    progress: float = 0.0  # share of the planned steps, 0 to 1
    current_metrics: dict[str, float | None] = field(default_factory=dict)
    estimated_completion: str = ""  # ISO 8601; "" when it is over
    resource_utilization: dict[str, float | None] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Validated(Result):
    """Scores of a model on a person's own files and on what is built in."""

    overall_score: float | None = None  # mean of the metrics that were asked for, 0 to 1; None: none could be measured
    category_scores: dict[str, float] = field(default_factory=dict)  # by the names of `validation_data`
    metrics: dict[str, float | None] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95 %

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """From `to_json`'s output."""
        intervals = {name: (float(low), float(high)) for name, (low, high) in value.get("intervals", {}).items()}
        return super().from_json({**value, "intervals": intervals})
