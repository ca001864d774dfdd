"""Artifacts with given contents: what a stage reads, without the stages before it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline_lib.config.fields import Section, setting
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import ROWS
from pipeline_lib.workspace.artifact import ArtifactRef
from pipeline_lib.workspace.identity import file_digest, tree_digest
from pipeline_lib.workspace.stage import Outcome, Stage, StageRun, execute
from pipeline_lib.workspace.workspace import Workspace


class Given(Section):
    """What an artifact holds."""

    tables: dict[str, str] = setting(dict, "Table → file or folder")
    details: dict[str, Any] = setting(dict, "Details")
    metrics: dict[str, float] = setting(dict, "Metrics")


class Config(PipelineConfig):
    """A configuration with it."""

    given: Given = setting(Given, "Contents")


def contents(*, given: Given) -> dict[str, str]:
    """Digests of what is given."""
    return {table: (tree_digest if Path(path).is_dir() else file_digest)(Path(path)) for table, path in given.tables.items()}


def copied(run: StageRun, *, given: Given) -> Outcome:
    """The stage: copy."""
    for table, path in given.tables.items():
        for file in sorted(Path(path).iterdir()) if Path(path).is_dir() else [Path(path)]:
            shutil.copyfile(file, run.path(table, file.name))
    return Outcome(details=given.details, metrics=dict(given.metrics))


def packed(selection: pa.Table) -> pa.Table:
    """The rows that `pack` would make of a selection, as far as their documents go."""
    return pa.Table.from_pylist(selection.select(["side", "doc_id", "domain"]).to_pylist(), schema=ROWS)


def publish(
    workspace: Workspace,
    stage: str,
    tables: Mapping[str, Path | pa.Table],
    details: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> ArtifactRef:
    """Publish tables, files and folders as the artifact of a stage."""
    paths: dict[str, str] = {}
    for table, value in tables.items():
        path = value if isinstance(value, Path) else workspace.root / "given" / f"{stage}-{table}.parquet"
        if isinstance(value, pa.Table):
            path.parent.mkdir(exist_ok=True)
            write_table(value, path)
        paths[table] = str(path)
    row = Stage(stage, 1, "pure", "tests.published:copied", sections=("given",), outside="tests.published:contents")
    given = Given(tables=paths, details=dict(details or {}), metrics=dict(metrics or {}))
    return execute(workspace, row, Config(given=given), {})
