"""The reference page of the configuration, generated from the models so that it cannot disagree with them."""

from __future__ import annotations

import json
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline_lib.config.environment import ENVIRONMENT
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.config.walk import extra, section_of, type_words

REFRESH = "millrace config reference > deployments/configuration.md"
_LIMITS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}", "min_length": "length ≥ {}", "max_length": "length ≤ {}"}

_INTRODUCTION = f"""# Configuration

Generated from the models in `pipeline_lib/config` by `{REFRESH}`; do not edit.

A pipeline is one YAML file; what it leaves out has the default below. `--set section.name=value` goes before the file, and
`--sample N` sets `ingest.sample`. Numbers are written without a unit: the unit is part of the field. Relative paths count from
the folder of the YAML (in `--set`: from the current folder) and must lie in it, in the current folder, in the workspace or in
`$MILLRACE_ALLOWED_ROOTS`. `millrace config check FILE` names everything that is wrong; `millrace config show FILE` prints what
counts; `millrace config schema` prints the JSON Schema.

*Not in identity* marks machine facts and display options: changing one never makes a stage run again.
"""


def reference_markdown() -> str:
    """Every section and field: name, type, default, unit, limits, description, reason; then the environment variables."""
    parts = [_INTRODUCTION, _table("The pipeline", PipelineConfig, "")]
    parts += _sections(PipelineConfig, "")
    rows = [f"| `{v.name}` | {v.what} | {v.default} | {'yes' if v.secret else ''} |" for v in ENVIRONMENT]
    environment = "\n".join(["| variable | what | default | secret |", "|---|---|---|---|", *rows])
    parts.append(
        f"## Environment\n\nSecrets and locations come from the environment only, and are never written down.\n\n{environment}\n"
    )
    return "\n".join(parts)


def _sections(model: type[BaseModel], prefix: str) -> list[str]:
    parts = []
    for name, info in model.model_fields.items():
        if inner := section_of(info.annotation):
            here = f"{prefix}{name}" + ("[]" if get_origin(info.annotation) is list else "")
            parts += [_table(f"`{here}`", inner, here), *_sections(inner, here + ".")]
    return parts


def _table(title: str, model: type[BaseModel], prefix: str) -> str:
    head = ["| field | type | default | unit | limits | what, and why this default |", "|---|---|---|---|---|---|"]
    rows = [_row(name, info) for name, info in model.model_fields.items() if section_of(info.annotation) is None]
    intro = (model.__doc__ or "").strip()
    return f"## {title}\n\n{intro}\n\n" + "\n".join(head + rows if rows else []) + ("\n" if rows else "")


def _row(name: str, info: FieldInfo) -> str:
    unit, why = extra(info, "unit"), extra(info, "why")
    what = (info.description or "").removesuffix(f" [{unit}]")
    notes = (
        [what + "."]
        + ([f"*Why:* {why}."] if why else [])
        + (["*Not in identity.*"] if extra(info, "identity", True) is False else [])
    )
    cells = (f"`{name}`", type_words(info.annotation), f"`{_default(info)}`", unit, limits(info), " ".join(notes))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(info: FieldInfo) -> str:
    value: Any = info.get_default(call_default_factory=True, validated_data={})
    return json.dumps(value, ensure_ascii=False)


def limits(info: FieldInfo) -> str:
    """The limits of a field, such as `≥ 0, < 1`."""
    found = []
    for constraint in info.metadata:
        found += [
            text.format(getattr(constraint, name))
            for name, text in _LIMITS.items()
            if getattr(constraint, name, None) is not None
        ]
        if pattern := getattr(constraint, "pattern", None):
            found.append(f"`{pattern}`")
    return ", ".join(found)
