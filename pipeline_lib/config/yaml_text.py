"""YAML text into plain values, with the line of every key: safe tags only, YAML 1.2 scalars, duplicate keys noticed.

YAML 1.1, which PyYAML speaks by default, reads `3e-4` as text, `07:30` as 450, `no` as false and a date as an object. Here
numbers are what they look like, only `true` and `false` are booleans, and everything else is text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipeline_lib.errors import ConfigError

Place = tuple[str | int, ...]  # the way from the root to a value: ("ingest", "sources", 0, "path")
MAX_NODES = 100_000  # aliases can make a short text enormous
MAX_DEPTH = 40
_COLLECTIONS = {"tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: which field, where it stands, its value, what would be right."""

    place: Place
    what: str
    fix: str = ""
    where: str = ""
    value: str = ""

    def subject(self) -> str:
        """Where it stands, the field and its value."""
        return ": ".join(part for part in (self.where, " = ".join(p for p in (dotted(self.place), self.value) if p)) if part)

    def line(self) -> str:
        """As one paragraph."""
        head = ": ".join(part for part in (self.subject(), self.what) if part)
        return head + (f"\n  → {self.fix}" if self.fix else "")


def dotted(place: Place) -> str:
    """`ingest.sources.0.path` for a place."""
    return ".".join(str(part) for part in place)


@dataclass
class Parsed:
    """A YAML text's value; `lines` holds the line (from 1) of every key and list item."""

    value: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


class _Loader(yaml.SafeLoader):
    """Safe tags only; scalars of the YAML 1.2 core schema (without the infinities: no setting can be infinite)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (typed so by PyYAML)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    for _char in _first:
        _Loader.yaml_implicit_resolvers.setdefault("" if _char == "\0" else _char, []).append(
            (f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"))
        )
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))  # 010 is ten, not eight
_Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(node.value))


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read back as text."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def dump(value: Any) -> str:
    """Plain values as YAML that `parse` reads back to the same values."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


def parse(text: str, name: str) -> Parsed:
    """Parse one YAML document.

    Args:
        text: the document.
        name: what to call it in refusals (a file name, or the option it came from).

    Raises:
        ConfigError: it is not YAML (the line is named), holds a forbidden tag, or grows without end.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        walker = _Walker(loader, name)
        if root is not None:
            walker.parsed.value = walker.value(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        what = " ".join(part for part in (error.context, error.problem) if part)
        fix = "mend the line (quote texts that begin with a sign such as *, &, @ or %)"
        raise ConfigError(f"this is not valid YAML: {what}", where=where, fix=fix) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"this is not valid YAML: {error}", where=name) from None
    return walker.parsed


class _Walker:
    """Turns nodes into values and notes lines and problems."""

    def __init__(self, loader: _Loader, name: str) -> None:
        self.loader, self.name, self.parsed, self.visited = loader, name, Parsed(), 0

    def value(self, node: yaml.Node, place: Place) -> Any:
        self.visited += 1
        if self.visited > MAX_NODES or len(place) > MAX_DEPTH:
            what = f"more than {MAX_NODES:,} values or {MAX_DEPTH} levels"
            raise ConfigError(what, where=self.name, fix="does an alias (`*name`) contain itself?")
        if isinstance(node, yaml.CollectionNode) and node.tag not in _COLLECTIONS:
            self.parsed.problems.append(
                Problem(place, f"the tag {node.tag} is refused", where=f"{self.name}:{node.start_mark.line + 1}")
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self._at(item, (*place, index), item) for index, item in enumerate(node.value)]
        return self.loader.construct_object(node)

    def _at(self, mark: yaml.Node, place: Place, node: yaml.Node) -> Any:
        self.parsed.lines[place] = mark.start_mark.line + 1
        return self.value(node, place)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = f"{self.name}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                self.parsed.problems.append(Problem(place, "a key must be a word", where=where))
            elif key_node.value in values:
                here = (*place, key_node.value)
                what = f"this key stands twice; it was already set on line {self.parsed.lines[here]}"
                self.parsed.problems.append(Problem(here, what, "keep one", where))
            else:
                values[key_node.value] = self._at(key_node, (*place, key_node.value), value_node)
        return values
