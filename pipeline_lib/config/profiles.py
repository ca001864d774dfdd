"""Profiles: how a training uses the machine, as policies. Calibration measures; a policy chooses among what was measured."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pipeline_lib.config.explain import nearest
from pipeline_lib.config.fields import Section, setting
from pipeline_lib.config.yaml_text import parse
from pipeline_lib.errors import ConfigError

TABLE = Path(__file__).with_name("profiles.yaml")
OF_PRIORITY = {"speed": "fast", "balanced": "balanced", "quality": "quality"}  # which profile a `plan.priority` asks for


class ProfileConfig(Section):
    """A policy: what is tried, and which of what was measured is taken."""

    what: str = setting("", "What it is for, in words", max_length=200)
    choose: Literal["fastest", "leanest", "most_exact"] = setting(
        "fastest", "Of what fits and is fast enough: the fastest, the one with the least memory, or the most exact arithmetic"
    )
    at_least_speed: float = setting(
        0.0, "Only what reaches this share of the fastest one's tokens a second", unit="share", ge=0, le=1
    )
    precision: list[Literal["fp32", "bf16", "fp16"]] = setting(list, "Only these; empty: whatever train.precision allows")
    micro_batch: int = setting(0, "Only this micro-batch; 0: any of calibrate.micro_batches", unit="sequences", ge=0)
    checkpointing: Literal["if_needed", "never", "always"] = setting(
        "if_needed", "Compute activations twice: only where nothing fits otherwise, never, always"
    )
    memory_share: float = setting(1.0, "Share of the memory limit that may be used", unit="share", gt=0, le=1)


@functools.cache
def built_in_profiles() -> Mapping[str, ProfileConfig]:
    """The profiles of the package by name."""
    table = parse(TABLE.read_text("utf-8"), TABLE.name).value
    return {name: ProfileConfig.model_validate(policy) for name, policy in table.items()}


def all_profiles(own: Mapping[str, ProfileConfig]) -> dict[str, ProfileConfig]:
    """A user's profiles and the package's; a user's goes before one of the same name."""
    return {**built_in_profiles(), **own}


def check_profile(name: str, known: Mapping[str, ProfileConfig]) -> None:
    """Refuse an unknown profile; `auto` is none.

    Raises:
        ConfigError: there is none of this name; names the nearest.
    """
    if name != "auto" and name not in known:
        near = nearest(name, sorted(known))
        fix = f"did you mean {near}?" if near else f"there are auto, {', '.join(known)}"
        raise ConfigError(f"there is no profile {name!r}", where="plan.profile", fix=fix)
