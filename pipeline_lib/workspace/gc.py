"""Garbage collection: what nobody needs any more goes, and never anything that a run going on at the same time needs.

**What stays.** Artifacts named by the champion, the previous champion, pinned runs, the newest runs, young runs and running runs;
artifacts that living processes use; and whatever these were made from: inputs, segments called home, artifacts named in their
parameters. Of former champions that the gate still compares with, the model and the selection stay, without these. Packed chunks
stay while their `pack` artifact does. Run records stay always: they are small, and memory learns from them.

**Why it is safe beside a run.**
1. A process puts an artifact's key into its use file before it relies on it: when it reuses or reads one, takes over a segment,
   or is about to publish one.
2. Uses are added, and artifacts are taken away, only under the catalogue lock; a process that adds a use looks, under the same
   lock, whether the artifact is still there, and makes it again if not. So either the collector sees the use, or the process sees
   the artifact gone.
3. A use file counts while its process lives, which its lock tells; the run's record counts from then on.
4. Work in progress and folders without manifest are removed only under the lease of their stage and fingerprint, which everybody
   who makes that artifact holds.
5. An artifact is taken away by removing its manifest and renaming its folder; the bytes go afterwards, so the catalogue is held
   for moments only.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline_lib.errors import DamagedError, MillraceError, RefusedError
from pipeline_lib.secrets import hide_passwords
from pipeline_lib.workspace.files import remove_tree
from pipeline_lib.workspace.lease import is_free, lease_if_free
from pipeline_lib.workspace.resolve import key_of, read_champion
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.store import KEY
from pipeline_lib.workspace.usage import folder_bytes

if TYPE_CHECKING:
    from pipeline_lib.config.resources import KeepConfig
    from pipeline_lib.workspace.artifact import Manifest
    from pipeline_lib.workspace.workspace import Workspace

Kind = Literal["artifact", "scrap", "cache", "work", "quarantine", "leftover", "spool"]
BESIDE = re.compile(r"\..+\.[0-9a-f]{8}")
LEFTOVER_SECONDS = 3600.0  # a file written beside and not renamed within an hour belongs to a dead process


@dataclass(frozen=True)
class Doomed:
    """One thing that would go."""

    kind: Kind
    name: str  # artifact key, or path relative to the workspace
    bytes: int
    why: str


@dataclass(frozen=True)
class GcPlan:
    """What would go, and what stays and why."""

    keep: KeepConfig  # the rules it was made by
    doomed: tuple[Doomed, ...]
    kept: Mapping[str, str]  # artifact key -> why

    @property
    def bytes(self) -> int:
        """What would be freed. Hard links count fully: an upper bound."""
        return sum(thing.bytes for thing in self.doomed)


def plan_gc(workspace: Workspace, keep: KeepConfig) -> GcPlan:
    """What garbage collection would remove now; removes nothing.

    Raises:
        DamagedError: a run record or `champion.json` cannot be read, so that nobody knows what it needs.
    """
    with workspace.catalogue():
        return _plan(workspace, keep)


def apply_gc(workspace: Workspace, plan: GcPlan) -> list[Doomed]:
    """Remove what a plan names, as far as it is still garbage.

    Returns:
        What was removed.

    Raises:
        RefusedError: the store belongs to another workspace, whose runs are not known here.
    """
    _own_store(workspace)
    removed: list[Doomed] = []
    remains: list[Path] = []
    with workspace.catalogue():
        fresh = {(thing.kind, thing.name) for thing in _plan(workspace, plan.keep).doomed}
        todo = [thing for thing in plan.doomed if (thing.kind, thing.name) in fresh]
        for thing in todo:
            if thing.kind == "artifact":
                if folder := workspace.store.take_away(thing.name):
                    remains.append(folder)
                removed.append(thing)
            elif thing.kind == "cache":
                doomed = workspace.root / "cache" / f".doomed-{time.time_ns()}"
                (workspace.root / thing.name).rename(doomed)
                remains.append(doomed)
                removed.append(thing)
    for folder in remains:
        shutil.rmtree(folder, ignore_errors=True)
    for thing in todo:
        if thing.kind in {"artifact", "cache"}:
            continue
        if thing.kind in {"scrap", "work"}:
            key = thing.name if thing.kind == "scrap" else _key_of_work(Path(thing.name).name)
            with lease_if_free(_lease_path(workspace, key)) as free:
                if free and _remove_under_lease(workspace, thing, key):
                    removed.append(thing)
        elif _remove_path(workspace.root / thing.name, thing.kind):
            removed.append(thing)
    _clear_locks(workspace)
    return removed


def _remove_path(path: Path, kind: Kind) -> bool:
    if kind == "spool":
        with lease_if_free(path.with_suffix(".lock")) as free:
            for name in (".delivered", ".jsonl", ".lock") if free else ():  # killed in between: told once more, which is harmless
                path.with_suffix(name).unlink(missing_ok=True)
        return free
    if path.is_dir():
        remove_tree(path)
    else:
        path.unlink(missing_ok=True)
    return True


def _remove_under_lease(workspace: Workspace, thing: Doomed, key: str) -> bool:
    """Nobody makes this artifact now; look once more, then remove."""
    if thing.kind == "work":
        remove_tree(workspace.root / thing.name)
        return True
    with workspace.catalogue():
        if workspace.store.has(key) or workspace.store.lent(key) or key in workspace.in_use():
            return False
        folder = workspace.store.take_away(key)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    return True


def _own_store(workspace: Workspace) -> None:
    from pipeline_lib.workspace.remote import RemoteStore

    if isinstance(workspace.store, RemoteStore) and (owner := workspace.store.owner(workspace.id)) != workspace.id:
        raise RefusedError(
            f"the store belongs to workspace {owner}; what its runs need is not known here",
            where=hide_passwords(workspace.store_url),
            fix="collect garbage in the workspace that owns the store",
        )


def _plan(workspace: Workspace, keep: KeepConfig) -> GcPlan:
    manifests: dict[str, Manifest] = {}
    unreadable: set[str] = set()
    keys = workspace.store.keys()
    for key in keys:
        try:
            manifests[key] = workspace.store.manifest(key)
        except MillraceError:
            unreadable.add(key)  # quarantine is for the stage that wants it; here it stays
    kept = _reachable(_roots(workspace, keep), manifests)
    kept = _reachable(_former(workspace), manifests, inputs=False) | kept
    doomed = [
        Doomed("artifact", key, _own_bytes(manifest), "no kept run, champion or process needs it")
        for key, manifest in manifests.items()
        if key not in kept
    ]
    in_use = workspace.in_use()
    for key in workspace.store.scrap():
        if key not in kept and key not in in_use and is_free(_lease_path(workspace, key)):
            doomed.append(Doomed("scrap", key, folder_bytes(workspace.root / "artifacts" / key), "it never got a manifest"))
    doomed += _caches(workspace, kept, manifests)
    doomed += _work(workspace, keep, manifests)
    doomed += _aged(workspace, keep)
    why = {key: reason for key, reason in sorted(kept.items()) if key in manifests} | dict.fromkeys(unreadable, "damaged")
    return GcPlan(keep, tuple(doomed), why)


def _roots(workspace: Workspace, keep: KeepConfig) -> dict[str, str]:
    """Keys that stay on their own account, with the reason."""
    roots: dict[str, str] = {}

    def hold(keys: Iterable[str], why: str) -> None:
        for key in keys:
            roots.setdefault(key, why)

    champion = read_champion(workspace)
    book = RunBook(workspace.runs_folder)
    names = book.ids()
    records = list(book.all())
    by_id = {record.run_id: record for record in records}
    if unreadable := [name for name in names if name not in by_id]:
        raise DamagedError(
            f"the record of run {unreadable[0]} cannot be read; what it needs is not known, so nothing is removed",
            where=str(book.path(unreadable[0])),
            fix="restore it from a backup, or remove it; `millrace verify` says more",
        )
    for role in ("champion", "previous"):
        named = champion.get(role) or {}
        hold(keys_in(named), role)
        if record := by_id.get(str(named.get("run_id", ""))):
            hold(_keys_of_run(record), f"{role} (run {record.run_id})")
    young = datetime.now(UTC) - timedelta(days=keep.days)
    newest = {record.run_id for record in records[-keep.runs :]}
    for record in records:
        if record.pinned:
            hold(_keys_of_run(record), f"pinned run {record.run_id}")
        elif record.outcome == "running":
            hold(_keys_of_run(record), f"running run {record.run_id}")
        elif record.run_id in newest:
            hold(_keys_of_run(record), f"run {record.run_id} (one of the newest {keep.runs})")
        elif record.started and datetime.fromisoformat(record.started) > young:
            hold(_keys_of_run(record), f"run {record.run_id} (younger than {keep.days} days)")
    hold(workspace.in_use(), "in use by a living process")
    return roots


def _former(workspace: Workspace) -> dict[str, str]:
    """Models and selections of former champions that a candidate may still be compared with."""
    today = datetime.now(UTC)
    entries = [entry for entry in read_champion(workspace).get("history", []) if entry.get("compared_until")]
    compared = [entry for entry in entries if datetime.fromisoformat(entry["compared_until"]) > today]
    return {entry[name]: "a former champion" for entry in compared for name in ("train", "select") if name in entry}


def _keys_of_run(record: RunRecord) -> Iterator[str]:
    for entry in record.stages.values():
        if entry.ref:
            yield str(entry.ref["key"])
    yield from keys_in(record.resolved)
    yield from keys_in(record.config)


def keys_in(value: Any) -> Iterator[str]:
    """Artifact keys anywhere in a JSON value, plain or as references."""
    if isinstance(value, str):
        key = key_of(value) or value
        if KEY.fullmatch(key):
            yield key
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from keys_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from keys_in(item)


def _reachable(roots: Mapping[str, str], manifests: Mapping[str, Manifest], *, inputs: bool = True) -> dict[str, str]:
    """The roots and everything they were made from; without `inputs` only what holds files of theirs."""
    kept: dict[str, str] = {}
    todo = list(roots.items())
    while todo:
        key, why = todo.pop()
        if key in kept:
            continue
        kept[key] = why
        if manifest := manifests.get(key):
            needed = {entry.home for entry in manifest.files if entry.home}
            if inputs:
                needed |= {str(read["key"]) for read in manifest.inputs.values()} | set(keys_in(manifest.parameters))
            todo += [(other, f"needed by {key}, kept for: {why}" if " kept for: " not in why else why) for other in needed]
    return kept


def _own_bytes(manifest: Manifest) -> int:
    return sum(entry.size for entry in manifest.files if not entry.home)


def _caches(workspace: Workspace, kept: Mapping[str, str], manifests: Mapping[str, Manifest]) -> Iterator[Doomed]:
    """Folders of packed chunks, named by the fingerprint of their `pack` artifact."""
    packs = {key.partition("/")[2].partition(".")[0] for key in kept if key.startswith("pack/")}
    # A pack that is being made, or that a kill interrupted, has its chunks here and no artifact yet.
    packs |= {path.name.removeprefix("pack-").partition(".")[0] for path in workspace.work_folder.glob("pack-*.*")}
    for folder in sorted(workspace.cache_folder.glob("*")):
        if folder.is_dir() and folder.name not in packs and not folder.name.startswith(".doomed-"):
            yield Doomed("cache", f"cache/{folder.name}", folder_bytes(folder), "its pack artifact is not kept")


def _work(workspace: Workspace, keep: KeepConfig, manifests: Mapping[str, Manifest]) -> Iterator[Doomed]:
    for folder in sorted(workspace.work_folder.glob("*-*.*")):
        key = _key_of_work(folder.name)
        if not key or not folder.is_dir() or not is_free(_lease_path(workspace, key)):
            continue
        if key in manifests:
            yield Doomed("work", f"work/{folder.name}", folder_bytes(folder), "its artifact is published")
        elif _age_seconds(folder) > keep.days * 86400:
            yield Doomed("work", f"work/{folder.name}", folder_bytes(folder), f"nobody went on with it for {keep.days} days")


def _aged(workspace: Workspace, keep: KeepConfig) -> Iterator[Doomed]:
    """Old quarantine, and what dead processes left half renamed or half deleted."""
    for folder in sorted(workspace.quarantine_folder.glob("*")):
        if _age_seconds(folder) > keep.days * 86400:
            yield Doomed("quarantine", f"quarantine/{folder.name}", folder_bytes(folder), f"older than {keep.days} days")
    yield from _spools(workspace, keep)
    yield from _forks(workspace, keep)
    for path in _leftovers(workspace.root):
        if _age_seconds(path) > LEFTOVER_SECONDS:
            yield Doomed("leftover", path.relative_to(workspace.root).as_posix(), folder_bytes(path), "left by a killed process")


def _forks(workspace: Workspace, keep: KeepConfig) -> Iterator[Doomed]:
    """Checkpoints that forks began with, once every fork is done (a model that is published needs its source no more)."""
    needed = "".join(
        str(record.config.get("train", {}).get("parent", ""))
        for record in RunBook(workspace.runs_folder).all()
        if record.outcome != "completed" or record.pinned
    )
    for folder in sorted((workspace.root / "forks").glob("*")):
        if folder.name not in needed and _age_seconds(folder) > keep.days * 86400:
            yield Doomed("leftover", f"forks/{folder.name}", folder_bytes(folder), "the runs that went on from it are done")


def _spools(workspace: Workspace, keep: KeepConfig) -> Iterator[Doomed]:
    """What MLflow was told long ago about runs that are over, once all of it has arrived."""
    from pipeline_lib.tracking.spool import Spool

    running = {record.run_id for record in RunBook(workspace.runs_folder).all() if record.outcome == "running"}
    for path in sorted(workspace.spool_folder.glob("*.jsonl")):
        if path.stem not in running and _age_seconds(path) > keep.days * 86400 and Spool(path).done():
            yield Doomed("spool", f"spool/{path.name}", folder_bytes(path), f"delivered more than {keep.days} days ago")


def _leftovers(root: Path) -> Iterator[Path]:
    """Folders on their way out, and files written beside (`files.write_atomic`), where nobody else puts such names."""
    for top in ("artifacts", "cache", "work", "seen", "runs"):
        for folder, folders, files in os.walk(root / top):  # passes over what vanishes meanwhile
            for name in sorted(n for n in folders if n.startswith(".doomed-")):
                folders.remove(name)
                yield Path(folder, name)
            yield from (Path(folder, name) for name in sorted(files) if BESIDE.fullmatch(name))


def _age_seconds(path: Path) -> float:
    """Time since the last sign of life in a folder (its own entries and those of its folders)."""
    try:
        newest = max([path.stat().st_mtime, *(p.stat().st_mtime for p in path.rglob("*"))])
    except FileNotFoundError:  # somebody works in it
        return 0.0
    return time.time() - newest


def _key_of_work(name: str) -> str:
    """`<stage>-<fingerprint>.<generation>` → key, "" for any other folder."""
    stage, _, rest = name.rpartition("-")
    key = f"{stage}/{rest}"
    return key if KEY.fullmatch(key) else ""


def _lease_path(workspace: Workspace, key: str) -> Path:
    return workspace.lease_path(key.replace("/", "-").rpartition(".")[0])


def _clear_locks(workspace: Workspace) -> None:
    """Remove the lock files of recipes that left nothing behind. Removed while held: whoever waits for one opens a new file."""
    keys = workspace.store.keys()
    alive = {_lease_path(workspace, key).name for key in keys}
    alive |= {
        _lease_path(workspace, key).name for path in workspace.work_folder.glob("*-*.*") if (key := _key_of_work(path.name))
    }
    for path in workspace.locks_folder.glob("*-*.lock"):
        if path.name not in alive and _key_of_work(f"{path.stem}.0"):
            with lease_if_free(path) as free:
                if free:
                    path.unlink(missing_ok=True)
                    path.with_suffix(".owner").unlink(missing_ok=True)
