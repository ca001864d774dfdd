"""Training only, on the data of a run."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.life import ending, living, settle
from flows.options import RunOptions
from flows.parents import config_of, find
from flows.pipeline import training_line


@flow(name="training", flow_run_name="training on {run}", persist_result=False)
def training(run: str = "latest", overrides: list[str] = [], force: bool = False) -> State[Any]:  # noqa: B006
    """Calibrate, tune, plan, train and validate on the packed data of a run.

    Args:
        run: The run whose data is used: its id, the beginning of it, or latest.
        overrides: Changed settings, such as train.learning_rate=3e-4.
        force: Make every training stage again, even where it is finished and intact.
    """
    parent = find(run)
    options = RunOptions(parent=parent.run_id, from_stage="calibrate")
    forced = options.forced() if force else options
    with living(config_of(parent, overrides), forced) as live:
        training_line(live)
        settle(live)
    return ending(live)
