"""Which part of a configuration value is a stage's identity."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


def identity_of(value: Any) -> Any:
    """Plain JSON of a section, value or list of them, without the fields marked `identity=False`."""
    if isinstance(value, BaseModel):
        return {
            name: identity_of(getattr(value, name))
            for name, info in type(value).model_fields.items()
            if not (isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("identity") is False)
        }
    if isinstance(value, list | tuple):
        return [identity_of(item) for item in value]
    if isinstance(value, dict):
        return {key: identity_of(item) for key, item in value.items()}
    return value
