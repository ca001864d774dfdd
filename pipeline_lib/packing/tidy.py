"""Take out of a cache folder what nothing refers to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib.packing.cache import facts_of
from pipeline_lib.packing.growth import tombstones_of
from pipeline_lib.packing.manifest import Listing, read_manifest, rewrite
from pipeline_lib.tables.parquet import read_tables

if TYPE_CHECKING:
    from pipeline_lib.workspace.artifact import Artifact
    from pipeline_lib.workspace.workspace import Workspace

STALE_SECONDS = 3600  # an unfinished file that is younger may be one that `fill` or a training writes at this moment


@dataclass(frozen=True)
class Tidied:
    """What was removed."""

    files: int
    freed_bytes: int
    lines: int  # of the manifest: damaged, outdated, or of chunks that are gone
    dead_rows: int  # documents whose bytes are still there although the newest era does not read them


def tidy(workspace: Workspace, folder: Path) -> Tidied:
    """Remove unfinished files (an hour old) and chunks that neither an artifact nor the manifest names; rewrite the manifest.

    Raises:
        BusyError: a run packs this cache.
    """
    with workspace.lease(f"pack-{folder.name}", wait=False):
        vouched = [artifact for stage in ("pack", "fill_gaps") for artifact in _artifacts(workspace, stage)]
        listed = [facts for one in vouched for facts in facts_of(read_tables(one.files("chunks")))]
        named = {facts.name for facts in listed if facts.cache == folder.name}
        before = read_manifest(folder)
        doomed = [path for path in folder.glob("*.arrow") if path.stem not in named and path.stem not in before.chunks]
        doomed += [path for path in folder.glob(".writing-*") if time.time() - path.stat().st_mtime > STALE_SECONDS]
        freed = sum(path.stat().st_size for path in doomed)
        for path in doomed:
            path.unlink()
        kept = {name: facts for name, facts in before.chunks.items() if facts.file(folder).exists()}
        grown = list({str(entry): entry for entry in before.grown}.values())
        rewrite(folder, Listing(kept, grown))
    lines = before.lines - len(kept) - len(grown)
    mine = [one for one in vouched if one.details["cache"] == folder.name]
    return Tidied(len(doomed), freed, lines, max((len(tombstones_of(one)) for one in mine), default=0))


def _artifacts(workspace: Workspace, stage: str) -> list[Artifact]:
    return [workspace.artifact(key) for key in workspace.store.keys(stage)]
