"""What recorded stages once saw, as a file: so that another workspace can follow the same plan to the step."""

from __future__ import annotations

import base64
import shutil
import uuid
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.errors import ConfigError, DamagedError, MillraceError, NotFoundError
from pipeline_lib.workspace.artifact import ArtifactRef, Manifest, output_digest, table_digests
from pipeline_lib.workspace.files import read_json
from pipeline_lib.workspace.identity import bytes_digest

if TYPE_CHECKING:
    from pipeline_lib.workspace.runs import RunRecord
    from pipeline_lib.workspace.workspace import Workspace

EXPORT_FORMAT = 1


def export_recorded(workspace: Workspace, record: RunRecord, names: Collection[str]) -> dict[str, Any]:
    """The outputs of a run's recorded stages as plain JSON (they are small): manifests, and files in base64.

    Raises:
        NotFoundError: the run has no output of a stage.
        DamagedError: a file is not what was committed.
    """
    stages = {}
    for name in names:
        ref = record.ref(name)
        if ref is None:
            raise NotFoundError(f"run {record.run_id} has no finished {name}", fix="name a run that has")
        artifact = workspace.artifact(ref.key)
        files = {}
        for table in dict.fromkeys(entry.table for entry in artifact.manifest.files):
            artifact.files(table)  # verified
        for entry in artifact.manifest.files:
            files[entry.path] = base64.b64encode(artifact.place(entry).read_bytes()).decode("ascii")
        own = [replace(entry, home="") for entry in artifact.manifest.files]
        stages[name] = {"manifest": replace(artifact.manifest, files=own, shards={}).to_json(), "files": files}
    return {"format": EXPORT_FORMAT, "run_id": record.run_id, "stages": stages}


def import_recorded(workspace: Workspace, path: Path, names: Collection[str]) -> dict[str, ArtifactRef]:
    """Bring exported outputs into this workspace, verified; one that is there already is not written again.

    Raises:
        ConfigError: the file is not an export, or misses a stage.
        DamagedError: its bytes are not what they say.
    """
    return {name: _import(workspace, manifest, files) for name, (manifest, files) in _read(path, names).items()}


def exported(path: Path, names: Collection[str]) -> dict[str, Manifest]:
    """The manifests in an exported file.

    Raises:
        ConfigError: the file is not an export, or misses a stage.
    """
    return {name: manifest for name, (manifest, _) in _read(path, names).items()}


def _read(path: Path, names: Collection[str]) -> dict[str, tuple[Manifest, dict[str, str]]]:
    try:
        value = read_json(path)
        if value["format"] != EXPORT_FORMAT:
            raise ConfigError(f"format {value['format']} is not known here", where=str(path), fix="export it again")
        return {name: (Manifest.from_json(value["stages"][name]["manifest"]), value["stages"][name]["files"]) for name in names}
    except MillraceError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"not an export of recorded stages ({error!r})", where=str(path)) from error


def _import(workspace: Workspace, manifest: Manifest, files: dict[str, str]) -> ArtifactRef:
    for key in workspace.store.generations(manifest.stage, manifest.fingerprint):
        if key in workspace.use(key) and workspace.store.manifest(key).digest == manifest.digest:
            return workspace.store.artifact(key).ref(reused=True)
    tables = table_digests(manifest.files)
    if manifest.kind != "recorded" or output_digest(tables, manifest.details) != manifest.digest:
        raise DamagedError("the manifest's digest is not that of its content", where=manifest.key)
    with workspace.lease(f"{manifest.stage}-{manifest.fingerprint}", wait=True):
        taken = workspace.store.generations(manifest.stage, manifest.fingerprint)
        generation = int(taken[-1].rpartition(".")[2]) + 1 if taken else 0
        key = f"{manifest.stage}/{manifest.fingerprint}.{generation}"
        workspace.use(key)
        staged = workspace.work_folder / f"import-{uuid.uuid4().hex[:8]}"
        try:
            staged.mkdir(parents=True)
            for entry in manifest.files:
                data = base64.b64decode(files.get(entry.path, ""), validate=True)
                workspace.store.place(key, entry.path)  # refuses paths that lead out
                if len(data) != entry.size or bytes_digest(data) != entry.digest:
                    raise DamagedError("bytes differ from what was exported", where=f"{manifest.key}/{entry.path}")
                (staged / entry.path).parent.mkdir(parents=True, exist_ok=True)
                (staged / entry.path).write_bytes(data)
            return workspace.store.commit(staged, replace(manifest, key=key)).ref()
        finally:
            shutil.rmtree(staged, ignore_errors=True)
