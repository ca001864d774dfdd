"""How a noun adds its commands: `@command(app, "run", example="millrace run", panel=RUN)`, below a `group` without a panel.

Every command goes through here, so that errors, Ctrl-C and exit codes are the same everywhere.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from flows.cli import show
from pipeline_lib.errors import MillraceError
from pipeline_lib.secrets import told

if TYPE_CHECKING:
    from pipeline_lib.workspace.runs import RunRecord
    from pipeline_lib.workspace.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])

# Panels of `millrace --help`, in the order of use.
PANELS = START, RUN, LOOK, DECIDE, CARE = "Get started", "Run", "Look", "Decide", "Take care of the workspace"

INTERRUPTED = 130
TITLES = {  # exit code → the first word of what is said
    1: "failed", 2: "refused", 3: "busy", 4: "damaged", 5: "refused by a limit", 6: "not found", 7: "server unreachable",
}  # fmt: skip
# What the system refuses is no bug, and its traceback would only hide what to do.
SYSTEM_REFUSALS = {
    errno.ENOSPC: "`millrace gc` shows what can go, `millrace du` what is there",
    errno.EDQUOT: "`millrace gc` shows what can go, `millrace du` what is there",
    errno.EACCES: "may this account read and write there? $MILLRACE_HOME names the workspace",
    errno.EPERM: "may this account read and write there? $MILLRACE_HOME names the workspace",
    errno.EROFS: "the file system is read-only; $MILLRACE_HOME names the workspace",
}

Json = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="NAME=VALUE", help="Change a setting: --set train.learning_rate=3e-4. May be repeated."),
]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Run id, the beginning of one, or `latest`.")]


def command(app: typer.Typer, name: str, *, example: str, panel: str | None = None) -> Callable[[F], F]:
    """Register a function as a command. Its docstring is the help; its first line and the example stand in `millrace --help`."""

    def register(function: F) -> F:
        first = (function.__doc__ or "").strip().partition("\n")[0]
        epilog = f"Example: {example}"
        app.command(name, short_help=_short(first, example), epilog=epilog, rich_help_panel=panel)(_guarded(function))
        return function

    return register


def group(app: typer.Typer, name: str, what: str, *, example: str, panel: str) -> typer.Typer:
    """A command with commands of its own, for `command` to fill."""
    own = typer.Typer(no_args_is_help=True)
    app.add_typer(own, name=name, help=what, short_help=_short(what, example), rich_help_panel=panel)
    return own


def _short(what: str, example: str) -> str:
    return f"{what}\n  e.g. {example}"


def _guarded(function: F) -> F:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except MillraceError as error:
            show.warn(f"{_title(error)}: {told(error)}")
            raise typer.Exit(error.exit_code) from None
        except OSError as error:
            if error.errno not in SYSTEM_REFUSALS:
                raise
            show.warn(f"failed: {error}\n  → {SYSTEM_REFUSALS[error.errno]}")
            raise typer.Exit(MillraceError.exit_code) from None
        except KeyboardInterrupt:
            show.warn(f"\ninterrupted; nothing is lost. {_how_to_go_on()}")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # `millrace runs | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None

    return run  # type: ignore[return-value]


def _title(error: MillraceError) -> str:
    return TITLES.get(error.exit_code, "error")


def _how_to_go_on() -> str:
    """What to type next: retry, when this process had opened a run."""
    from pipeline_lib.workspace.runs import RunBook

    folder = Path(os.environ.get("MILLRACE_HOME") or "workspace") / "runs"
    mine = [record for record in RunBook(folder).all() if record.attempts and record.attempts[-1].pid == os.getpid()]
    if not mine:
        return "Type the same command again to go on."
    return f"Go on with: millrace retry {mine[-1].run_id}"


def run_with(workspace: Workspace, run: str, stage: str) -> RunRecord:
    """The run that is asked for; for `latest`, where that one did not come as far as `stage`, the newest that did, and a line
    that says so.

    Raises:
        NotFoundError: there is no such run.
    """
    from pipeline_lib.workspace.runs import RunBook

    book = RunBook(workspace.runs_folder)
    record = book.load(run)
    if run != "latest" or record.ref(stage):
        return record
    for other in reversed(list(book.all())):
        if other.ref(stage):
            show.warn(f"the latest run, {record.run_id} ({record.outcome}), has no {stage}; this is {other.run_id}")
            return other
    return record


def home() -> Workspace:
    """The workspace that commands work on."""
    from pipeline_lib.workspace.workspace import Workspace

    return Workspace.open()
