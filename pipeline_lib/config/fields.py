"""How a field says what it is: description, unit, default, reason; and whether it is part of a stage's identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every configuration model: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=False)


def setting(
    default: Any,
    description: str,
    *,
    unit: str = "",
    why: str = "",
    identity: bool = True,
    title: str = "",
    path: Sequence[str] | None = None,
    **limits: Any,
) -> Any:
    """A field of a section.

    Args:
        default: the default, or a callable that makes it.
        description: what it does, for forms, help and the reference page.
        unit: e.g. "documents", "seconds"; "" where there is none.
        why: the reason for the default (paper, measurement).
        identity: False for machine facts and display options, which never enter a fingerprint.
        title: a label for forms where the name does not say it.
        path: for texts that are paths or URLs: the words that are not (`train`, `champion`); checked by `config/paths.py`.
        limits: pydantic constraints (ge, gt, le, lt, min_length, max_length, pattern).
    """
    extra: dict[str, Any] = {}
    if unit:
        extra["unit"] = unit
    if why:
        extra["why"] = why
    if not identity:
        extra["identity"] = False
    if path is not None:
        extra["path"] = list(path)
    shown = description + (f" [{unit}]" if unit else "")
    made = {"default_factory": default} if callable(default) else {"default": default}
    return Field(**made, description=shown, title=title or None, json_schema_extra=extra or None, **limits)
