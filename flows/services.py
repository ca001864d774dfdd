"""The services of a run: Prefect's task runner as mapper, MLflow as tracker."""

from __future__ import annotations

from flows.listener import listener
from flows.tracking import open_tracker
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.workspace import Workspace
from tasks.mapper import task_mapper, workers_of
from tasks.single import prefect_task


def make_services(config: PipelineConfig, workspace: Workspace, record: RunRecord, *, adaptive: bool = True) -> Services:
    """Everything that stages of this run may ask of the world.

    Args:
        config: the resolved configuration.
        workspace: where the run lives.
        record: the run's record; the tracker notes its ids in it.
        adaptive: false for `--recorded` runs: training follows its plan to the step.
    """
    return Services(
        mapper=task_mapper(config.execution),
        workers=workers_of(config.execution),
        task=prefect_task,
        tracker=open_tracker(config, workspace, record),
        announce=listener().progress,
        adaptive=adaptive,
    )
