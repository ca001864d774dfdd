"""Policies become numbers: which of the calibrated points a profile takes on this machine, within a run's memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline_lib.config.profiles import OF_PRIORITY, ProfileConfig, all_profiles, check_profile
from pipeline_lib.config.resources import ResourcesConfig
from pipeline_lib.errors import RefusedError
from pipeline_lib.hardware.machine import training_memory_bytes

USABLE_SHARE = 0.9  # of the accelerator, else of the machine, when `resources.memory_gib` is 0: the rest is the system's
GIB = 1 << 30
EXACTNESS = {"fp32": 2, "fp16": 1, "bf16": 0}  # bits of the products' fraction: 23, 10, 7
WAY_DOWN = ("balanced", "memory_efficient")  # what is tried, in this order, where the profile asked for does not fit
Point = dict[str, Any]


def memory_limit_bytes(resources: ResourcesConfig) -> int:
    """What the run may use, bytes."""
    return int(resources.memory_gib * GIB) if resources.memory_gib else int(USABLE_SHARE * training_memory_bytes())


def choose_profile(
    calibrated: Mapping[str, Any], resources: ResourcesConfig, *, profile: str = "auto", priority: str = "speed"
) -> Point:
    """The calibrated point that a profile takes within the memory limit.

    Args:
        calibrated: details of `calibrate`.
        resources: the limits.
        profile: `plan.profile`.
        priority: `plan.priority`, which decides where the profile is `auto`.

    Returns:
        The point with `profile`, the name of the one that was taken; `instead_of`: the one that was asked for and does not fit,
        or ""; `wanted_tokens_per_second`: what the one asked for would reach if memory had no limit; `peak_memory_bytes`:
        measured, else estimated; `measured`: which of the two.

    Raises:
        ConfigError: there is no such profile.
        RefusedError: no profile fits; names the smallest and what would let it run.
    """
    known = _policies(calibrated)
    check_profile(profile, known)
    asked = OF_PRIORITY[priority] if profile == "auto" else profile
    limit = memory_limit_bytes(resources)
    free = become(known[asked], calibrated, math.inf)
    wanted = {"wanted_tokens_per_second": free["tokens_per_second"]} if free else {}
    for name in dict.fromkeys((asked, *WAY_DOWN)):
        if point := become(known[name], calibrated, limit):
            told = {"profile": name, "instead_of": "" if name == asked else asked, "peak_memory_bytes": _memory(point)}
            told["measured"] = "peak_memory_bytes" in point
            return {**point, **wanted, **told}
    least = min(_points(calibrated), key=_memory)
    raise RefusedError(
        f"training needs {_memory(least) / GIB:.2f} GiB with the smallest profile measured "
        f"(micro-batch {least['micro_batch']}, {least['precision']}{', checkpointing' if _again(least) else ''}); "
        f"{limit / GIB:.2f} GiB may be used",
        where="resources.memory_gib",
        fix=f"set resources.memory_gib to {_memory(least) / GIB * 1.1:.2f} or more, or make calibrate.micro_batches, "
        "pack.sequence_length or the model smaller",
    )


def become(policy: ProfileConfig, calibrated: Mapping[str, Any], limit_bytes: float) -> Point | None:
    """What a policy takes of the calibrated points, or None when none fits.

    Args:
        policy: the profile.
        calibrated: details of `calibrate`.
        limit_bytes: memory that the run may use.
    """
    fitting = [
        point
        for point in _points(calibrated)
        if _memory(point) <= policy.memory_share * limit_bytes
        and (not policy.precision or point["precision"] in policy.precision)
        and policy.micro_batch in (0, point["micro_batch"])
    ]
    once, twice = ([point for point in fitting if _again(point) == again] for again in (False, True))
    allowed = {"never": once, "if_needed": once or twice, "always": twice or once}[policy.checkpointing]
    if not allowed:
        return None
    fastest = max(point["tokens_per_second"] for point in allowed)
    enough = [point for point in allowed if point["tokens_per_second"] >= policy.at_least_speed * fastest]
    if policy.choose == "leanest":
        return min(enough, key=lambda point: (_memory(point), -point["tokens_per_second"]))
    if policy.choose == "most_exact":
        return max(enough, key=lambda point: (EXACTNESS[point["precision"]], point["tokens_per_second"]))
    return max(enough, key=lambda point: point["tokens_per_second"])


def profile_table(
    calibrated: Mapping[str, Any], resources: ResourcesConfig, *, batch_tokens: int, optimizer: str = "adamw"
) -> list[dict[str, Any]]:
    """What each profile became on this machine; one that does not fit says so.

    Args:
        calibrated: details of `calibrate`.
        resources: the memory limit.
        batch_tokens: wanted tokens in an optimizer step, for the accumulation.
        optimizer: `train.optimizer`: its state's precision is its own.
    """
    limit, table = memory_limit_bytes(resources), []
    for name, policy in _policies(calibrated).items():
        point = become(policy, calibrated, limit)
        row: dict[str, Any] = {"profile": name, "what": policy.what, "fits": point is not None}
        if point:
            length = int(calibrated.get("sequence_length", 0))
            accumulation = max(round(batch_tokens / (length * point["micro_batch"])), 1) if length else 0
            row |= {
                "micro_batch": point["micro_batch"],
                "accumulation": accumulation,
                "sequence_length": length,  # the cache's: another one would need a cache of that length
                "precision": point["precision"],
                "activation_checkpointing": _again(point),
                "optimizer_state": "8 bit" if optimizer == "adamw_8bit" else "fp32",
                "threads": calibrated.get("threads", 0),
                "loader_workers": 0,  # the training reads its batches itself …
                "prefetch": 0,
                "data_wait_share": calibrated.get("data_wait_share", 0.0),  # … which takes this share of a step
                "tokens_per_second": point["tokens_per_second"],
                "memory_bytes": _memory(point),
                "measured": "peak_memory_bytes" in point,
            }
        table.append(row)
    return table


def at_batch(profile: Mapping[str, Any], calibrated: Mapping[str, Any], micro_batch: int) -> Point:
    """A profile for passes of fewer sequences than it was measured with: the nearest smaller point that was measured.

    Args:
        profile: of `choose_profile`.
        calibrated: details of `calibrate`.
        micro_batch: sequences in a pass.
    """
    kind = (profile["precision"], _again(profile))
    alike = sorted((p for p in _points(calibrated) if (p["precision"], _again(p)) == kind), key=lambda p: int(p["micro_batch"]))
    if micro_batch >= profile["micro_batch"] or not alike:
        return dict(profile)
    point = [alike[0], *(p for p in alike if p["micro_batch"] <= micro_batch)][-1]
    told = {"peak_memory_bytes": _memory(point), "measured": "peak_memory_bytes" in point}
    return {**at_speed(profile, point["tokens_per_second"] / profile["tokens_per_second"]), **told}


def at_speed(profile: Mapping[str, Any], share: float) -> Point:
    """A profile whose speeds are multiplied by `share`."""
    rates = ("tokens_per_second", "wanted_tokens_per_second")
    return {**profile, **{name: profile[name] * share for name in rates if name in profile}}


def _policies(calibrated: Mapping[str, Any]) -> dict[str, ProfileConfig]:
    own = {name: ProfileConfig.model_validate(policy) for name, policy in calibrated.get("policies", {}).items()}
    return all_profiles(own)


def _points(calibrated: Mapping[str, Any]) -> list[Point]:
    return [dict(point) for point in [*calibrated["profiles"], *calibrated.get("variants", [])] if not point["error"]]


def _memory(point: Mapping[str, Any]) -> int:
    """Measured, else estimated, bytes."""
    return int(point.get("peak_memory_bytes") or point["estimated_bytes"])


def _again(point: Mapping[str, Any]) -> bool:
    return bool(point.get("activation_checkpointing", False))
