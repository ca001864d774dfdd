"""The artifact store: where published artifacts lie, and the one way in (commit) and out (artifact, quarantine, remove)."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline_lib.errors import DamagedError, NotFoundError
from pipeline_lib.workspace.artifact import Artifact, Manifest, remember_all
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.files import read_json, remove_tree, sync_file, sync_folder, write_json

MANIFEST = "manifest.json"


class LocalStore:
    """Artifacts in a folder: `<root>/<stage>/<fingerprint>.<generation>/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def generations(self, stage: str, fingerprint: str) -> list[str]:
        """Keys of the committed artifacts of one recipe, oldest first."""
        found = [p.parent.name for p in (self.root / stage).glob(f"{fingerprint}.*/{MANIFEST}")]
        return [f"{stage}/{name}" for name in sorted(found, key=lambda name: int(name.rpartition(".")[2]))]

    def keys(self, stage: str = "*") -> Iterator[str]:
        """Keys of all committed artifacts (of a stage)."""
        for path in sorted(self.root.glob(f"{stage}/*.*/{MANIFEST}")):
            yield f"{path.parent.parent.name}/{path.parent.name}"

    def manifest(self, key: str) -> Manifest:
        """The manifest of a committed artifact.

        Raises:
            NotFoundError: nothing was committed under this key.
            DamagedError: the manifest cannot be read.
        """
        path = self.root / key / MANIFEST
        try:
            return Manifest.from_json(read_json(path))
        except FileNotFoundError:
            raise NotFoundError(f"no artifact {key!r} in this workspace", fix="`millrace runs` lists what there is") from None
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedError(f"manifest cannot be read ({error})", where=str(path)) from error

    def artifact(self, key: str) -> Artifact:
        """A committed artifact with every folder its files lie in."""
        manifest = self.manifest(key)
        homes = {key, *(entry.home for entry in manifest.files if entry.home)}
        return Artifact(manifest, {home: self.root / home for home in homes})

    def commit(self, staged: Path, manifest: Manifest) -> Artifact:
        """Publish a complete folder: sync, rename, manifest last."""
        target = self.root / manifest.key
        target.parent.mkdir(parents=True, exist_ok=True)
        fault_point("publish.before_sync")
        for entry in manifest.files:
            if not entry.home:
                sync_file(staged / entry.path)
        for folder in {staged, *(path for path in staged.rglob("*") if path.is_dir())}:
            sync_folder(folder)
        remove_tree(target)  # scrap: a folder that never got its manifest
        fault_point("publish.before_rename")
        staged.rename(target)
        sync_folder(target.parent)
        remember_all(target, manifest.files)
        fault_point("publish.before_manifest")
        write_json(target / MANIFEST, manifest.to_json())
        fault_point("publish.after_manifest")
        return self.artifact(manifest.key)

    def quarantine(self, key: str, into: Path, reason: str) -> Path:
        """Move a damaged artifact aside, with the reason, so that it can be looked at and is never read again."""
        target = into / f"{key.replace('/', '-')}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:4]}"
        into.mkdir(parents=True, exist_ok=True)
        (self.root / key / MANIFEST).rename(self.root / key / "manifest.damaged.json")
        (self.root / key).rename(target)
        write_json(target / "reason.json", {"key": key, "reason": reason})
        return target

    def remove(self, key: str) -> None:
        """Delete an artifact: manifest first, so that a kill leaves scrap, not a lie."""
        (self.root / key / MANIFEST).unlink(missing_ok=True)
        remove_tree(self.root / key)
