"""The nightly run: what is new since last night, trained into the champion, if the gate agrees."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.life import clear_up, ending, living, settle
from flows.options import RunOptions
from flows.pipeline import DEFAULTS, data_line, training_line
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.workspace import Workspace
from tasks.live import LiveRun


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
        data = data_line(run)
        if nothing_new(run):
            run.outcome = "nothing_new"
        else:
            training_line(run, **data)
            settle(run)
    return ending(run)


def nothing_new(run: LiveRun) -> bool:
    """Whether the champion has seen all that was selected tonight. Without a champion there is always something to learn."""
    selected = run.record.ref("select")
    if selected is None or not read_champion(run.workspace).get("champion"):
        return False
    return run.workspace.store.manifest(selected.key).metrics.get("new_documents") == 0
