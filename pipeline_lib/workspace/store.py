"""The artifact store: where published artifacts lie, and the one way in (commit) and out (artifact, quarantine, remove)."""

from __future__ import annotations

import contextlib
import re
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from pipeline_lib.errors import DamagedError, NotFoundError
from pipeline_lib.workspace.artifact import Artifact, FileEntry, Manifest, output_digest, table_digests
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.files import link_or_copy, read_json, remove_tree, sync_file, sync_folder, write_json
from pipeline_lib.workspace.seen import Seen

MANIFEST = "manifest.json"
KEY = re.compile(r"[A-Za-z0-9_-]+/[0-9a-f]{32}\.\d+")


class Store(Protocol):
    """What the engine needs of a place for artifacts."""

    def generations(self, stage: str, fingerprint: str) -> list[str]:
        """Keys of the committed artifacts of one recipe, oldest first."""

    def keys(self, stage: str = "*") -> Iterator[str]:
        """Keys of all committed artifacts (of a stage), in name order."""

    def newest(self, stage: str) -> list[str]:
        """Keys of the committed artifacts of a stage, the last committed first."""

    def has(self, key: str) -> bool:
        """Whether an artifact is committed under this key."""

    def manifest(self, key: str) -> Manifest:
        """The manifest of a committed artifact (NotFoundError, DamagedError)."""

    def artifact(self, key: str) -> Artifact:
        """A committed artifact."""

    def folder(self, key: str) -> Path:
        """An artifact's folder on this machine."""

    def place(self, key: str, path: str) -> Path:
        """Where a file of an artifact lies on this machine once it is here."""

    def bring(self, key: str, entries: Sequence[FileEntry]) -> None:
        """Make sure that files are on this machine (DamagedError when what arrives is not what was committed)."""

    def damages(self, key: str, entries: Sequence[FileEntry], *, full: bool = False, sample: bool = False) -> dict[str, str]:
        """The damaged ones among the files of an artifact, with reasons."""

    def commit(self, staged: Path, manifest: Manifest) -> Artifact:
        """Publish a complete folder; afterwards `staged` is gone."""

    def revise(self, manifest: Manifest, fresh: Mapping[str, Path]) -> None:
        """Put files into a committed artifact, then let this manifest take the place of its own; see `sweep`."""

    def add(self, key: str, fresh: Mapping[str, Path]) -> None:
        """Put files (path in the artifact → where they are now) into an artifact's folder; no manifest names them yet."""

    def sweep(self, key: str) -> list[str]:
        """Remove the files of an artifact that no manifest names; returns their paths."""

    def lent(self, key: str) -> set[str]:
        """Files of an artifact that other artifacts of its stage refer to."""

    def quarantine(self, key: str, reason: str, damaged: Collection[str] = ()) -> Path:
        """Move a damaged artifact aside, with the reason, so that it can be looked at and is never read again."""

    def take_away(self, key: str) -> Path | None:
        """Unpublish an artifact at once; what remains to be deleted, at leisure, is the returned folder (None: nothing)."""

    def scrap(self) -> list[str]:
        """Keys whose folder never got (or lost) its manifest and lends nothing."""


class LocalStore:
    """Artifacts in a folder: `<root>/<stage>/<fingerprint>.<generation>/`.

    Commit = sync, rename, manifest last. Quarantine may leave a folder without manifest that still holds the intact files
    other artifacts call home; it is no artifact, and a new commit under its key carries those files over.
    """

    def __init__(self, root: Path, *, seen: Path, quarantine: Path) -> None:
        self.root, self.seen_folder, self.quarantine_folder = root, seen, quarantine

    def folder(self, key: str) -> Path:
        """An artifact's folder; refuses what is not a key, so that no text can lead out of the store."""
        if not KEY.fullmatch(key):
            raise NotFoundError(f"{key!r} is not an artifact key", fix="`millrace runs` lists what there is")
        return self.root / key

    def place(self, key: str, path: str) -> Path:
        """Where a file lies; refuses paths that lead out of the artifact."""
        pure = PurePosixPath(path)
        if pure.is_absolute() or not pure.parts or ".." in pure.parts or "\\" in path:
            raise DamagedError(f"{path!r} is not a path inside an artifact", where=key)
        return self.folder(key) / pure

    def generations(self, stage: str, fingerprint: str) -> list[str]:
        """Keys of the committed artifacts of one recipe, oldest first."""
        found = [p.parent.name for p in (self.root / stage).glob(f"{fingerprint}.*/{MANIFEST}")]
        return [f"{stage}/{name}" for name in sorted(found, key=lambda name: int(name.rpartition(".")[2]))]

    def _manifests(self, stage: str) -> list[Path]:
        paths = self.root.glob(f"{stage}/*.*/{MANIFEST}")
        return sorted(path for path in paths if KEY.fullmatch(_key_at(path)))

    def keys(self, stage: str = "*") -> Iterator[str]:
        """Keys of all committed artifacts (of a stage)."""
        return iter([_key_at(path) for path in self._manifests(stage)])

    def newest(self, stage: str) -> list[str]:
        """Keys of a stage, the last committed first."""
        dated = []
        for path in self._manifests(stage):
            with contextlib.suppress(FileNotFoundError):
                dated.append((path.stat().st_mtime_ns, _key_at(path)))
        return [key for _, key in sorted(dated, reverse=True)]

    def has(self, key: str) -> bool:
        """Whether an artifact is committed under this key."""
        return (self.folder(key) / MANIFEST).exists()

    def manifest(self, key: str) -> Manifest:
        """The manifest of a committed artifact.

        Raises:
            NotFoundError: nothing was committed under this key.
            DamagedError: the manifest cannot be read.
        """
        path = self.folder(key) / MANIFEST
        try:
            return parse_manifest(key, read_json(path))
        except FileNotFoundError:
            raise NotFoundError(f"no artifact {key!r} in this workspace", fix="`millrace runs` lists what there is") from None
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedError(f"manifest cannot be read ({error})", where=str(path)) from error

    def artifact(self, key: str) -> Artifact:
        """A committed artifact."""
        return Artifact(self.manifest(key), self)

    def bring(self, key: str, entries: Sequence[FileEntry]) -> None:
        """Every file is here already."""

    def seen(self, key: str) -> Seen:
        """What this machine remembers of an artifact's files."""
        return Seen(self.seen_folder / f"{key}.json")

    def damages(self, key: str, entries: Sequence[FileEntry], *, full: bool = False, sample: bool = False) -> dict[str, str]:
        """The damaged ones among the files of an artifact, with reasons."""
        memories = {home: self.seen(home) for home in {key, *(entry.home or key for entry in entries)}}
        turn = memories[key].next_turn(len(entries)) if sample and entries else -1
        found = {}
        for number, entry in enumerate(entries):
            home, deep = entry.home or key, full or number == turn
            place = self.place(home, entry.path)
            if reason := memories[home].damage(entry.path, place, size=entry.size, digest=entry.digest, full=deep):
                found[entry.path] = reason
        for memory in memories.values():
            memory.save()
        return found

    def commit(self, staged: Path, manifest: Manifest) -> Artifact:
        """Publish a complete folder: sync, rename, manifest last."""
        target = self.folder(manifest.key)
        target.parent.mkdir(parents=True, exist_ok=True)
        fault_point("publish.before_sync")
        if target.exists():
            for path in self.lent(manifest.key):
                if not (staged / path).exists() and (target / path).exists():
                    (staged / path).parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(target / path, staged / path)
        own = [entry for entry in manifest.files if not entry.home]
        for entry in own:
            sync_file(staged / entry.path)
        for folder in {staged, *(path for path in staged.rglob("*") if path.is_dir())}:
            sync_folder(folder)
        remove_tree(target)  # scrap: a folder without a manifest
        fault_point("publish.before_rename")
        staged.rename(target)
        sync_folder(target.parent)
        seen = self.seen(manifest.key)
        for entry in own:  # digested a moment ago
            stat = (target / entry.path).stat()
            seen.remember(entry.path, [stat.st_mtime_ns, stat.st_ino])
        seen.save()
        fault_point("publish.before_manifest")
        write_json(target / MANIFEST, manifest.to_json())
        fault_point("publish.after_manifest")
        return self.artifact(manifest.key)

    def add(self, key: str, fresh: Mapping[str, Path]) -> None:
        """Put files into an artifact's folder; no manifest names them yet."""
        for path, source in fresh.items():
            target = self.place(key, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, target)
            sync_file(target)
            sync_folder(target.parent)

    def revise(self, manifest: Manifest, fresh: Mapping[str, Path]) -> None:
        """Files first; the manifest's rename is the commit. What it no longer names stays until `sweep`."""
        self.add(manifest.key, fresh)
        fault_point("forget.before_manifest")
        write_json(self.folder(manifest.key) / MANIFEST, manifest.to_json())
        fault_point("forget.after_manifest")

    def sweep(self, key: str) -> list[str]:
        """Remove the files of an artifact that no manifest names; returns their paths."""
        own = self.manifest(key).files if self.has(key) else ()  # a damaged artifact may have left what others call home
        kept = {entry.path for entry in own if not entry.home} | self.lent(key) | {MANIFEST}
        return self.sweep_to(key, kept)

    def sweep_to(self, key: str, kept: Collection[str]) -> list[str]:
        """Remove the files of an artifact's folder but these; returns their paths."""
        folder, seen, removed = self.folder(key), self.seen(key), []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            if name not in kept:
                path.unlink()
                seen.forget(name)
                removed.append(name)
        seen.save()
        return removed

    def lent(self, key: str) -> set[str]:
        """Files of an artifact that other artifacts of its stage refer to."""
        found: set[str] = set()
        for other in self.keys(key.partition("/")[0]):
            if other != key:
                with contextlib.suppress(DamagedError, NotFoundError):
                    found.update(entry.path for entry in self.manifest(other).files if entry.home == key)
        return found

    def quarantine(self, key: str, reason: str, damaged: Collection[str] = ()) -> Path:
        """Move a damaged artifact aside. Intact files that other artifacts call home stay where they are."""
        folder = self.folder(key)
        target = quarantine_place(self.quarantine_folder, key)
        stay = self.lent(key) - set(damaged)
        target.mkdir(parents=True)
        write_json(target / "reason.json", {"key": key, "reason": reason})
        (folder / MANIFEST).rename(target / MANIFEST)  # from here on it is no artifact
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = path.relative_to(folder).as_posix()
            if name not in stay:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                path.rename(target / name)
        if not stay:
            remove_tree(folder)
        return target

    def take_away(self, key: str) -> Path | None:
        """Unpublish an artifact: manifest first, then out of the way by one rename, so that a kill leaves scrap, not a lie."""
        folder = self.folder(key)
        if not folder.exists():
            return None
        (folder / MANIFEST).unlink(missing_ok=True)
        doomed = folder.with_name(f".doomed-{uuid.uuid4().hex[:8]}")
        folder.rename(doomed)
        self.seen(key).path.unlink(missing_ok=True)
        return doomed

    def scrap(self) -> list[str]:
        """Keys whose folder has no manifest and lends nothing to other artifacts."""
        bare = [path for path in sorted(self.root.glob("*/*.*")) if not (path / MANIFEST).exists()]
        keys = [f"{path.parent.name}/{path.name}" for path in bare]
        return [key for key in keys if KEY.fullmatch(key) and not self.lent(key)]


def quarantine_place(folder: Path, key: str) -> Path:
    """A new folder's name for a damaged artifact."""
    return folder / f"{key.replace('/', '-')}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:4]}"


def _key_at(manifest: Path) -> str:
    return f"{manifest.parent.parent.name}/{manifest.parent.name}"


def parse_manifest(key: str, value: object) -> Manifest:
    """A manifest from JSON, refused when it belongs to another key.

    Raises:
        ValueError, TypeError, KeyError: it is not a manifest of this key.
        ConfigError: a newer version wrote it.
    """
    if not isinstance(value, dict):
        raise TypeError("not a JSON object")
    manifest = Manifest.from_json(value)
    if manifest.key != key:
        raise ValueError(f"it says {manifest.key}")
    if output_digest(manifest.tables, manifest.details) != manifest.digest or table_digests(manifest.files) != manifest.tables:
        raise ValueError("its output digest is not that of the files and details")
    return manifest
