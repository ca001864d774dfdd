"""What a person asks in words, as features: `overnight fine-tune, 8 GB` names a window, a task and a memory limit."""

from __future__ import annotations

import re

from pipeline_lib.config.presets import built_in

OVERNIGHT_HOURS = 10.0
_HOURS = {"minute": 1 / 60, "min": 1 / 60, "m": 1 / 60, "hour": 1.0, "hr": 1.0, "h": 1.0, "day": 24.0, "d": 24.0}
_TIMES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
_TASKS = (
    (r"fine-?\s?tun|\blora\b|adapter|instruct", "fine-tune"),
    (r"pre-?train|from scratch", "pretrain"),
    (r"\bcontinu", "continue"),
)
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([gt])(?:i?b)?|(m)i?b)\b")
_WINDOW = re.compile(r"(\d+(?:\.\d+)?)\s*(minute|min|hour|hr|h|day|d)s?\b", re.IGNORECASE)
_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmb]?)\s*(?:illion\s*)?(parameter|param|token)s?\b", re.IGNORECASE)


def features_in(text: str) -> dict[str, float | str]:
    """The features that a goal names; the rest of it is compared as text."""
    low = text.lower()
    found: dict[str, float | str] = {}
    for pattern, task in _TASKS:
        if re.search(pattern, low):
            found["task"] = task
            break
    if match := _MEMORY.search(low):
        found["memory_limit_gib"] = float(match[1]) * {"g": 1.0, "t": 1024.0, "m": 1 / 1024}[match[2] or match[3]]
    if match := _WINDOW.search(low):
        found["window_hours"] = float(match[1]) * _HOURS[match[2]]
    elif "overnight" in low or "a night" in low:
        found["window_hours"] = OVERNIGHT_HOURS
    for match in _COUNT.finditer(low):
        found["tokens" if match[3] == "token" else "parameters"] = float(match[1]) * _TIMES[match[2]]
    families = {preset.family for preset in built_in().values()}
    if named := sorted(family for family in families if re.search(rf"\b{family}\b", low)):
        found["family"] = named[0]
    return found
