"""Start runs from the command line or from Python: the same flows, in this process, whatever server there is.

Nothing here imports Prefect before `prefect_for` has set it up.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from flows.environment import prefect_for
from flows.listener import Listener, listening
from flows.options import RunOptions
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.extensions import allow_modules
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import State


def launch(
    config: PipelineConfig,
    *,
    workspace: Workspace,
    parent: str = "",
    from_stage: str = "",
    only: str = "",
    until: str = "",
    force: bool = False,
    recorded: str = "",
    wait: bool = True,
    listener: Listener | None = None,
) -> RunRecord:
    """Run a pipeline and wait for its end.

    Args:
        config: what to run.
        workspace: where.
        parent: run that this one repeats; stages before `from_stage` are taken from it (empty: the latest run).
        from_stage: start here.
        only: run this stage alone.
        until: stop after this stage.
        force: make the stages that run again, even where they are finished and intact.
        recorded: take the recorded stages from this run and follow its plan to the step.
        wait: wait for another run that makes the same artifact.
        listener: told how it goes.

    Returns:
        The record of the run; `outcome` is completed, nothing_new or cancelled.

    Raises:
        KeyboardInterrupt: a person stopped it; the record says cancelled and everything is resumable.
        MillraceError: it failed; the record, the report and Prefect are closed.
    """
    allow_modules(config)
    options = _options(parent=parent, from_stage=from_stage, only=only, until=until, recorded=recorded, wait=wait)
    options = options.forced() if force else options

    def start() -> State[Any]:
        from flows.pipeline import pipeline

        return pipeline(config, options, return_state=True)

    return _run(workspace, start, listener)


def rerun(
    run_id: str,
    *,
    workspace: Workspace,
    stage: str = "",
    force: bool = False,
    overrides: Sequence[str] = (),
    wait: bool = True,
    listener: Listener | None = None,
) -> RunRecord:
    """Run again as a new run that names its parent: what is finished and intact is reused, the rest runs.

    Args:
        run_id: the parent: id, its beginning, or `latest`.
        workspace: where.
        stage: the stage that is meant; with `force` it is made again. Empty: whatever is not finished (force: everything).
        force: see `stage`.
        overrides: changed settings, `section.name=value`.
        wait: wait for another run that makes the same artifact.
        listener: told how it goes.

    Raises: as `launch`.
    """
    from flows.parents import config_of, find, options_of

    parent = find(run_id, workspace)
    config = config_of(parent, overrides)
    allow_modules(config)
    options = options_of(parent, stage=stage, force=force, wait=wait)

    def start() -> State[Any]:
        from flows.pipeline import pipeline

        return pipeline(config, options, return_state=True)

    return _run(workspace, start, listener)


def retry(run_id: str, *, workspace: Workspace, wait: bool = True, listener: Listener | None = None) -> RunRecord:
    """Go on with a run: the same record, its next attempt. Of a finished run, what is damaged is made again.

    Raises: as `launch`; BusyError where the run is still going.
    """
    from flows.parents import config_of, find

    record = find(run_id, workspace)
    config = config_of(record)
    allow_modules(config)
    options = _options(resume=record.run_id, wait=wait)

    def start() -> State[Any]:
        from flows.pipeline import pipeline

        return pipeline(config, options, return_state=True)

    return _run(workspace, start, listener)


def score(run_id: str, *, workspace: Workspace, overrides: Sequence[str], listener: Listener | None = None) -> RunRecord:
    """Score the model of a run on other validation items, as a new run that names it.

    Raises: as `launch`.
    """
    from flows.parents import config_of, find

    parent = find(run_id, workspace)
    allow_modules(config_of(parent, overrides))

    def start() -> State[Any]:
        from flows.validation import validation

        return validation(parent.run_id, list(overrides), return_state=True)

    return _run(workspace, start, listener)


def nightly(config: PipelineConfig, *, workspace: Workspace, listener: Listener | None = None) -> RunRecord | None:
    """A night by hand. None: another run was still going, so this night is skipped.

    Raises: as `launch`.
    """
    allow_modules(config)

    def start() -> State[Any]:
        from flows.nightly import nightly as flow

        return flow(config, return_state=True)

    try:
        return _run(workspace, start, listener)
    except LookupError:
        return None


def _options(**values: Any) -> RunOptions:
    from pydantic import ValidationError

    try:
        return RunOptions(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{first['input']!r}: {first['msg']}", where=name.replace("_stage", "")) from error


def _run(workspace: Workspace, start: Callable[[], State[Any]], listener: Listener | None) -> RunRecord:
    with _sigterm_as_interrupt(), listening(listener), prefect_for(workspace, silent=listener is not None):
        state = start()
        record = _record_of(workspace, state.state_details.flow_run_id)
        if record is not None and record.outcome == "cancelled":
            raise KeyboardInterrupt
        if not state.is_completed():
            state.result(raise_on_failure=True)
        if record is None:
            raise LookupError("the flow opened no run")
        return record


def _record_of(workspace: Workspace, flow_run_id: UUID | None) -> RunRecord | None:
    book = RunBook(workspace.runs_folder)
    for run_id in reversed(book.ids()):
        record = book.load(run_id)
        if record.prefect.get("flow_run_id") == str(flow_run_id):
            return record
    return None


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: closed, reported, resumable."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
