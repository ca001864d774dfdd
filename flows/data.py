"""The data stages only."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.life import ending, living
from flows.options import RunOptions
from flows.pipeline import DEFAULTS, choosing_line, packing_line
from pipeline_lib.config.pipeline import PipelineConfig


@flow(name="data", flow_run_name="data {config.name}", persist_result=False)
def data(config: PipelineConfig = DEFAULTS, force: bool = False) -> State[Any]:
    """Read, score, deduplicate, split, select and pack; nothing is trained.

    Args:
        config: What is read and how it is filtered.
        force: Make every stage again, even where it is finished and intact.
    """
    options = RunOptions(until="fill_gaps")
    with living(config, options.forced() if force else options) as run:
        _, documents, chosen = choosing_line(run)
        packing_line(run, documents, chosen)
    return ending(run)
