"""Names and sizes as people write them; what cannot be meant is refused with the nearest that can."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.config.explain import nearest
from pipeline_lib.errors import ConfigError

BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
HOURS = {"s": 1 / 3600, "m": 1 / 60, "min": 1 / 60, "h": 1.0, "d": 24.0, "w": 168.0}
COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}


def known(name: str, names: Iterable[str], where: str) -> str:
    """The name, where it is one of `names`.

    Raises:
        ConfigError: it is not; the fix names the nearest, and all of them.
    """
    every = list(names)
    if name in every:
        return name
    near = nearest(str(name), every)
    fix = (f"did you mean {near}? " if near else "") + f"There are {', '.join(every)}"
    raise ConfigError(f"{name!r} is not known", where=where, fix=fix)


def several(told: Sequence[Any] | str | Path | Mapping[str, Any]) -> list[Any]:
    """What was named, also where one thing (a text, path or mapping) was named without a list around it."""
    return [told] if isinstance(told, str | Path | Mapping) else list(told)


def size_in(value: object, units: Mapping[str, float], where: str, example: str) -> float:
    """A size with its unit as a number; a plain number counts in the unit of the example.

    Args:
        value: `16GB`, `1.5 h`, 48.
        units: unit in small letters → how much it is.
        where: what is being read, for the error.
        example: how it may be written; its unit is that of plain numbers.

    Raises:
        ConfigError: it cannot be read; the fix shows how.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 and math.isfinite(value):
        return float(value) * units[re.sub(r"[\d.]", "", example).lower()]
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    if not match or not float(match[1]) or match[2].lower() not in units:
        named = ", ".join(unit for unit in units if unit)
        raise ConfigError(f"{value!r} is no size", where=where, fix=f'such as "{example}"; units: {named}')
    return float(match[1]) * units[match[2].lower()]


def count(value: object, where: str) -> int:
    """A whole number from 0.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0 or value % 1:
        raise ConfigError(f"{value!r} cannot be used", where=where, fix="a whole number from 0")
    return int(value)


def number(value: object, where: str, *, least: float = 0.0, most: float = math.inf) -> float:
    """A number within limits.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        wanted = f"a number from {least:g}" + ("" if math.isinf(most) else f" to {most:g}")
        raise ConfigError(f"{value!r} cannot be used", where=where, fix=wanted)
    return float(value)
