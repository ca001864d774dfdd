"""The data stages only."""

from __future__ import annotations

from prefect import flow
from prefect.states import State

from flows.life import ending, living
from flows.options import RunOptions
from flows.pipeline import DEFAULTS, data_line
from pipeline_lib.config.pipeline import PipelineConfig


@flow(name="data", flow_run_name="data {config.name}", persist_result=False)
def data(config: PipelineConfig = DEFAULTS, force: bool = False) -> State:  # type: ignore[type-arg]
    """Read, score, deduplicate, split, select and pack; nothing is trained.

    Args:
        config: What is read and how it is filtered.
        force: Make every stage again, even where it is finished and intact.
    """
    options = RunOptions(until="fill_gaps")
    with living(config, options.model_copy(update={"force": options.wanted() if force else []})) as run:
        data_line(run)
    return ending(run)
