"""Artifacts behind an fsspec URL (`s3://bucket/folder`, `memory://…`), with a local mirror of what was made or read here.

Object stores have no rename, so the manifest alone commits: files first, manifest last; a prefix without a manifest is scrap.
A file is fetched when it is needed, verified before it gets its name in the mirror, and then checked like a local one. A file
that never was here is checked by its size, or by its bytes on a full check. Work in progress, leases, run records and databases
stay local. One store belongs to one workspace: others may read it, only its owner collects garbage.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from pipeline_lib.errors import ConfigError, DamagedError, NotFoundError
from pipeline_lib.secrets import hide_passwords, told
from pipeline_lib.workspace.artifact import Artifact, FileEntry, Manifest
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.files import remove_tree, sync_file, write_json
from pipeline_lib.workspace.identity import file_digest
from pipeline_lib.workspace.store import KEY, MANIFEST, LocalStore, parse_manifest, quarantine_place

OWNER = "store.json"


class RemoteStore:
    """Artifacts at a URL; see the module."""

    def __init__(self, url: str, *, mirror: LocalStore) -> None:
        if "://" not in url:
            raise ConfigError(
                f"{hide_passwords(url)!r} is not a URL", where="$MILLRACE_STORE", fix="for example s3://bucket/folder"
            )
        try:
            self.files, self.base = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                told(error), where=f"store {hide_passwords(url)}", fix="install what it needs: `pip install millrace[s3]`"
            ) from None
        self.base = self.base.rstrip("/")
        self.mirror = mirror

    def owner(self, workspace_id: str) -> str:
        """Whose store this is; a new one becomes the asking workspace's."""
        path = f"{self.base}/{OWNER}"
        if not self.files.exists(path):
            self.files.makedirs(self.base, exist_ok=True)
            self._write_json(path, {"workspace": workspace_id})
        return str(self._read_json(path)["workspace"])

    def _at(self, key: str, path: str = "") -> str:
        if not KEY.fullmatch(key):
            raise NotFoundError(f"{key!r} is not an artifact key", fix="`millrace runs` lists what there is")
        return f"{self.base}/{key}/{path}" if path else f"{self.base}/{key}"

    def _read_json(self, path: str) -> Any:
        return json.loads(self.files.cat_file(path))

    def _write_json(self, path: str, value: Any) -> None:
        self.files.pipe_file(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode())

    def _fresh(self) -> None:
        self.files.invalidate_cache()  # other processes write too

    def _manifests(self, stage: str) -> list[str]:
        self._fresh()
        found = (str(path) for path in self.files.glob(f"{self.base}/{stage}/*/{MANIFEST}"))
        keys = ("/".join(PurePosixPath(path).parts[-3:-1]) for path in found)
        return sorted(key for key in keys if KEY.fullmatch(key))

    def generations(self, stage: str, fingerprint: str) -> list[str]:
        """Keys of the committed artifacts of one recipe, oldest first."""
        keys = [key for key in self._manifests(stage) if key.startswith(f"{stage}/{fingerprint}.")]
        return sorted(keys, key=lambda key: int(key.rpartition(".")[2]))

    def keys(self, stage: str = "*") -> Iterator[str]:
        """Keys of all committed artifacts (of a stage)."""
        return iter(self._manifests(stage))

    def newest(self, stage: str) -> list[str]:
        """Keys of a stage, the last committed first."""
        dated = [(self.files.modified(self._at(key, MANIFEST)), key) for key in self._manifests(stage)]
        return [key for _, key in sorted(dated, reverse=True)]

    def has(self, key: str) -> bool:
        """Whether an artifact is committed under this key."""
        self._fresh()
        return bool(self.files.exists(self._at(key, MANIFEST)))

    def manifest(self, key: str) -> Manifest:
        """The manifest of a committed artifact (NotFoundError, DamagedError)."""
        path = self._at(key, MANIFEST)
        try:
            return parse_manifest(key, self._read_json(path))
        except FileNotFoundError:
            raise NotFoundError(f"no artifact {key!r} in this store", fix="`millrace runs` lists what there is") from None
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedError(f"manifest cannot be read ({error})", where=path) from error

    def artifact(self, key: str) -> Artifact:
        """A committed artifact."""
        return Artifact(self.manifest(key), self)

    def folder(self, key: str) -> Path:
        """Its folder in the mirror."""
        return self.mirror.folder(key)

    def place(self, key: str, path: str) -> Path:
        """Where a file lies in the mirror once it was brought."""
        return self.mirror.place(key, path)

    def bring(self, key: str, entries: Sequence[FileEntry]) -> None:
        """Fetch what is not here; a file gets its name only when its bytes are those that were committed."""
        for entry in entries:
            home = entry.home or key
            target = self.place(home, entry.path)
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
            try:
                self.files.get_file(self._at(home, entry.path), str(beside))
            except FileNotFoundError:
                raise DamagedError("file is missing", where=f"{home}/{entry.path}", fix="run the pipeline again") from None
            if file_digest(beside) != entry.digest:
                beside.unlink()
                raise DamagedError(
                    "bytes differ from what was committed", where=f"{home}/{entry.path}", fix="run the pipeline again"
                )
            sync_file(beside)
            beside.replace(target)

    def damages(self, key: str, entries: Sequence[FileEntry], *, full: bool = False, sample: bool = False) -> dict[str, str]:
        """The damaged ones among the files of an artifact. A mirrored file that went bad is dropped and judged at its origin."""
        here = [entry for entry in entries if self.place(entry.home or key, entry.path).exists()]
        for path in self.mirror.damages(key, here, full=full, sample=sample):
            for entry in here:
                if entry.path == path:
                    self.place(entry.home or key, path).unlink(missing_ok=True)
        found: dict[str, str] = {}
        sizes: dict[str, dict[str, int]] = {}
        for entry in entries:
            home = entry.home or key
            if home not in sizes:
                self._fresh()
                listed = self.files.find(self._at(home), detail=True)
                sizes[home] = {"/".join(PurePosixPath(path).parts): int(info["size"]) for path, info in listed.items()}
            size = sizes[home].get("/".join(PurePosixPath(self._at(home, entry.path)).parts))
            if size is None:
                found[entry.path] = "file is missing"
            elif size != entry.size:
                found[entry.path] = f"size is {size}, committed were {entry.size} bytes"
            elif full:
                self.place(home, entry.path).unlink(missing_ok=True)
                try:
                    self.bring(key, [entry])
                except DamagedError as error:
                    found[entry.path] = error.what
        return found

    def commit(self, staged: Path, manifest: Manifest) -> Artifact:
        """Upload the files, then the manifest; then keep the folder as the mirror."""
        key = manifest.key
        own = [entry for entry in manifest.files if not entry.home]
        for folder in sorted({self._at(key), *(self._at(key, entry.path).rpartition("/")[0] for entry in own)}):
            self.files.makedirs(folder, exist_ok=True)  # nothing where folders are only names
        for entry in own:
            self.files.put_file(str(staged / entry.path), self._at(key, entry.path))
        fault_point("publish.before_manifest")
        self._write_json(self._at(key, MANIFEST), manifest.to_json())
        fault_point("publish.after_manifest")
        self.mirror.commit(staged, manifest)
        return Artifact(manifest, self)

    def add(self, key: str, fresh: Mapping[str, Path]) -> None:
        """Upload files of an artifact; no manifest names them yet."""
        for path, source in fresh.items():
            at = self._at(key, path)
            self.files.makedirs(at.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(source), at)
        self.mirror.add(key, fresh)

    def revise(self, manifest: Manifest, fresh: Mapping[str, Path]) -> None:
        """Upload files, then the manifest, which commits them; what it no longer names stays until `sweep`."""
        self.add(manifest.key, fresh)
        fault_point("forget.before_manifest")
        self._write_json(self._at(manifest.key, MANIFEST), manifest.to_json())
        fault_point("forget.after_manifest")
        if self.mirror.has(manifest.key):
            self.mirror.revise(manifest, {})

    def sweep(self, key: str) -> list[str]:
        """Remove the files of an artifact that no manifest names, there and in the mirror; returns their paths."""
        own = self.manifest(key).files if self.has(key) else ()
        kept = {entry.path for entry in own if not entry.home} | self.lent(key) | {MANIFEST}
        self._fresh()
        prefix = len(PurePosixPath(self._at(key)).parts)
        there = ["/".join(PurePosixPath(path).parts[prefix:]) for path in self.files.find(self._at(key))]
        removed = sorted(set(there) - kept)
        for path in removed:
            self.files.rm_file(self._at(key, path))
        return sorted({*removed, *self.mirror.sweep_to(key, kept)})

    def lent(self, key: str) -> set[str]:
        """Files of an artifact that other artifacts of its stage refer to."""
        found: set[str] = set()
        for other in self.keys(key.partition("/")[0]):
            if other != key:
                try:
                    found.update(entry.path for entry in self.manifest(other).files if entry.home == key)
                except (DamagedError, NotFoundError):
                    continue
        return found

    def quarantine(self, key: str, reason: str, damaged: Collection[str] = ()) -> Path:
        """Unpublish a damaged artifact; its manifest and the damaged files' bytes are kept in the local quarantine."""
        target = quarantine_place(self.mirror.quarantine_folder, key)
        target.mkdir(parents=True)
        write_json(target / "reason.json", {"key": key, "reason": reason})
        stay = self.lent(key) - set(damaged)
        for path in (MANIFEST, *damaged):
            if self.files.exists(self._at(key, path)):
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                self.files.get_file(self._at(key, path), str(target / path))
        self.files.rm_file(self._at(key, MANIFEST))
        self._remove_files(key, keep=stay)
        if self.folder(key).exists() and not stay:
            remove_tree(self.folder(key))
        return target

    def _remove_files(self, key: str, keep: Collection[str] = ()) -> None:
        kept = {"/".join(PurePosixPath(self._at(key, path)).parts) for path in keep}
        self._fresh()
        for path in self.files.find(self._at(key)):
            if "/".join(PurePosixPath(path).parts) not in kept:
                self.files.rm_file(path)

    def take_away(self, key: str) -> Path | None:
        """Unpublish an artifact: manifest first, then its files, then the mirror."""
        if self.has(key):
            self.files.rm_file(self._at(key, MANIFEST))
        self._remove_files(key)
        return self.mirror.take_away(key)

    def scrap(self) -> list[str]:
        """Keys of prefixes without a manifest that lend nothing."""
        self._fresh()
        prefix = len(PurePosixPath(self.base).parts)
        bare = {"/".join(PurePosixPath(path).parts[prefix : prefix + 2]) for path in self.files.find(self.base)}
        bare |= set(self.mirror.scrap())
        committed = set(self.keys())
        return sorted(key for key in bare - committed if KEY.fullmatch(key) and not self.lent(key))
