"""The tree of configuration models as data: which field or section stands at a place, and every name there is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline_lib.config.yaml_text import Place


def extra(info: FieldInfo, name: str, default: Any = "") -> Any:
    """What `setting` noted about a field: "unit", "why", "identity", "path"."""
    noted = info.json_schema_extra
    return noted.get(name, default) if isinstance(noted, dict) else default


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as `X`, `list[X]` or `dict[str, X]`, or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (section_of(part) for part in get_args(annotation))
    return next((model for model in found if model), None)


def field_at(model: type[BaseModel], place: Place) -> tuple[FieldInfo | None, type[BaseModel] | None]:
    """The field that a place names (indices and dictionary keys passed over) and the section it belongs to."""
    info: FieldInfo | None = None
    section: type[BaseModel] | None = model
    owner = section
    for part in place:
        if section is None or (isinstance(part, int) and info is not None):
            continue
        if part not in section.model_fields:
            return None, section
        info, owner = section.model_fields[str(part)], section
        section = section_of(info.annotation)
    return info, owner


@dataclass(frozen=True)
class Field:
    """A leaf: its dotted name (`[]` marks list items), where it is defined, and its information."""

    name: str
    section: type[BaseModel]
    info: FieldInfo


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[Field]:
    """Every leaf of a model, in order of definition."""
    for name, info in model.model_fields.items():
        inner = section_of(info.annotation)
        if inner is None:
            yield Field(prefix + name, model, info)
        else:
            listed = "[]" if get_origin(info.annotation) is list else ""
            yield from fields(inner, f"{prefix}{name}{listed}.")


_SIMPLE = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null"}


def type_words(annotation: Any) -> str:
    """A type in words: `number`, `whole number`, `text`, `one of: a, b`, `list of text`."""
    inner = get_args(annotation)
    match get_origin(annotation):
        case None:
            words = _SIMPLE.get(annotation, "section" if section_of(annotation) else str(annotation))
        case origin if origin is Literal:
            words = "one of: " + ", ".join(str(value) for value in inner)
        case origin if origin is list:
            words = f"list of {type_words(inner[0])}"
        case origin if origin is dict:
            words = f"names, each with {type_words(inner[1])}"
        case origin if origin is tuple:
            words = f"[{', '.join(type_words(part) for part in inner)}]"
        case _:
            words = " or ".join(type_words(part) for part in inner)
    return words


def texts(value: BaseModel, place: Place = ()) -> Iterator[tuple[Place, FieldInfo, str]]:
    """Every text of a configuration, with its place and the field that holds it."""
    for name, info in type(value).model_fields.items():
        yield from _texts_in(getattr(value, name), info, (*place, name))


def _texts_in(value: Any, info: FieldInfo, place: Place) -> Iterator[tuple[Place, FieldInfo, str]]:
    if isinstance(value, BaseModel):
        yield from texts(value, place)
    elif isinstance(value, str):
        yield place, info, value
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts_in(item, info, (*place, index))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts_in(item, info, (*place, str(key)))
