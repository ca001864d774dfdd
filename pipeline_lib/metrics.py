"""The log of a run's training as tables: from its artifact, or while it is still going from the journal it is writing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import NotFoundError
from pipeline_lib.extensions import load_extensions
from pipeline_lib.stages import BY_NAME
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.training.journal import TABLES, read
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.stage import parameters_of, recipe_fingerprint
from pipeline_lib.workspace.workspace import Workspace


def training_log(workspace: Workspace, record: RunRecord, table: str = "steps", *, superseded: bool = False) -> pa.Table:
    """A table of the log of a run's training, schema as in `tables/schemas.py`, in the order in which it was written.

    Args:
        workspace: where the run's artifacts and work in progress lie.
        record: the run; it may be going, stopped, killed or finished.
        table: one of `journal.TABLES`.
        superseded: also rows of steps that a resumed training made again.

    Raises:
        NotFoundError: there is no such table, or the run has not begun to train.
    """
    if table not in TABLES:
        raise NotFoundError(f"there is no table {table!r} of a training", fix="there are " + ", ".join(TABLES))
    found = _published(workspace, record, table) if record.ref("train") else read(_journal(workspace, record), table)
    if superseded or "superseded" not in found.column_names:
        return found
    return found.filter(pc.invert(found["superseded"]))


def _published(workspace: Workspace, record: RunRecord, table: str) -> pa.Table:
    ref = record.ref("train")
    artifact = workspace.artifact(ref.key) if ref else None
    files = [path for path in (artifact.files("observed") if artifact else ()) if path.name == f"{table}.parquet"]
    return read_tables(files) if files else TABLES[table].empty_table()  # a training of an earlier version has fewer tables


def _journal(workspace: Workspace, record: RunRecord) -> Path:
    """The folder of the journal that the run's training is writing, or has left when it was stopped."""
    config, stage = PipelineConfig.model_validate(record.config), BY_NAME["train"]
    refs = {name: record.ref(name) for name in stage.reads}
    manifests = {name: workspace.store.manifest(ref.key) for name, ref in refs.items() if ref}
    if len(manifests) == len(refs):
        load_extensions(config.execution.extensions)
        fingerprint = recipe_fingerprint(stage, parameters_of(stage, config, workspace)[1], manifests)
        folders = sorted(workspace.work_folder.glob(f"train-{fingerprint}.*/journal"), key=lambda path: path.stat().st_mtime)
        if folders:
            return folders[-1]
    raise NotFoundError(
        "the run has no log of a training",
        where=f"run {record.run_id}",
        fix="its training has not begun, or its work was removed",
    )
