"""Settings that a search has chosen, put in the place of the configured ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from pipeline_lib.config.fields import Section
from pipeline_lib.errors import ConfigError


def taken(chosen: Mapping[str, Any], **sections: Section) -> dict[str, Any]:
    """The sections with what was chosen in its place; what belongs to no section that is given is left out.

    Args:
        chosen: dotted name (`train.lora.rank`) -> value.
        sections: by name.

    Raises:
        ConfigError: a value is none for its field, or contradicts another one.
    """
    changed: dict[str, dict[str, Any]] = {}
    for path, value in chosen.items():
        section, *inner, last = path.split(".")
        if section not in sections:
            continue
        place = changed.setdefault(section, sections[section].model_dump())
        for part in inner:
            place = place[part]
        place[last] = value
    found: dict[str, Any] = dict(sections)
    for name, values in changed.items():
        try:
            found[name] = type(sections[name]).model_validate(values)
        except ValidationError as error:
            raise ConfigError(error.errors()[0]["msg"].removeprefix("Value error, "), where=f"tune.choices ({name})") from None
    return found
