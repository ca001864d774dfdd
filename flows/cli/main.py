"""The command `millrace`. A new noun is a file with `register(app)`, named in NOUNS; its commands take their place in ORDER."""

from __future__ import annotations

import atexit
import gc
import importlib
import itertools
import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flows.cli import show
from flows.cli.command import PANELS
from pipeline_lib.errors import EXIT_CODES

NOUNS = (
    "servers", "config", "run", "workspace", "runs", "report", "explain", "stats", "rules", "fit_ngrams", "trace", "dedup",
    "validate", "models", "cache", "forget", "checkpoints", "train", "export", "presets", "metrics", "policies", "plan", "init",
    "tune", "recall", "compare", "score",
)  # fmt: skip

# `millrace --help` shows the commands in the order of use: panel by panel, within each in this one.
ORDER = (
    "doctor", "init", "presets", "config", "plan", "recall", "run", "rerun", "retry", "train", "score", "up", "down", "status",
    "show", "runs", "report", "compare", "metrics", "tune", "sql", "stats", "explain", "trace", "rules", "fit-ngrams", "dedup",
    "validate", "policies", "approve", "champion", "promote", "rollback", "export", "du", "verify", "checkpoints", "cache",
    "pin", "unpin", "gc", "forget",
)  # fmt: skip


def _epilog() -> str:
    codes = [f"{code} {words}" for code, words in EXIT_CODES.items()]
    if show.in_terminal():
        return "Exit codes: " + "; ".join(codes)
    return "\b\nExit codes:\n" + "\n".join(f"  {line}" for line in codes)  # click keeps the lines of a paragraph marked so


class _InOrder(TyperGroup):
    """Commands by panel and ORDER; others last, as registered."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: (self._panel(name), ORDER.index(name) if name in ORDER else len(ORDER)))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The panels of the plain help, as rich draws them in a terminal; each example on a line of its own."""
        for panel, names in itertools.groupby(self.list_commands(ctx), self._panel):
            lines = [line for name in names for line in _lines(name, self.commands[name])]
            with formatter.section(PANELS[panel]):
                formatter.write_dl(lines)

    def _panel(self, name: str) -> int:
        shown: Any = self.commands[name]  # typer's own kinds of commands have it, their base has not
        return PANELS.index(shown.rich_help_panel)


def _lines(name: str, shown: Any) -> Iterator[tuple[str, str]]:
    what, _, example = shown.short_help.partition("\n")
    yield name, what
    yield "", example.strip()


def _version(wanted: bool) -> None:
    if wanted:
        print(f"millrace {version('millrace')}")
        raise typer.Exit


def _start(
    home: Annotated[Path | None, typer.Option(help="The workspace ($MILLRACE_HOME; default ./workspace).")] = None,
    show_version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """New text in, a validated and better model out, or a clear report why not."""
    if home is not None:
        os.environ["MILLRACE_HOME"] = str(home.expanduser().absolute())


def make_app() -> typer.Typer:
    """The whole command line: rich in a terminal, plain text elsewhere."""
    app = typer.Typer(
        name="millrace",
        cls=_InOrder,
        no_args_is_help=True,
        rich_markup_mode="rich" if show.in_terminal() else None,
        pretty_exceptions_enable=False,  # a traceback means a bug, and is wanted whole
        epilog=_epilog(),
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_start)
    for noun in NOUNS:
        importlib.import_module(f"flows.cli.{noun}").register(app)
    return app


def _leave() -> None:
    """Nothing is collected at the exit. DuckDB's binding would list on standard error all that is left then."""
    gc.freeze()
    if "duckdb" in sys.modules:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def main() -> None:
    """Entry point."""
    # The libraries of a run are millions of objects that live to the end: a look through all of them for garbage, at every import
    # and once more at the exit, costs several seconds and finds nothing.
    gc.set_threshold(100_000, 20, 100)
    atexit.register(_leave)
    if not sys.stdout.isatty():
        os.environ.setdefault("TYPER_USE_RICH", "0")
    make_app()()


if __name__ == "__main__":
    main()
