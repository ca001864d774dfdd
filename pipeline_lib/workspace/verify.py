"""Is everything what it was when it was committed? Looks only; damaged artifacts go to quarantine when a run wants them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline_lib.errors import DamagedError, MillraceError
from pipeline_lib.workspace.artifact import Artifact, output_digest, table_digests
from pipeline_lib.workspace.files import read_json
from pipeline_lib.workspace.gc import keys_in
from pipeline_lib.workspace.resolve import CHAMPION_ENTRY, read_champion
from pipeline_lib.workspace.runs import RunBook, RunRecord

if TYPE_CHECKING:
    from pipeline_lib.workspace.workspace import Workspace


@dataclass(frozen=True)
class Finding:
    """Something that is not what it should be."""

    where: str  # artifact key and file, or path in the workspace
    what: str
    fix: str


REMAKE = "run the pipeline again: it goes to quarantine and is made again"


def verify_all(workspace: Workspace, *, full: bool) -> list[Finding]:
    """Check every artifact, every run record and the champion.

    Args:
        workspace: what to check.
        full: digest every file, also those whose size, time and inode are unchanged.
    """
    return [*_artifacts(workspace, full=full), *_records(workspace), *_champion(workspace)]


def _artifacts(workspace: Workspace, *, full: bool) -> list[Finding]:
    findings = []
    keys = workspace.store.keys()
    for key in keys:
        try:
            artifact = workspace.store.artifact(key)
        except MillraceError as error:
            findings.append(Finding(key, error.what, error.fix or REMAKE))
            continue
        if reason := _contradiction(artifact):
            findings.append(Finding(key, reason, REMAKE))
        findings += [Finding(f"{key}/{path}", what, REMAKE) for path, what in artifact.damages(full=full).items()]
    return findings


def _contradiction(artifact: Artifact) -> str:
    """Whether the manifest's digests are those of what it lists."""
    manifest = artifact.manifest
    tables = table_digests(manifest.files)
    if tables != manifest.tables or output_digest(tables, manifest.details) != manifest.digest:
        return "the manifest's digest is not that of the files and details it lists"
    return ""


def _records(workspace: Workspace) -> list[Finding]:
    book = RunBook(workspace.runs_folder)
    findings = []
    for run_id in book.ids():
        where = f"runs/{run_id}.json"
        try:
            record = RunRecord.from_json(read_json(book.path(run_id)))
        except MillraceError as error:
            findings.append(Finding(where, error.what, error.fix))
            continue
        except (OSError, ValueError, TypeError, KeyError) as error:
            findings.append(Finding(where, f"cannot be read ({error!r})", "restore it from a backup, or remove it"))
            continue
        if record.run_id != run_id:
            findings.append(Finding(where, f"it is the record of {record.run_id}", "give it its right name"))
        if book.load(run_id).pinned:
            gone = [
                key for entry in record.stages.values() if entry.ref and not workspace.store.has(key := str(entry.ref["key"]))
            ]
            findings += [Finding(where, f"pinned, but {key} is gone", "run it again: `millrace rerun`") for key in gone]
    return findings


def _champion(workspace: Workspace) -> list[Finding]:
    try:
        state = read_champion(workspace)
    except DamagedError as error:
        return [Finding("champion.json", error.what, error.fix)]
    entries = {role: entry for role in ("champion", "previous") if (entry := state.get(role))}
    named = {role: set(keys_in(entry)) for role, entry in entries.items()}
    return [
        Finding("champion.json", f"{role} has no {name}", "restore it from a backup, or promote a run again")
        for role, entry in entries.items()
        for name in CHAMPION_ENTRY
        if not isinstance(entry.get(name), str)
    ] + [
        Finding("champion.json", f"{role} names {key}, which is gone", "`millrace rollback`, or promote another run")
        for role, keys in named.items()
        for key in sorted(keys)
        if not workspace.store.has(key)
    ]
