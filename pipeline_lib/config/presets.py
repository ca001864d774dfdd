"""Presets: a family × a goal × an amount of data as settings, each with its reason; a user's YAML adds its own.

`preset: llama-quality-small` in a pipeline YAML puts its settings under everything that the file itself says.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import field_validator

from pipeline_lib.config.explain import nearest
from pipeline_lib.config.fields import Section, setting
from pipeline_lib.config.yaml_text import parse
from pipeline_lib.errors import ConfigError

TABLE = Path(__file__).with_name("presets.yaml")
HEADS_EVEN = 2  # depths are rounded to whole pairs of layers: hybrids alternate


class PresetConfig(Section):
    """A preset of one's own: another one with changes, or everything from the defaults on."""

    extends: str = setting("", "The preset it begins with; empty: the defaults")
    what: str = setting("", "What it is for, in words", max_length=500)
    settings: dict[str, Any] = setting(dict, "Setting → value: `train.max_epochs: 2`")
    continued: dict[str, Any] = setting(dict, "Likewise, only where `model.start` is a checkpoint")
    checkpoint: str = setting("", "`organisation/name@revision` of a published checkpoint it goes well with")

    @field_validator("checkpoint")
    @classmethod
    def _pinned(cls, text: str) -> str:
        if text and ("@" not in text or "/" not in text):
            raise ValueError(f"{text!r} names no revision: write organisation/name@revision, or the model may change overnight")
        return text


@dataclass(frozen=True)
class Reasoned:
    """A value and why it is this one."""

    value: Any
    why: str


@dataclass(frozen=True)
class Preset:
    """Settings by dotted name; `continued` ones only hold where a checkpoint is continued."""

    name: str
    what: str
    family: str
    goal: str
    amount: str
    tokens: int  # a typical amount of training text, tokens
    checkpoint: str  # organisation/name@revision, or ""
    settings: dict[str, Reasoned]
    continued: dict[str, Reasoned]

    def values(self, *, start: str = "scratch") -> dict[str, Any]:
        """Dotted setting → value for a model that starts so (`model.start`)."""
        chosen = self.settings if start == "scratch" else {**self.settings, **self.continued}
        return {name: reasoned.value for name, reasoned in chosen.items()}

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@functools.cache
def built_in() -> Mapping[str, Preset]:
    """The presets of the package by name, `family-goal-amount`."""
    table = parse(TABLE.read_text("utf-8"), TABLE.name).value
    return {
        made.name: made
        for family in table["families"]
        for goal in table["goals"]
        for amount in table["amounts"]
        for made in [_combined(table, family, goal, amount)]
    }


def presets(own: Mapping[str, PresetConfig] | None = None) -> dict[str, Preset]:
    """All presets by name; a user's go before the package's.

    Args:
        own: `presets` of a configuration.

    Raises:
        ConfigError: one extends a preset that does not exist, or itself.
    """
    found = dict(built_in())
    for name in own or {}:
        found[name] = _own(name, own or {}, ())
    return found


def preset(name: str, own: Mapping[str, PresetConfig] | None = None) -> Preset:
    """One preset.

    Raises:
        ConfigError: there is none of this name; names the nearest.
    """
    if own and name in own:
        return _own(name, own, ())
    if name not in built_in():
        raise _unknown(name, {*built_in(), *(own or {})}, "preset")
    return built_in()[name]


def amount_for(tokens: float) -> str:
    """Which amount of data so many tokens are."""
    return "small" if tokens <= 1e7 else "medium" if tokens <= 2e8 else "large"


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested mappings: {"train.lora.rank": 8} → {"train": {"lora": {"rank": 8}}}."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = name.split(".")
        at = tree
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    return tree


def _combined(table: Mapping[str, Any], family: str, goal: str, amount: str) -> Preset:
    kind, aim, size = table["families"][family], table["goals"][goal], table["amounts"][amount]
    here = aim["by_amount"][amount]
    shape = dict(kind["shapes"][amount])
    base = shape["depth"]
    shape["depth"] = max(round(base * aim["depth_share"] / HEADS_EVEN), 1) * HEADS_EVEN
    depth_why = f"{base} layers suit {amount} data; × {aim['depth_share']:g} for {goal}"
    settings = {"model.family": Reasoned(kind.get("model", family), kind["what"])}
    settings |= {
        f"model.{name}": Reasoned(value, depth_why if name == "depth" else f"a {family} for {size['what']}")
        for name, value in shape.items()
    }
    for part in (size, aim, here, kind):
        settings |= _reasoned(part.get("settings", {}))
    targets = [*kind["attention"], *(kind["feed_forward"] if aim["targets"] == "all" else [])]
    why = "attention alone: fewest adapters" if aim["targets"] == "attention" else "every linear module (Dettmers et al. 2023)"
    continued = {"train.lora.targets": Reasoned(targets, why), **_reasoned(aim["continued"]), **_reasoned(here["continued"])}
    return Preset(
        f"{family}-{goal}-{amount}", f"{aim['what']}; {kind['what']}; {size['what']}", family, goal, amount, size["tokens"],
        kind.get("checkpoint", ""), settings, continued,
    )  # fmt: skip


def _reasoned(table: Mapping[str, Any]) -> dict[str, Reasoned]:
    return {name: Reasoned(value, why) for name, (value, why) in table.items()}


def _own(name: str, own: Mapping[str, PresetConfig], seen: tuple[str, ...]) -> Preset:
    config = own[name]
    if name in seen:
        raise ConfigError(f"extends itself by way of {' → '.join((*seen, name))}", where=f"presets.{name}")
    settings, continued = ({k: Reasoned(v, "your own") for k, v in part.items()} for part in (config.settings, config.continued))
    if not config.extends:
        return Preset(name, config.what, "", "", "", 0, config.checkpoint, settings, continued)
    if config.extends in own and config.extends != name:
        base = _own(config.extends, own, (*seen, name))
    elif config.extends in built_in():
        base = built_in()[config.extends]
    else:
        raise _unknown(config.extends, {*built_in(), *own}, f"presets.{name}.extends")
    return replace(
        base, name=name, what=config.what or base.what, checkpoint=config.checkpoint or base.checkpoint,
        settings={**base.settings, **settings}, continued={**base.continued, **continued},
    )  # fmt: skip


def _unknown(name: str, known: set[str], where: str) -> ConfigError:
    near = nearest(name, sorted(known))
    fix = f"did you mean {near}?" if near else "`millrace presets` lists them"
    return ConfigError(f"there is no preset {name!r}", where=where, fix=fix)
