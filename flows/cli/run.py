"""`millrace run`, `rerun`, `retry`: start a run, repeat one with changes, continue one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import show
from flows.cli.command import RUN, Json, RunId, Set, command, home
from flows.cli.progress import ProgressLines

if TYPE_CHECKING:
    from pipeline_lib.config.pipeline import PipelineConfig
    from pipeline_lib.workspace.runs import RunRecord
    from pipeline_lib.workspace.workspace import Workspace

Stage = Annotated[str, typer.Option(metavar="STAGE")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Leave with code 3 when another run owns what is needed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say for every stage what would happen, and why; do nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Make stages again even where their artifacts are finished and intact.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "run", example="millrace run --config deployments/pipelines/nightly.yaml", panel=RUN)(run)
    command(app, "rerun", example="millrace rerun latest --stage train --set train.learning_rate=3e-4", panel=RUN)(rerun)
    command(app, "retry", example="millrace retry latest", panel=RUN)(retry)


def run(
    *,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Pipeline YAML (default: the quickstart).")] = None,
    overrides: Set = [],  # noqa: B006 (typer copies it)
    sample: Annotated[int, typer.Option(min=0, help="Trial run on this many documents (0: all).")] = 0,
    from_stage: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="Start at this stage, on the latest run's data.")
    ] = "",
    only: Annotated[str, typer.Option(metavar="STAGE", help="Run this stage alone, on the latest run's data.")] = "",
    until: Annotated[str, typer.Option(metavar="STAGE", help="Stop after this stage.")] = "",
    force: Force = False,
    recorded: Annotated[
        str,
        typer.Option(
            metavar="RUN|FILE",
            help="Take calibrate, tune and plan from this run, or from a file that `millrace show RUN --recorded` printed; "
            "re-plan as that run did, not by the clock.",
        ),
    ] = "",
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Run a pipeline; what is finished and intact is reused."""
    from flows.cli.pipelines import default_pipeline
    from pipeline_lib.config.load import load_config
    from pipeline_lib.config.paths import allow
    from pipeline_lib.extensions import check_extensions
    from pipeline_lib.run import selection
    from pipeline_lib.workspace.runs import RunBook

    file = config or default_pipeline()
    chosen = selection(from_stage=from_stage, only=only, until=until, force=force, recorded=bool(recorded))
    loaded = load_config(file, overrides, sample=sample)
    check_extensions(loaded)
    workspace = home()
    if dry_run:
        from flows.cli.workspace import print_status

        print_status(workspace, loaded, as_json=as_json, chosen=chosen, recorded=recorded)
        return
    if recorded and not recorded.endswith(".json"):
        RunBook(workspace.runs_folder).load(recorded)  # refused before a run is opened
    allow([file.absolute().parent])  # a person named the file here, so its folder is allowed to the run, too
    if recorded.endswith(".json"):
        allow([Path(recorded).absolute().parent])
    _announce(workspace, loaded, say=show.warn if as_json else show.say)
    from flows.launch import launch

    record = launch(
        loaded,
        workspace=workspace,
        from_stage=from_stage,
        only=only,
        until=until,
        force=force,
        recorded=recorded,
        wait=not no_wait,
        listener=None if as_json else ProgressLines().listener(),
    )
    finish(workspace, record, as_json=as_json)


def rerun(
    run_id: RunId = "latest",
    *,
    stage: Annotated[str, typer.Option(metavar="STAGE", help="Rerun from this stage on; default: the one that failed.")] = "",
    overrides: Set = [],  # noqa: B006
    force: Force = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Make a new run from an old one, with its configuration and your changes."""
    from pipeline_lib.run import selection
    from pipeline_lib.workspace.runs import RunBook

    selection(only=stage)
    workspace = home()
    old = RunBook(workspace.runs_folder).load(run_id)
    _allow_what_it_had(old)
    if dry_run:
        from flows.cli.workspace import print_status
        from flows.parents import config_of, options_of

        options = options_of(old, stage=stage, force=force)
        chosen = options.selection()
        print_status(workspace, config_of(old, overrides), as_json=as_json, chosen=chosen, recorded=options.recorded)
        return
    if not as_json:
        show.say(f"rerun of {old.run_id} ({old.pipeline}), in {show.path(workspace.root)}")
    from flows.launch import rerun as launch_again

    record = launch_again(
        old.run_id,
        workspace=workspace,
        stage=stage,
        force=force,
        overrides=overrides,
        wait=not no_wait,
        listener=None if as_json else ProgressLines().listener(),
    )
    finish(workspace, record, as_json=as_json)


def retry(run_id: RunId = "latest", no_wait: NoWait = False, as_json: Json = False) -> None:
    """Continue a run that failed, was cancelled or was killed: the same record, the next attempt."""
    from pipeline_lib.workspace.runs import RunBook

    workspace = home()
    old = RunBook(workspace.runs_folder).load(run_id)
    _allow_what_it_had(old)
    if not as_json:
        show.say(f"retry of {old.run_id} ({old.pipeline}), attempt {len(old.attempts) + 1}, in {show.path(workspace.root)}")
    from flows.launch import retry as launch_again

    listener = None if as_json else ProgressLines().listener()
    finish(workspace, launch_again(old.run_id, workspace=workspace, wait=not no_wait, listener=listener), as_json=as_json)


def _allow_what_it_had(record: RunRecord) -> None:
    """A record's paths were checked when its run was opened; they stay allowed to its reruns from the command line."""
    from flows.options import RunOptions
    from pipeline_lib.config.paths import allow, local_folders
    from pipeline_lib.config.pipeline import PipelineConfig

    allow(local_folders(PipelineConfig.model_validate(record.config)))
    if (recorded := RunOptions.model_validate_json(record.prefect.get("options", "{}")).recorded).endswith(".json"):
        allow([Path(recorded).absolute().parent])


def _announce(workspace: Workspace, config: PipelineConfig, *, say: Callable[[str], None]) -> None:
    """The first line, before anything heavy is imported: how long at most, until when, how much disk (beside JSON: on standard
    error).

    Raises:
        RefusedError: the disk is too small for what the run is expected to write.
    """
    from pipeline_lib.config.window import deadline
    from pipeline_lib.errors import RefusedError
    from pipeline_lib.workspace.services import now
    from pipeline_lib.workspace.usage import free_bytes, require_disk

    started = now()
    end = deadline(config.resources, started)
    minutes = (end - started).total_seconds() / 60
    window = f"{minutes:.3g} minutes" if minutes < 120 else f"{minutes / 60:.3g} hours"
    try:
        disk = require_disk(workspace, config)
    except RefusedError:  # before giving up, look what is there already: it is not written again
        from pipeline_lib.status import status

        disk = require_disk(
            workspace, config, reused=[stage.stage for stage in status(workspace, config) if stage.state == "reused"]
        )
    say(
        f"{config.name}: at most {window} (until {end.astimezone():%Y-%m-%d %H:%M:%S %Z}), about {show.size(disk.total)} of disk "
        f"({show.size(free_bytes(workspace))} free), in {show.path(workspace.root)}"
    )


def finish(workspace: Workspace, record: RunRecord, *, as_json: bool) -> None:
    """What went in, what came out, the scores, where the report is; the exit code says how it ended."""
    from flows.cli.runs import print_run

    if as_json:
        show.json_out(record.to_json())
    else:
        print_run(workspace, record)
        show.say("\nTo look around in Prefect and MLflow: millrace up")
    if record.outcome in {"failed", "killed"}:
        raise typer.Exit(1)
