"""`millrace up`, `down`, `doctor`, `approve`: the servers, this machine, and answers to a run that asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import show
from flows.cli.command import DECIDE, RUN, START, Json, RunId, command, home

if TYPE_CHECKING:
    from flows.servers import Servers


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "doctor", example="millrace doctor", panel=START)(doctor)
    command(app, "up", example="millrace up", panel=RUN)(up)
    command(app, "down", example="millrace down", panel=RUN)(down)
    command(app, "approve", example="millrace approve latest --keep", panel=DECIDE)(approve)


def up(
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    expose: Annotated[
        bool,
        typer.Option(
            "--expose",
            help="Allow an address that other machines reach. Neither server asks for a password: whoever reaches it can start "
            "runs with the rights of this account, read all runs and delete them.",
        ),
    ] = False,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="Another free one is chosen where it is taken.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Another free one is chosen where it is taken.")] = 5000,
) -> None:
    """Start Prefect, MLflow, a worker and the deployments; Ctrl-C stops them all."""
    from flows.servers import serve
    from pipeline_lib.tracking.server import experiments_link

    workspace = home()

    def opened(servers: Servers) -> None:
        show.say(f"Prefect  {servers.prefect}")
        show.say(f"MLflow   {experiments_link(servers.mlflow)}")
        show.say("Ctrl-C stops both, and the worker; runs that are going then are cancelled and can be retried")

    serve(
        workspace,
        opened=opened,
        host=host,
        exposed=expose,
        prefect_port=prefect_port,
        mlflow_port=mlflow_port,
        say=show.say,
    )
    show.say("stopped")


def down() -> None:
    """Stop what `millrace up` started elsewhere."""
    from flows.servers import down as stop_servers

    workspace = home()
    show.say("stopped" if stop_servers(workspace) else f"nothing runs for {show.path(workspace.root)}")


def doctor(as_json: Json = False) -> None:
    """Check machine, versions, servers, work pool, limits, schedules and disk, and say what to do."""
    from flows.doctor import examine, exit_code

    findings = []
    for finding in examine(home()):
        findings.append(finding)
        if not as_json:
            show.say(f"{finding.state:<5} {finding.subject:<12} {finding.what}")
            if finding.fix:
                show.say(f"{'':<18} → {finding.fix}")
    if as_json:
        show.json_out([finding.to_json() for finding in findings])
    if code := exit_code(findings):
        raise typer.Exit(code)


def approve(
    run_id: RunId = "latest",
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the present champion instead.")] = False,
    by: Annotated[str, typer.Option(metavar="NAME", help="Who decides; kept in the champion's history.")] = "",
) -> None:
    """Answer a run that asks before promotion: its model becomes the champion, or not."""
    import getpass

    from flows.answers import write_answer
    from pipeline_lib.workspace.runs import RunBook

    workspace = home()
    record = RunBook(workspace.runs_folder).load(run_id)
    write_answer(workspace, record, "keep" if keep else "promote", by=by or getpass.getuser())
    show.say(f"run {record.run_id}: {'the champion stays' if keep else 'promotion approved'}")
