"""What a run of a configuration would do now, stage by stage, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import MillraceError
from pipeline_lib.run import RECORDED, Selection, lent, recorded_of
from pipeline_lib.stages import STAGES
from pipeline_lib.workspace.artifact import Manifest
from pipeline_lib.workspace.recorded import exported
from pipeline_lib.workspace.resolve import resolve
from pipeline_lib.workspace.stage import Stage, input_digests, look, parameters_of, recipe_fingerprint
from pipeline_lib.workspace.workspace import Workspace

State = Literal["would run", "reused", "stale", "damaged", "unknown", "supplied", "not asked"]


@dataclass(frozen=True)
class StageStatus:
    """One stage: what would happen, and why.

    `would run`: nothing was made yet, or a test of the stage's own refuses reuse. `stale`: there is an artifact, of another
    recipe. `damaged`: there is one of this recipe, and it is not intact. `unknown`: an input would be made first.
    `supplied`: another run's or a file's is taken as it is. `not asked`: outside of the selected stages.
    """

    stage: str
    state: State
    why: str
    key: str = ""  # of the artifact that would be reused, or that it was compared with

    @property
    def runs(self) -> bool:
        """Whether the stage would (or may) do work."""
        return self.state not in {"reused", "supplied", "not asked"}


def status(
    workspace: Workspace, config: PipelineConfig, *, chosen: Selection | None = None, recorded: str = ""
) -> list[StageStatus]:
    """Every stage in order. Nothing is made or moved.

    Args:
        workspace: where it would run.
        config: the configuration.
        chosen: which stages would run; None: all.
        recorded: the run or file that would supply calibrate, tune and plan.

    Raises:
        NotFoundError: the configuration names a champion whose artifact is gone; nothing can supply what is asked.
        ConfigError: the file is no export.
    """
    resolved, _ = resolve(config, workspace)
    manifests = _supplied(workspace, chosen, recorded)
    found = []
    for stage in STAGES:
        if stage.name in manifests:
            found.append(StageStatus(stage.name, "supplied", "taken as it is", manifests[stage.name].key))
            continue
        if chosen and stage.name not in chosen.stages:
            found.append(StageStatus(stage.name, "not asked", "outside of the selected stages"))
            continue
        one = _of_stage(workspace, stage, resolved, manifests)
        if chosen and stage.name in chosen.force and one.state != "unknown":
            one = StageStatus(stage.name, "would run", "forced", one.key)
        if one.state == "reused":
            manifests[stage.name] = workspace.store.manifest(one.key)
        found.append(one)
    return found


def _supplied(workspace: Workspace, chosen: Selection | None, recorded: str) -> dict[str, Manifest]:
    refs = lent(workspace, chosen) if chosen and chosen.supplied else {}
    given = {name: workspace.store.manifest(ref.key) for name, ref in refs.items() if workspace.store.has(ref.key)}
    if recorded.endswith(".json"):
        return given | exported(Path(recorded), RECORDED)
    if recorded:
        given |= {name: workspace.store.manifest(ref.key) for name, ref in recorded_of(workspace, recorded).items()}
    return given


def _of_stage(workspace: Workspace, stage: Stage, config: PipelineConfig, manifests: Mapping[str, Manifest]) -> StageStatus:
    newest = _newest(workspace, stage)
    _, identity = parameters_of(stage, config, workspace)
    if missing := [name for name in stage.reads if name not in manifests]:
        own = difference(newest.parameters, identity) if newest else ""
        why = f"depends on {missing[0]}, which would run" + (f"; also {own}" if own else "")
        return StageStatus(stage.name, "unknown", why, newest.key if newest else "")
    inputs = {name: manifests[name] for name in stage.reads}
    seen = look(workspace, stage, recipe_fingerprint(stage, identity, inputs))
    if seen.artifact:
        return StageStatus(stage.name, "reused", "the same recipe was made, and is intact", seen.artifact.key)
    if seen.damaged:
        return StageStatus(stage.name, "damaged", seen.reason, next(iter(seen.damaged)))
    if seen.reason != "not made yet":
        return StageStatus(stage.name, "would run", seen.reason)
    if newest is None:
        return StageStatus(stage.name, "would run", "never made in this workspace")
    return StageStatus(stage.name, "stale", _why_other(stage, newest, identity, inputs), newest.key)


def _newest(workspace: Workspace, stage: Stage) -> Manifest | None:
    for key in workspace.store.newest(stage.name):
        try:
            return workspace.store.manifest(key)
        except MillraceError:
            continue
    return None


def _why_other(stage: Stage, newest: Manifest, identity: Mapping[str, Any], inputs: Mapping[str, Manifest]) -> str:
    """The first reason why the newest artifact is one of another recipe."""
    if newest.version != stage.version:
        return f"version of the stage {newest.version} → {stage.version}"
    if own := difference(newest.parameters, identity):
        return own
    for name, read in input_digests(stage, inputs).items():
        before = newest.inputs.get(name, {}).get("tables", {})
        changed = [table for table, digest in read["tables"].items() if before.get(table) != digest]
        if changed:
            return f"{name} has other {', '.join(changed)}"
    if stage.machine:
        return "another machine, or other versions of libraries"
    return "made under other circumstances"


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The first parameter that differs, in words (`train.learning_rate 0.001 → 0.002`), and how many more do; "" when none."""
    old, new = _flat(before), _flat(after)
    names = [name for name in [*new, *(name for name in old if name not in new)] if old.get(name, _GONE) != new.get(name, _GONE)]
    if not names:
        return ""
    first = names[0]
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    if first == "forgotten":
        return f"documents were forgotten since{more}"
    if first == "outside" or first.startswith("outside."):
        return f"what the stage reads outside changed ({first.removeprefix('outside.')}){more}"
    return f"{first} {_shown(old.get(first, _GONE))} → {_shown(new.get(first, _GONE))}{more}"


_GONE = object()


def _shown(value: Any) -> str:
    text = "(absent)" if value is _GONE else str(value)
    return text if len(text) <= 40 else text[:37] + "…"


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names → plain values; lists stay whole unless they hold mappings."""
    found: dict[str, Any] = {}
    for name, item in value.items():
        dotted = f"{prefix}{name}"
        if isinstance(item, Mapping) and item:
            found |= _flat(item, f"{dotted}.")
        elif isinstance(item, list | tuple) and any(isinstance(one, Mapping) for one in item):
            found |= _flat({str(number): one for number, one in enumerate(item)}, f"{dotted}.")
        else:
            found[dotted] = list(item) if isinstance(item, tuple) else item
    return found
