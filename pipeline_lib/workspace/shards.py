"""Sharded work: what a killed attempt or an earlier artifact of the stage made is not made again.

A shard is known by its mark, the fingerprint of {stage, version, key of the item}. Files are digested where they are made, and
a resumed shard is believed only when its bytes still have these digests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.errors import DamagedError, NotFoundError
from pipeline_lib.workspace.artifact import Artifact, FileEntry, Manifest
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.files import link_or_copy, read_json, remove_tree, write_json
from pipeline_lib.workspace.identity import file_digest

if TYPE_CHECKING:
    from pipeline_lib.workspace.store import Store
    from pipeline_lib.workspace.workspace import Workspace

RECORD = "shard.json"


@dataclass(frozen=True)
class Shard:
    """The committed output of one unit of data work."""

    fingerprint: str
    files: Mapping[str, Path]  # table -> file
    metrics: Mapping[str, Any]
    reused: bool  # taken over from an earlier artifact


@dataclass(frozen=True)
class Known:
    """A shard that exists: in an artifact (entries with a home) or in the work folder (`folder`)."""

    entries: Mapping[str, FileEntry]  # table -> entry
    metrics: Mapping[str, Any]
    folder: Path | None = None


@dataclass
class Counter:
    """Counts finished shards across threads; in another process it is a copy that tells nobody."""

    tell: Callable[[int], None]
    done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Counter, (silent,))

    def __call__(self) -> None:
        """One more is finished."""
        with self._lock:
            self.done += 1
            self.tell(self.done)


def silent(done: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class ShardWork:
    """Runs one shard in a fresh folder and commits it by writing its record last."""

    work: Callable[[Any, Path], dict[str, Any]]
    finished: Callable[[], None]

    def __call__(self, task: tuple[Any, Path]) -> None:
        """Make the shard of (item, folder)."""
        item, folder = task
        remove_tree(folder)
        folder.mkdir(parents=True)
        metrics = self.work(item, folder)
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(folder.iterdir()):
            table = path.name.partition(".")[0]
            if table in files or not path.is_file():
                raise ValueError(f"a shard writes one file a table and no folders; it wrote {path.name} beside {files}")
            files[table] = {"name": path.name, "size": path.stat().st_size, "digest": file_digest(path)}
        fault_point("shard.before_commit")
        write_json(folder / RECORD, {"files": files, "metrics": metrics})
        fault_point("shard.after_commit")
        self.finished()


def shard_at(folder: Path) -> Known | None:
    """The shard that a folder of the work in progress holds, or None when it is not committed or not what was committed."""
    try:
        record = read_json(folder / RECORD)
        for fact in record["files"].values():
            path = folder / fact["name"]
            if path.stat().st_size != fact["size"] or file_digest(path) != fact["digest"]:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    entries = {table: FileEntry(f["name"], table, f["size"], f["digest"]) for table, f in record["files"].items()}
    return Known(entries, record["metrics"], folder)


def _shards_of(manifest: Manifest) -> Iterator[tuple[str, dict[str, FileEntry], Mapping[str, Any]]]:
    by_path = {(entry.home, entry.path): entry for entry in manifest.files}
    for mark, record in manifest.shards.items():
        yield mark, {table: by_path[record["home"], path] for table, path in record["files"].items()}, record["metrics"]


def published_shards(workspace: Workspace, stage: str, wanted: Collection[str]) -> tuple[dict[str, Known], Artifact | None]:
    """Wanted shards that earlier artifacts of a stage hold intact, and the newest artifact that holds any.

    Newest artifacts first, and no manifest is read once everything is found; garbage collection bounds how many there are.
    Whatever is returned is protected from garbage collection.
    """
    found: dict[str, Known] = {}
    parent: Artifact | None = None
    missing = set(wanted)
    for key in workspace.store.newest(stage):
        if not missing:
            break
        try:
            artifact = workspace.store.artifact(key)
        except (DamagedError, NotFoundError):
            continue
        held = {mark: (entries, metrics) for mark, entries, metrics in _shards_of(artifact.manifest) if mark in missing}
        homes = {entry.home or key for entries, _ in held.values() for entry in entries.values()}
        if not held or key not in workspace.use(key, *homes):
            continue
        flat = [entry for entries, _ in held.values() for entry in entries.values()]
        damaged = workspace.store.damages(key, flat)
        for mark, (entries, metrics) in held.items():
            if not any(entry.path in damaged for entry in entries.values()):
                homed = {table: replace(entry, home=entry.home or key) for table, entry in entries.items()}
                found[mark] = Known(homed, metrics)
                missing.discard(mark)
                parent = parent or artifact
    return found, parent


def salvage(store: Store, manifest: Manifest, damaged: Collection[str], work: Path) -> int:
    """Before a damaged artifact goes to quarantine: its intact shards become work in progress, only the rest is remade."""
    saved = 0
    for mark, entries, metrics in _shards_of(manifest):
        own = [entry for entry in entries.values() if not entry.home]
        if len(own) < len(entries) or any(entry.path in damaged for entry in own):
            continue
        try:
            store.bring(manifest.key, own)
        except DamagedError:
            continue
        if store.damages(manifest.key, own, full=True):
            continue
        folder = work / "shards" / mark
        remove_tree(folder)
        folder.mkdir(parents=True)
        files = {}
        for table, entry in entries.items():
            name = table + "".join(Path(entry.path).suffixes)
            link_or_copy(store.place(manifest.key, entry.path), folder / name)
            files[table] = {"name": name, "size": entry.size, "digest": entry.digest}
        write_json(folder / RECORD, {"files": files, "metrics": dict(metrics)})
        saved += 1
    return saved
