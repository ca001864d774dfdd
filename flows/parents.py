"""A new run from an old one: its record, and its configuration with changes."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from pipeline_lib.config.load import load_config
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace


def find(run: str, workspace: Workspace | None = None) -> RunRecord:
    """The record of a run: by id, the beginning of it, or `latest`.

    Raises:
        NotFoundError: there is none, or more than one.
    """
    return RunBook((workspace or Workspace.open()).runs_folder).load(run)


def config_of(record: RunRecord, overrides: Sequence[str] = ()) -> PipelineConfig:
    """The configuration that a run had (mutable names stay what they stood for then), with changes.

    Raises:
        ConfigError: an override is refused.
    """
    if not overrides:
        return PipelineConfig.model_validate(record.config)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{record.run_id}.yaml"
        path.write_text(yaml.safe_dump(record.config))
        return load_config(path, overrides)
