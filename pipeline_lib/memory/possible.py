"""Which remembered values can be true: sizes and rates are positive, losses not negative, no machine is faster than all."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# Sizes and rates differ by factors, not by amounts: compared on a log scale, recognised by the last word of their name.
LOG_WORDS = frozenset(
    {"tokens", "parameters", "second", "seconds", "bytes", "documents", "sequences", "steps", "size", "length", "rate", "width",
     "depth", "cores", "gib", "batch", "hours"}
)  # fmt: skip
# Fastest dense bf16 rate of one accelerator today (2.25e15, NVIDIA B200 data sheet) × 8 in a machine.
MOST_FLOPS_PER_SECOND = 1.8e16
MOST_OFF = 10.0  # times: an estimate of memory that is further off was of something else


def logarithmic(name: str) -> bool:
    """Whether a feature is a size or a rate."""
    return name.rpartition("_")[2] in LOG_WORDS


def doubts(features: Mapping[str, float | str]) -> tuple[str, ...]:
    """What in a record's features cannot be true, in words; empty when all may be."""
    found = []
    for name, value in sorted(features.items()):
        if isinstance(value, str):
            continue
        if isinstance(value, bool) or not math.isfinite(value):
            found.append(f"{name} = {value} is not a number")
        elif logarithmic(name) and (value < 0 or (value == 0 and not name.endswith("seconds"))):  # a stage may take no time
            found.append(f"{name} = {value:g} is not positive")
        elif name.endswith("loss") and value < 0:
            found.append(f"{name} = {value:g} is negative")
        elif name == "memory_share" and not 1 / MOST_OFF <= value <= MOST_OFF:
            found.append(f"memory_share = {value:g} is no share of an estimate")
    rate, parameters = features.get("tokens_per_second"), features.get("parameters")
    if isinstance(rate, int | float) and isinstance(parameters, int | float) and 6 * rate * parameters > MOST_FLOPS_PER_SECOND:
        found.append(f"tokens_per_second = {rate:g} at {parameters:g} parameters is more than any machine computes")
    return tuple(found)


def scaled(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A feature's values as they are compared: logs of sizes and rates; what is missing or cannot be true is NaN."""
    values = np.where(np.isfinite(values), values, np.nan)
    if not logarithmic(name):
        return np.where(values < 0, np.nan, values) if name.endswith("loss") else values
    return np.log(np.where(values > 0, values, np.nan))
