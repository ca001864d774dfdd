"""Rerun one stage of a run."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.life import ending, living
from flows.options import StageName
from flows.parents import config_of, find, options_of
from flows.pipeline import whole_line


@flow(name="stage", flow_run_name="stage {stage} of {run}", persist_result=False)
def stage(
    run: str = "latest",
    stage: StageName = "train",
    overrides: list[str] = [],  # noqa: B006 - Prefect shows it in the form and never changes it
    force: bool = False,
) -> State[Any]:
    """Rerun one stage of a run, and what follows from it, as a new run that names its parent.

    Everything before it that is finished and intact is reused; so is what comes after, where the stage's output is the same.

    Args:
        run: The run: its id, the beginning of it, or latest.
        stage: The stage.
        overrides: Changed settings, such as train.learning_rate=3e-4.
        force: Make the stage again even where its artifact is finished and intact.
    """
    parent = find(run)
    with living(config_of(parent, overrides), options_of(parent, stage=stage, force=force)) as live:
        whole_line(live, may_stop=False)
    return ending(live)
