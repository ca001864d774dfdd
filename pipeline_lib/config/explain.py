"""Pydantic's errors as plain words: the field, the value, what would be right, the nearest known name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline_lib.config.units import suggestion
from pipeline_lib.config.walk import extra, field_at, fields, section_of, type_words
from pipeline_lib.config.yaml_text import Place, Problem, dotted
from pipeline_lib.secrets import hide_passwords

_LIMITS = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}
_NAMES = re.compile(r"\b[a-z_]+(?:\.[a-z_]+)+\b")
MAX_SHOWN = 80


def shown(value: Any) -> str:
    """A value for a message: short, on one line, passwords in URLs hidden."""
    text = hide_passwords(repr(value) if isinstance(value, str) else _plain(value))
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def nearest(name: str, known: list[str]) -> str:
    """The most similar known name, or ""."""
    return next(iter(get_close_matches(name, known, 1, cutoff=0.6)), "")


def explain(model: type[BaseModel], error: Mapping[str, Any], where: Callable[[Place], str]) -> Problem:
    """One of pydantic's `errors()` as a Problem.

    Args:
        model: the model that was validated.
        error: {"type", "loc", "input", "ctx", "msg"}.
        where: the place in a file (or the option) that a configuration place came from.
    """
    place: Place = tuple(error["loc"])
    if error["type"] == "extra_forbidden":
        return _unknown(model, place, error["input"], where(place))
    if error["type"] == "value_error":  # a contradiction that a validator found; it names the values itself
        what = str(error["ctx"]["error"])
        named = (where(tuple(name.split("."))) for name in _NAMES.findall(what)) if not place else ()
        return Problem(place, what, where=where(place) or next(filter(None, named), ""))
    info, _ = field_at(model, place)
    what, fix = _wrong(info, error)
    return Problem(place, what, fix, where(place), shown(error["input"]))


def _unknown(model: type[BaseModel], place: Place, value: Any, where: str) -> Problem:
    name, parent = str(place[-1]), place[:-1]
    info, owner = field_at(model, parent)
    section = section_of(info.annotation) if info else owner
    known = list(section.model_fields) if section else []
    inside = dotted(parent) or "a configuration"
    if near := nearest(name, known):
        fix = f"did you mean {dotted((*parent, near))}?"
    elif elsewhere := [leaf.name for leaf in fields(model) if leaf.name.rpartition(".")[2] == name]:
        fix = f"it belongs under {' or '.join(elsewhere[:3])}"
    elif leaf_name := nearest(name, [leaf.name.rpartition(".")[2] for leaf in fields(model)]):
        fix = f"did you mean {' or '.join(leaf.name for leaf in fields(model) if leaf.name.rpartition('.')[2] == leaf_name)}?"
    else:
        fix = f"known here: {', '.join(known)}"
    return Problem(place, f"{inside} has no setting of this name", fix, where, "" if isinstance(value, dict) else shown(value))


@dataclass(frozen=True)
class _Case:
    """What a refusal has to look at."""

    kind: str
    value: Any
    unit: str
    context: Mapping[str, Any]
    message: str
    type: Any


def _limit(case: _Case) -> tuple[str, str]:
    name, words = _LIMITS[case.kind]
    share = case.unit == "share"
    percent = share and isinstance(case.value, int | float) and 1 < case.value <= 100
    unit = f" {case.unit}" if case.unit and not share else ""
    fix = f"it is a share of 1: {case.value:g} % is written {case.value / 100:g}" if percent else ""
    return f"{words} {case.context[name]:g}{unit}", fix


def _choice(case: _Case) -> tuple[str, str]:
    choices = [str(choice) for choice in get_args(case.type)]
    near = nearest(str(case.value), choices)
    return f"is not one of the choices: {', '.join(choices)}", f"did you mean {near}?" if near else ""


def _number(case: _Case) -> tuple[str, str]:
    kind = "a number" if case.kind == "float_type" else "a whole number"
    hint = suggestion(case.value, case.unit) if isinstance(case.value, str) else ""
    return f"must be {kind}" + (f" ({case.unit})" if case.unit else ""), hint


def _boolean(case: _Case) -> tuple[str, str]:
    words = {"yes": "true", "on": "true", "1": "true", "no": "false", "off": "false", "0": "false"}
    meant = words.get(str(case.value).lower(), "")
    return "must be true or false", f"write {meant}" if meant else ""


def _text(case: _Case) -> tuple[str, str]:
    return "must be text", f'write it in quotes: "{case.value}"' if isinstance(case.value, int | float) else ""


def _list(case: _Case) -> tuple[str, str]:
    scalar = isinstance(case.value, str | int | float)
    return "must be a list", f"write [{shown(case.value)}]" if scalar else "start every item with `- `"


def _other(case: _Case) -> tuple[str, str]:
    """Pydantic's own words, in the same form as ours."""
    words = case.message.partition(" after validation")[0]
    words = re.sub(r"^(Input|String|List|Tuple|Dictionary) should ", "must ", words)
    return (words if words.startswith("must") else words[:1].lower() + words[1:]), ""


def _missing(case: _Case) -> tuple[str, str]:
    return "a value is missing", f"expected: {type_words(case.type)}" if case.type is not None else ""


def _section(case: _Case) -> tuple[str, str]:
    return "must be a section (indented `name: value` lines)", ""


_WORDS: dict[str, Callable[[_Case], tuple[str, str]]] = {
    **dict.fromkeys(_LIMITS, _limit),
    **dict.fromkeys(("float_type", "int_type", "int_from_float"), _number),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), _section),
    "literal_error": _choice,
    "bool_type": _boolean,
    "string_type": _text,
    "list_type": _list,
    "missing": _missing,
}


def _wrong(info: FieldInfo | None, error: Mapping[str, Any]) -> tuple[str, str]:
    unit, kind = extra(info, "unit") if info else "", str(error["type"])
    annotation = info.annotation if info else None
    case = _Case(kind, error["input"], unit, error.get("ctx", {}), str(error["msg"]), annotation)
    return _WORDS.get(kind, _other)(case)
