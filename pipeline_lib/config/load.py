"""From YAML and `--set` options to a checked configuration; every refusal at once, in words.

What counts, later first: `--set` options, a preset named by one, the YAML, the preset that it names, the defaults. Numbers, names
and choices come from these only; secrets and locations come from the environment (`config/environment.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline_lib.config.explain import explain
from pipeline_lib.config.paths import absolute, allowed_roots, check_paths, path_problems
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.config.presets import PresetConfig, preset
from pipeline_lib.config.walk import section_of, texts
from pipeline_lib.config.yaml_text import Place, Problem, dotted, dump, parse
from pipeline_lib.errors import ConfigError
from pipeline_lib.secrets import hide_passwords

__all__ = ["check_paths", "check_secrets", "dump_yaml", "load_config", "with_overrides"]

MAX_BYTES = 1 << 20
# settings that say the same in two ways: an option for one takes the place of what a file says with the other
ONE_WINDOW: dict[Place, Place] = {
    ("resources", "max_hours"): ("resources", "finish_by"), ("resources", "finish_by"): ("resources", "max_hours"),
}  # fmt: skip
# user:password@ in any URL, a token alone before the @ of a web address, a token in its query
_PASSWORD = re.compile(
    r"[a-z][a-z0-9+.-]*://[^/@\s]*:[^/@\s]+@|https?://[^/@\s]+@|[?&][^=&\s]*(?:token|secret|passw|signature|api_?key|sig)[^=&\s]*=[^&\s]",
    re.IGNORECASE,
)


def load_config(path: Path | None, overrides: Sequence[str] = (), *, sample: int = 0) -> PipelineConfig:
    """Read, merge and check a configuration.

    Args:
        path: a YAML file; None: the defaults.
        overrides: `section.name=value` texts; the value is YAML, so numbers, lists and quoted texts work. Items of a list are
            numbered from 0: `ingest.sources.0.max_mb=5`.
        sample: read at most this many documents (`ingest.sample`); 0: as configured.

    Relative paths in the file count from its folder, those in overrides from the current folder; the result holds absolute ones.

    Raises:
        ConfigError: lists every problem with its field, `file:line` (or option), value, and what would be right.
    """
    draft = _Draft()
    if path is not None:
        draft.read(path)
    for override in overrides:
        draft.override(override)
    if sample:
        draft.override(f"ingest.sample={sample}", source="--sample")
    return draft.finish(path)


def with_overrides(config: PipelineConfig, overrides: Sequence[str]) -> PipelineConfig:
    """A configuration with changes, checked as a whole again; see `load_config`.

    Raises:
        ConfigError: as `load_config`.
    """
    draft = _Draft()
    draft.values = config.model_dump(mode="json")
    for override in overrides:
        draft.override(override)
    return draft.finish(None)


def dump_yaml(config: PipelineConfig, *, changed_only: bool = False) -> str:
    """A configuration as YAML that `load_config` reads back to an equal one."""
    values = config.model_dump(mode="json", exclude_defaults=changed_only)
    return dump(values)


class _Draft:
    """Raw values on their way to a configuration, with where each came from."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origin: dict[Place, str] = {}  # place -> "file:line" or the option
        self.folders: dict[str, Path] = {"": Path.cwd()}  # place -> the folder its relative paths count from
        self.problems: list[Problem] = []

    def read(self, path: Path) -> None:
        try:
            with path.open("rb") as handle:
                data = handle.read(MAX_BYTES + 1)
        except OSError as error:
            beside = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
            there = f"there are: {', '.join(beside)}" if beside else "`millrace config show` prints the defaults to start from"
            raise ConfigError(f"cannot be read: {error.strerror}", where=str(path), fix=there) from None
        if len(data) > MAX_BYTES:
            raise ConfigError(f"is larger than {MAX_BYTES:,} bytes", where=str(path), fix="is this a configuration?")
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(f"is not UTF-8 (byte {error.start})", where=str(path)) from None
        parsed = parse(text, path.name)
        if not isinstance(parsed.value, dict | None):
            raise ConfigError("a configuration is `name: value` lines", where=f"{path.name}:1")
        self.values = parsed.value or {}
        self.problems += parsed.problems
        self.origin = {place: f"{path.name}:{line}" for place, line in parsed.lines.items()}
        self.folders[""] = path.absolute().parent

    def override(self, text: str, source: str = "") -> None:
        name, equals, written = text.partition("=")
        source = source or f"--set {hide_passwords(text)}"
        place: Place = tuple(int(part) if part.isdecimal() else part for part in name.strip().split("."))
        if not equals or "" in place:
            fix = "write --set section.name=value, such as --set train.learning_rate=3e-4"
            self.problems.append(Problem((), "this sets nothing", fix, where=source))
            return
        parsed = parse(written, source)
        self.problems += parsed.problems
        try:
            self._set(place, parsed.value)
        except (TypeError, IndexError, KeyError) as error:
            self.problems.append(Problem(place, str(error.args[0]), where=source))
            return
        self.origin = {old: where for old, where in self.origin.items() if old[: len(place)] != place}
        self.origin[place] = source
        if place in ONE_WINDOW and parsed.value:
            self._make_way(ONE_WINDOW[place])
        self.folders[dotted(place)] = Path.cwd()

    def _make_way(self, other: Place) -> None:
        """What an option replaces goes, unless another option said it: two options contradict each other."""
        section = self.values.get(str(other[0]))
        if isinstance(section, dict) and not self._where(other).startswith("--"):
            section.pop(other[1], None)

    def _set(self, place: Place, value: Any) -> None:
        at: Any = self.values
        default: Any = PipelineConfig().model_dump(mode="json")
        for depth, part in enumerate(place):
            last, here = depth == len(place) - 1, dotted(place[: depth + 1])
            if isinstance(part, int) and not isinstance(at, list):
                raise TypeError(f"{dotted(place[:depth])} is not a list, so {here} names nothing")
            if isinstance(part, str) and not isinstance(at, dict):
                raise TypeError(f"{dotted(place[:depth])} is a value and has no setting {part!r}")
            if isinstance(part, int) and part >= len(at):
                raise IndexError(f"{dotted(place[:depth])} has {len(at)} items, numbered from 0")
            if last:
                at[part] = value
                return
            # a list that only the defaults hold is filled in before one of its items is changed
            try:
                default = default[part]
            except (KeyError, IndexError, TypeError):
                default = {}
            if isinstance(part, str) and at.get(part) is None:
                at[part] = default if isinstance(default, list) else {}
            at = at[part]

    def _put_preset_below(self) -> None:
        """Settings of the named preset below what the file says, over it where an option names it; options go first."""
        name, own = self.values.get("preset"), self.values.get("presets")
        if not name or not isinstance(name, str):
            return
        model = self.values.get("model")
        start = model.get("start", "scratch") if isinstance(model, dict) else "scratch"
        try:
            presets = {key: PresetConfig.model_validate(value) for key, value in own.items()} if isinstance(own, dict) else {}
            values = preset(name, presets).values(start=str(start))
        except ValidationError:
            return  # said below, with everything else that is wrong
        except ConfigError as error:
            self.problems.append(Problem(("preset",), error.what, error.fix, self._where(("preset",))))
            return
        over = self._where(("preset",)).startswith("--")
        for dotted_name, value in values.items():
            place: Place = tuple(dotted_name.split("."))
            at: Any = self.values
            for part in place[:-1]:
                at[part] = at[part] if at.get(part) is not None else {}
                at = at[part]
                if not isinstance(at, dict):
                    break
            else:
                option = self._where(place).startswith("--")
                if place[-1] not in at or (over and not option):
                    at[place[-1]] = value
                    self.origin[place] = f"preset {name}"

    def finish(self, path: Path | None) -> PipelineConfig:
        self._put_preset_below()
        config = absolute(self._validated(), self.folders)
        self.problems += [replace(p, where=self._where(p.place)) for p in path_problems(config, allowed_roots(path))]
        self.problems += _secrets(config, self._where)
        if self.problems:
            raise _refusal(self.problems, path)
        return config

    def _validated(self) -> PipelineConfig:
        """The model; what is wrong is noted and taken out.

        Contradictions between values are only looked for where the values themselves are right. What is wrong is therefore taken
        out and the rest looked at again, so that one attempt shows everything.
        """
        values = {name: value for name, value in self.values.items() if value is not None or name not in _SECTIONS}
        removed: list[Place] = []
        while True:
            try:  # strict, as JSON: "4" is not 4 and true is not 1, but a list may become a tuple
                return PipelineConfig.model_validate_json(json.dumps(values), strict=True)
            except ValidationError as errors:
                found = [explain(PipelineConfig, error, self._where) for error in errors.errors(include_url=False)]
            self.problems += [problem for problem in found if not _echoes(problem, removed)]
            removed += [problem.place for problem in found]
            before = json.dumps(values)
            for place in {problem.place for problem in found}:
                _remove(values, place)
            if json.dumps(values) == before:
                values.clear()

    def _where(self, place: Place) -> str:
        for length in range(len(place), 0, -1):
            if place[:length] in self.origin:
                return self.origin[place[:length]]
        return next((where for inner, where in self.origin.items() if place and inner[: len(place)] == place), "")


_SECTIONS = frozenset(name for name, info in PipelineConfig.model_fields.items() if section_of(info.annotation))


def _remove(values: dict[str, Any], place: Place) -> None:
    """Take a value out; a list item takes its list along, so that no index moves; a contradiction of sections takes them all."""
    if not place:
        values.clear()
        return
    at: Any = values
    for depth, part in enumerate(place):
        if not isinstance(at, dict) or part not in at:
            return
        if depth == len(place) - 1 or isinstance(place[depth + 1], int):
            del at[part]
            return
        at = at[part]


def _echoes(problem: Problem, removed: Sequence[Place]) -> bool:
    """Whether a finding is about a default that stands in for a value that was taken out, and that nobody wrote."""
    return any(place and re.search(rf"\b{re.escape(str(place[-1]))}\b", problem.what) for place in removed)


def _secrets(config: PipelineConfig, where: Callable[[Place], str]) -> list[Problem]:
    """A configuration is written into records, artifacts and MLflow, so it must hold no password."""
    fix = "put it into the environment, such as MILLRACE_MLFLOW_URI; `millrace config environment` lists the variables"
    return [Problem(place, "holds a password", fix, where(place)) for place, _, text in texts(config) if _PASSWORD.search(text)]


def check_secrets(config: PipelineConfig) -> None:
    """Refuse a configuration that holds a password or token. For forms; `load_config` does it for files.

    Raises:
        ConfigError: names every such field, never its value.
    """
    if problems := _secrets(config, lambda place: ""):
        raise _refusal(problems, None)


def _refusal(problems: Sequence[Problem], path: Path | None) -> ConfigError:
    if len(problems) == 1:
        problem = problems[0]
        return ConfigError(problem.what, where=problem.subject(), fix=problem.fix)
    ordered = sorted(
        problems, key=lambda problem: [int(part) if part.isdecimal() else 0 for part in problem.where.split(":")[1:]]
    )
    lines = "\n".join(f"{number}. {problem.line()}" for number, problem in enumerate(ordered, 1))
    return ConfigError(f"{len(problems)} problems\n{lines}", where=path.name if path else "the configuration")
