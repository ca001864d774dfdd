"""A new run from an old one: its record, and its configuration with changes."""

from __future__ import annotations

from collections.abc import Sequence

from flows.options import RunOptions
from pipeline_lib.config.load import with_overrides
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.stages import STAGES
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace


def find(run: str, workspace: Workspace | None = None) -> RunRecord:
    """The record of a run: by id, the beginning of it, or `latest`.

    Raises:
        NotFoundError: there is none, or more than one.
    """
    return RunBook((workspace or Workspace.open()).runs_folder).load(run)


def options_of(record: RunRecord, *, stage: str = "", force: bool = False, wait: bool = True) -> RunOptions:
    """The options of a new run that repeats `record`, as far as that went; `force` is for `stage`, or all when empty."""
    before = RunOptions.model_validate_json(record.prefect.get("options", "{}"))
    names = [known.name for known in STAGES]
    until = before.until or before.only
    if stage and until and names.index(stage) > names.index(until):
        until = ""
    options = RunOptions.model_validate({"parent": record.run_id, "until": until, "recorded": before.recorded, "wait": wait})
    if not force:
        return options
    return RunOptions.model_validate({**options.model_dump(), "force": [stage]}) if stage else options.forced()


def config_of(record: RunRecord, overrides: Sequence[str] = ()) -> PipelineConfig:
    """The configuration that a run had (mutable names stay what they stood for then), with changes.

    Raises:
        ConfigError: an override is refused.
    """
    config = PipelineConfig.model_validate(record.config)
    return with_overrides(config, overrides) if overrides else config
