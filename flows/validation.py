"""A finished model on other validation items, in a run of its own: nothing is trained, nothing is promoted."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.life import ending, living
from flows.options import RunOptions
from flows.parents import config_of, find
from tasks.stages import suites, validate


@flow(name="validation", flow_run_name="validation of {run}", persist_result=False)
def validation(run: str = "latest", overrides: list[str] = []) -> State[Any]:  # noqa: B006
    """Build the validation items again and score the model of a run on them.

    Args:
        run: The run whose model is scored: its id, the beginning of it, or latest.
        overrides: Changed settings: suites.paths, suites.names, validation.language_tokens.
    """
    parent = find(run)
    options = RunOptions(parent=parent.run_id, from_stage="validate")
    with living(config_of(parent, overrides), options) as live:
        live.wanted |= {"suites"}  # its parent's were supplied; these are other ones
        validate(live, suites(live))
    return ending(live)
