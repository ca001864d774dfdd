"""Mutable names (`champion`, `previous`) become fixed references once, at the start of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline_lib.errors import DamagedError, NotFoundError, StageFailedError
from pipeline_lib.workspace.files import read_json, write_json

if TYPE_CHECKING:
    from pipeline_lib.config.pipeline import PipelineConfig
    from pipeline_lib.workspace.artifact import Artifact
    from pipeline_lib.workspace.stage import StageRun
    from pipeline_lib.workspace.workspace import Workspace

CHAMPION_ENTRY = ("train", "digest", "run_id", "promoted", "by")  # what promotion writes; "pack" and "select" where there are
BEHIND_SELECT = ("dedup", "split")  # inputs of the champion's selection
MUCH_FORGOTTEN = 0.25  # share of the tasks surely lost, from which on the most is replayed
PREFIX = "artifact:"  # "artifact:<key>#<output digest>"


def reference(key: str, digest: str) -> str:
    """The text that stands for an artifact in a resolved configuration."""
    return f"{PREFIX}{key}#{digest}"


def key_of(text: str) -> str:
    """The artifact key of a `reference`, or "" when the text is none."""
    return text.removeprefix(PREFIX).partition("#")[0] if text.startswith(PREFIX) else ""


def parent_of(run: StageRun, value: str) -> Artifact | None:
    """The artifact that a stage's setting `parent` names, or None.

    Raises:
        StageFailedError: the name was not resolved, or the artifact is another one than at the start of the run.
        NotFoundError: it is gone.
    """
    stage = run.stage.name
    if value == "none":
        return None
    if not value.startswith(PREFIX):
        raise StageFailedError(
            f"{stage}.parent = {value!r} is not an artifact",
            where=f"stage {stage}",
            fix="use `previous` or `none`; a run resolves `previous` when it starts",
        )
    parent = run.workspace.store.artifact(key_of(value))
    if not parent.manifest.was(value.partition("#")[2]):
        raise StageFailedError(
            f"{parent.key} is not what it was when this run started", where=f"stage {stage}", fix="start a new run"
        )
    return parent


def read_champion(workspace: Workspace) -> dict[str, Any]:
    """`champion.json`: {"champion": {"train": key, "pack": key, "select": key, "run_id": …}, "previous": {…}, "history": […]}.

    Raises:
        DamagedError: it is anything else.
    """
    path = workspace.root / "champion.json"
    try:
        state = read_json(path)
        for role in ("champion", "previous"):
            if not isinstance(state.get(role) or {}, dict):
                raise TypeError(f"{role} is not an entry")
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        fix = "restore it from a backup; or remove it (no champion) and promote a run again"
        raise DamagedError(f"cannot be read ({type(error).__name__}: {error})", where=str(path), fix=fix) from None
    return dict(state)


def write_champion(workspace: Workspace, value: dict[str, Any]) -> None:
    """Replace `champion.json` atomically."""
    write_json(workspace.root / "champion.json", value)


def _replayed(config: PipelineConfig, champion: Mapping[str, Any]) -> float:
    """The share of old text, raised towards `replay_most` by what the champion forgot of its predecessor when it was promoted."""
    least, most = config.select.replay_share, config.select.replay_most
    if config.select.parent != "previous" or most <= least:
        return least
    return round(least + (most - least) * min(1.0, float(champion.get("forgot", 0.0)) / MUCH_FORGOTTEN), 3)


def resolve(config: PipelineConfig, workspace: Workspace) -> tuple[PipelineConfig, dict[str, str]]:
    """Replace `champion` and `previous` by references. The returned mapping says what each name stood for.

    Without a champion (the first night), `tokenizer.source` falls back to `train`, `model.start` to `scratch`, `parent` to
    `none`, and the mapping says so. `dedup.parent` and `split.parent` are what the champion's selection was made from.
    `select.replay_share` follows what the champion forgot.

    Raises:
        NotFoundError: the champion names an artifact that is gone.
    """
    wanted = {
        "tokenizer.source": ("champion", "pack", "train"),
        "model.start": ("champion", "train", "scratch"),
        "select.parent": ("previous", "select", "none"),
        "pack.parent": ("previous", "pack", "none"),
        "dedup.parent": ("previous", "dedup", "none"),
        "split.parent": ("previous", "split", "none"),
    }
    champion = read_champion(workspace).get("champion", {})
    changes: dict[str, dict[str, Any]] = {}
    resolved: dict[str, str] = {}
    for dotted, (word, stage, fallback) in wanted.items():
        section, _, name = dotted.partition(".")
        if getattr(getattr(config, section), name) != word:
            continue
        value = fallback
        if key := champion.get("select" if stage in BEHIND_SELECT else stage, ""):
            try:
                if stage in BEHIND_SELECT:
                    key = workspace.store.manifest(key).inputs[stage]["key"]
                value = reference(key, workspace.store.manifest(key).digest)
            except NotFoundError as error:
                raise NotFoundError(
                    f"the champion's {stage} artifact {key} is gone",
                    where=f"{dotted} = {word}",
                    fix=f"set {dotted} to {fallback!r}, or `millrace rollback` to the previous champion",
                ) from error
        changes.setdefault(section, {})[name] = value
        resolved[f"{dotted}={word}"] = value
    if (share := _replayed(config, champion)) != config.select.replay_share:
        changes.setdefault("select", {})["replay_share"] = share
        resolved["select.replay_share"] = str(share)
    updated = {section: getattr(config, section).model_copy(update=values) for section, values in changes.items()}
    return config.model_copy(update=updated), resolved
