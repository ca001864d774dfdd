"""The calibrated profile (micro-batch × precision) that a run uses: the fastest that fits into its memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_lib.config.resources import ResourcesConfig
from pipeline_lib.errors import RefusedError
from pipeline_lib.hardware.machine import training_memory_bytes

USABLE_SHARE = 0.9  # of the accelerator, else of the machine, when `resources.memory_gib` is 0: the rest is the system's
GIB = 1 << 30


def memory_limit_bytes(resources: ResourcesConfig) -> int:
    """What the run may use, bytes."""
    return int(resources.memory_gib * GIB) if resources.memory_gib else int(USABLE_SHARE * training_memory_bytes())


def choose_profile(calibrated: Mapping[str, Any], resources: ResourcesConfig) -> dict[str, Any]:
    """The fastest measured profile within the memory limit.

    Args:
        calibrated: details of `calibrate`.
        resources: the limits.

    Raises:
        RefusedError: no profile fits; names the smallest and what would let it run.
    """
    limit = memory_limit_bytes(resources)
    measured = [profile for profile in calibrated["profiles"] if not profile["error"]]
    fitting = [profile for profile in measured if profile["peak_memory_bytes"] <= limit]
    if not fitting:
        least = min(measured, key=lambda profile: profile["peak_memory_bytes"])
        enough = f"{least['peak_memory_bytes'] / GIB * 1.1:.2f}"
        raise RefusedError(
            f"training needs {least['peak_memory_bytes'] / GIB:.2f} GiB with the smallest profile measured "
            f"(micro-batch {least['micro_batch']}, {least['precision']}); {limit / GIB:.2f} GiB may be used",
            where="resources.memory_gib",
            fix=f"set resources.memory_gib to {enough} or more, or make calibrate.micro_batches, pack.sequence_length or "
            "the model smaller",
        )
    return dict(max(fitting, key=lambda profile: profile["tokens_per_second"]))
