"""What else may hold a forgotten text: unfinished work, things set aside as damaged, leftovers of killed processes, reports."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline_lib.errors import MillraceError
from pipeline_lib.forgetting.segments import manifests
from pipeline_lib.reporting.page import report_folder
from pipeline_lib.reporting.report import write_report
from pipeline_lib.workspace.files import remove_tree
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace

WITHOUT_TEXT = ("suites", "calibrate", "tune", "plan", "train")  # stages whose work holds no documents


def rubbish(workspace: Workspace) -> list[Path]:
    """What can be made again, or is of no use, and may hold anything: removed as a whole."""
    return sorted({*_work(workspace), *_set_aside(workspace), *_leftovers(workspace), *_caches(workspace)})


def _work(workspace: Workspace) -> Iterator[Path]:
    yield from workspace.work_folder.glob("forget-*")  # of a killed call
    for path in workspace.work_folder.glob("*-*.*"):
        if path.is_dir() and path.name.partition("-")[0] not in WITHOUT_TEXT:
            yield path


def _set_aside(workspace: Workspace) -> Iterator[Path]:
    for path in workspace.quarantine_folder.glob("*"):
        if path.name.partition("-")[0] not in WITHOUT_TEXT:
            yield path


def _leftovers(workspace: Workspace) -> Iterator[Path]:
    for top in ("artifacts", "cache", "work"):
        yield from (workspace.root / top).rglob(".doomed-*")
    yield from workspace.cache_folder.rglob(".writing-*")
    yield from (workspace.store.folder(key) for key in workspace.store.scrap())


def _caches(workspace: Workspace) -> Iterator[Path]:
    """Chunks that no packing vouches for: of one that was killed, or that garbage collection will fetch."""
    packs = {m.details["cache"] for m in manifests(workspace.store) if m.stage == "pack"}
    yield from (path for path in workspace.cache_folder.glob("*") if path.is_dir() and path.name not in packs)


def remove(paths: Sequence[Path]) -> None:
    """Remove files and folders."""
    for path in paths:
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)


def told_of(workspace: Workspace) -> list[RunRecord]:
    """Runs whose rendered report may show excerpts of what was forgotten: artifacts of theirs were written again."""
    changed = {manifest.key for manifest in manifests(workspace.store) if manifest.supersedes}
    return [
        record
        for record in RunBook(workspace.runs_folder).all()
        if report_folder(workspace, record.run_id).exists()
        and any((ref := record.ref(name)) and (ref.key in changed or not workspace.store.has(ref.key)) for name in record.stages)
    ]


def tell_again(workspace: Workspace, record: RunRecord, order: tuple[str, ...]) -> None:
    """Render a run's report anew, also where MLflow keeps a copy in the workspace; one that cannot be rendered goes."""
    folder = report_folder(workspace, record.run_id)
    try:
        write_report(workspace, record, order)
    except (MillraceError, KeyError, ValueError):
        remove_tree(folder)
    run = str(record.mlflow.get("run_id", ""))
    copies = (workspace.root / "mlartifacts").glob(f"*/{run}/artifacts/report/*") if run.isalnum() else ()
    for copy in sorted(copies):
        if (folder / copy.name).exists():
            shutil.copyfile(folder / copy.name, copy)
        else:
            copy.unlink()
