"""Numbers written with a unit (`4h`, `16GB`, `5%`): recognised, converted to the field's unit and suggested, never guessed."""

from __future__ import annotations

import re

_TIME = {
    1.0: ("s", "sec", "secs", "second", "seconds"), 60.0: ("m", "min", "mins", "minute", "minutes"),
    3600.0: ("h", "hr", "hrs", "hour", "hours"), 86400.0: ("d", "day", "days"),
}  # fmt: skip
_BYTES = {
    1.0: ("b", "byte", "bytes"), 1e3: ("kb",), 1e6: ("mb",), 1e9: ("gb",), 1e12: ("tb",),
    2.0**10: ("k", "kib"), 2.0**20: ("m", "mib"), 2.0**30: ("g", "gib"), 2.0**40: ("t", "tib"),
}  # fmt: skip
_COUNT = {1.0: ("",), 1e3: ("k", "thousand"), 1e6: ("m", "million"), 1e9: ("b", "g", "bn", "billion")}
_SHARE = {0.01: ("%", "percent"), 1.0: ("",)}

# unit of a field -> (its size in base units, the words of its dimension)
_UNITS = {
    "seconds": (1.0, _TIME), "minutes": (60.0, _TIME), "hours": (3600.0, _TIME), "days": (86400.0, _TIME),
    "MB": (1e6, _BYTES), "GiB": (2.0**30, _BYTES),
    "share": (1.0, _SHARE),
    **dict.fromkeys(("tokens", "documents", "steps", "words", "trials", "runs", "sequences", "clusters"), (1.0, _COUNT)),
}  # fmt: skip

_WRITTEN = re.compile(r"\s*([-+]?\d[\d_,' ]*(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*([A-Za-z%/€$]*)\s*")


def suggestion(text: str, unit: str) -> str:
    """What to write instead of a number with a unit, for a field in `unit`; "" when the text is no number.

    Example:
        >>> suggestion("16GB", "GiB")
        'it is a number in GiB: write 14.9012'
    """
    match = _WRITTEN.fullmatch(text)
    if not match:
        return ""
    number = float(re.sub(r"[_,' ]", "", match[1]))
    size, words = _UNITS.get(unit, (1.0, {}))
    factor = next((factor for factor, names in words.items() if match[2].lower() in names), None)
    if factor is None and match[2] and match[2].lower() not in unit.lower():
        return f"it is a number in {unit}, not in {match[2]!r}" if unit else f"it is a plain number: write {number:g}"
    right = number if factor is None else number * factor / size
    return f"it is a number in {unit}: write {right:.6g}" if unit else f"it is a plain number: write {right:.6g}"
