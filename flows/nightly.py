"""The nightly run: what is new since last night, trained into the champion, if the gate agrees."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.life import clear_up, ending, living
from flows.options import RunOptions
from flows.pipeline import DEFAULTS, whole_line
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.workspace import Workspace


@flow(name="nightly", flow_run_name="nightly {config.name}", persist_result=False)
def nightly(config: PipelineConfig = DEFAULTS) -> State[Any]:
    """Only new or changed source files cost work. With nothing new it ends before calibrating.

    Args:
        config: As deployments/pipelines/nightly.yaml: the champion's tokenizer and model, last night's selection.
    """
    workspace = Workspace.open()
    clear_up(workspace, config)
    if going := [record.run_id for record in RunBook(workspace.runs_folder).all() if record.outcome == "running"]:
        get_run_logger().warning("run %s is still going: this night is skipped", going[-1])
        return Completed(name="Skipped", message=f"run {going[-1]} is still going")
    with living(config, RunOptions()) as run:
        whole_line(run)
    return ending(run)
