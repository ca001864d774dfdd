"""`millrace train`: go on with a training, go on from a checkpoint in a run of its own, or begin a new one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import show
from flows.cli.command import RUN, Json, Set, command, home
from flows.cli.progress import ProgressLines
from pipeline_lib.errors import ConfigError

if TYPE_CHECKING:
    from pipeline_lib.config.pipeline import PipelineConfig
    from pipeline_lib.fork import Fork
    from pipeline_lib.trainings import Entry
    from pipeline_lib.workspace.workspace import Workspace

FLAGS = """nothing says what to train. One of these does:
  --resume RUN                    go on with a run that stopped
  --from RUN@STEP [--extend 2h | --steps 500] [--set …]
                                  go on from a checkpoint, in a run of its own
  --config FILE [--name NAME]     a new run
`millrace checkpoints list` shows what there is; in a terminal `millrace train` asks."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "train", example="millrace train --from latest@500 --extend 2h", panel=RUN)(train)


def train(
    *,
    source: Annotated[str, typer.Option("--from", metavar="CHECKPOINT", help="Go on from RUN@STEP, or from RUN's newest.")] = "",
    extend: Annotated[str, typer.Option(metavar="TIME", help="With --from: go on for this long: 90m, 2h, 1d.")] = "",
    steps: Annotated[int, typer.Option(min=0, help="With --from: go on for so many steps.")] = 0,
    resume: Annotated[str, typer.Option(metavar="RUN", help="Go on with a run that stopped.")] = "",
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Pipeline YAML of a new run.")] = None,
    name: Annotated[str, typer.Option(help="Name of the new run; default: suggested from size, data and length.")] = "",
    overrides: Set = [],  # noqa: B006 (typer copies it)
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is kept and what changes; do nothing.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Leave with code 3 when another run owns what is needed.")] = False,
    as_json: Json = False,
) -> None:
    """Train: go on, fork, or begin. Without arguments, in a terminal: choose from what there is."""
    if sum(map(bool, (source, resume, config))) > 1:
        raise ConfigError("--from, --resume and --config are three ways to train", fix="use one of them")
    if (extend or steps) and not source:
        raise ConfigError("a length needs a checkpoint to go on from", where="--extend, --steps", fix="add --from RUN@STEP")
    workspace = home()
    if source:
        _fork(workspace, source, extend, steps, name=name, overrides=overrides, dry_run=dry_run, no_wait=no_wait, as_json=as_json)
    elif resume:
        from flows.cli.run import retry

        retry(resume, no_wait=no_wait, as_json=as_json)
    elif config or name or overrides:
        _new(workspace, config, name, overrides, dry_run=dry_run, no_wait=no_wait, as_json=as_json)
    elif show.in_terminal() and sys.stdin.isatty() and not as_json:
        _choose(workspace)
    else:
        raise ConfigError(FLAGS)


def _fork(
    workspace: Workspace,
    source: str,
    extend: str,
    steps: int,
    *,
    name: str,
    overrides: list[str],
    dry_run: bool,
    no_wait: bool,
    as_json: bool,
) -> None:
    from flows.cli.run import finish
    from pipeline_lib.fork import begin, plan_fork

    fork = plan_fork(workspace, source, extend=extend, steps=steps, name=name, overrides=overrides)
    if not as_json:
        _print_fork(fork)
    if dry_run:
        if as_json:
            show.json_out({"from": fork.source.name, "kept": dict(fork.kept), "changed": fork.changed, "notes": fork.notes})
        return
    begin(workspace, fork)
    from flows.launch import launch

    listener = None if as_json else ProgressLines().listener()
    record = launch(
        fork.config, workspace=workspace, parent=fork.run.run_id, from_stage="plan", wait=not no_wait, listener=listener
    )  # fmt: skip
    finish(workspace, record, as_json=as_json)


def _print_fork(fork: Fork) -> None:
    show.say(f"going on from {fork.source.name} ({fork.run.pipeline}), in a run of its own")
    for note in fork.notes:
        show.say(note)
    show.table(["kept", ""], fork.kept)
    show.say()
    show.table(["changes", "before", "now"], fork.changed)
    show.say()


def _new(
    workspace: Workspace,
    config: Path | None,
    name: str,
    overrides: list[str],
    *,
    dry_run: bool = False,
    no_wait: bool = False,
    as_json: bool = False,
) -> None:
    from flows.cli.run import run

    named = name or _suggestion(workspace, _load(config, overrides))
    run(config=config, overrides=[*overrides, f"name={named}"], dry_run=dry_run, no_wait=no_wait, as_json=as_json)


def _load(config: Path | None, overrides: list[str]) -> PipelineConfig:
    from flows.cli.pipelines import default_pipeline
    from pipeline_lib.config.load import load_config

    return load_config(config or default_pipeline(), overrides)


def _suggestion(workspace: Workspace, config: PipelineConfig) -> str:
    from pipeline_lib.trainings import suggest_name
    from pipeline_lib.workspace.usage import model_parameters

    return suggest_name(workspace, config, model_parameters(config, workspace))


def _choose(workspace: Workspace) -> None:
    """What can be resumed, a new run, or the management of old ones."""
    from flows.cli.run import retry
    from pipeline_lib.trainings import orphans, resumable

    ready = resumable(workspace)
    if ready:
        show.table(["", "run", "name", "step", "dev loss", "saved (UTC)"], [_line(n, one) for n, one in enumerate(ready, 1)])
    else:
        show.say("no training stopped on its way")
    lost = orphans(workspace)
    show.say("n  a new run")
    show.say("m  manage checkpoints and logs" + (f" ({len(lost)} things that no run owns)" if lost else ""))
    show.say("q  nothing")
    answer = typer.prompt("Which", default="1" if ready else "n").strip().lower()
    if answer == "n":
        _ask_for_new(workspace)
    elif answer == "m":
        _manage(workspace, lost)
    elif answer.isdigit() and 0 < int(answer) <= len(ready):
        retry(ready[int(answer) - 1].name.partition("@")[0])
    else:
        show.say("nothing was done")


def _ask_for_new(workspace: Workspace) -> None:
    from flows.cli.pipelines import default_pipeline

    file = Path(typer.prompt("Pipeline", default=str(default_pipeline())))
    name = typer.prompt("Name", default=_suggestion(workspace, _load(file, [])))
    _new(workspace, file, name, [])


def _manage(workspace: Workspace, lost: list[Path]) -> None:
    from pipeline_lib.trainings import delete, entries, remove_orphan
    from pipeline_lib.workspace.usage import folder_bytes

    own = [entry for entry in entries(workspace) if not entry.published and entry.run]
    rows: list[list[show.Cell]] = [
        [number, entry.name, entry.why, show.size(folder_bytes(entry.folder))] for number, entry in enumerate(own, 1)
    ]
    rows += [
        [number, str(path.relative_to(workspace.root)), "no run owns it", show.size(folder_bytes(path))]
        for number, path in enumerate(lost, len(own) + 1)
    ]
    if not rows:
        show.say("nothing to manage: there are only published models, which `millrace gc` looks after")
        return
    show.table(["", "what", "why it is there", "size"], rows)
    answer = typer.prompt("Delete which (number, empty: none)", default="", show_default=False).strip()
    if not answer.isdigit() or not 0 < int(answer) <= len(rows):
        show.say("nothing was done")
        return
    number = int(answer) - 1
    if not typer.confirm(f"Delete {rows[number][1]}? There is no way back"):
        show.say("nothing was done")
        return
    if number < len(own):
        delete(workspace, own[number])
    else:
        remove_orphan(workspace, lost[number - len(own)])
    show.say("deleted")


def _line(number: int, entry: Entry) -> list[show.Cell]:
    facts = entry.to_json()
    return [
        number, facts["run"], facts["pipeline"], f"{entry.step:,} of {facts['steps']:,}", entry.dev_loss,
        f"{entry.date:%Y-%m-%d %H:%M}",
    ]  # fmt: skip
