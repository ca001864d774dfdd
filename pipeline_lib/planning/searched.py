"""What a search has chosen, in the place of what is configured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_lib.config.choice import taken
from pipeline_lib.config.model import ModelConfig, PlanConfig, TrainConfig
from pipeline_lib.planning.memory import ParameterCount
from pipeline_lib.planning.profiles import at_speed

MOST_WARMUP = 0.5  # share of the steps, whatever factor was best


def with_search(
    tuned: Mapping[str, Any], *, plan: PlanConfig, train: TrainConfig, model: ModelConfig
) -> tuple[PlanConfig, TrainConfig, ModelConfig]:
    """The sections that the plan is made with; the learning rate's factor and the weight decay are read where they are used.

    Args:
        tuned: details of `tune`.
        plan, train, model: as configured.
    """
    best = tuned["best"]
    sections = taken(best.get("chosen", {}), train=train, model=model)
    share = min(plan.warmup_share * float(best.get("warmup_share_factor", 1.0)), max(MOST_WARMUP, plan.warmup_share))
    return plan.model_copy(update={"warmup_share": share}), sections["train"], sections["model"]


def at_size(profile: Mapping[str, Any], configured: ParameterCount, chosen: ParameterCount) -> dict[str, Any]:
    """A calibrated profile for a model of another size: operations a token are 6·N, so speed goes with 1/N."""
    return at_speed(profile, configured.total / chosen.total)
