"""`millrace init`: a few questions, and a commented pipeline that runs as it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import show
from flows.cli.command import START, Json, command, home

if TYPE_CHECKING:
    from pipeline_lib.config.guided import Answers


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "init", example="millrace init --data ~/texts --max-hours 8 --yes", panel=START)(init)


def init(
    *,
    file: Annotated[Path, typer.Argument(help="Where the pipeline is written.")] = Path("pipeline.yaml"),
    goal: Annotated[str | None, typer.Option(help="What the model is for, in words.")] = None,
    data: Annotated[str | None, typer.Option(help='Folder or file with text; "": the text that is on this machine.')] = None,
    max_hours: Annotated[float | None, typer.Option(help="The window of the whole run.")] = None,
    priority: Annotated[str | None, typer.Option(help="speed, balanced or quality.")] = None,
    model: Annotated[str | None, typer.Option(help="Family of the model: llama, mistral, qwen …")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Take the default for what has no option here; ask nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Set up a pipeline: look at machine and data, ask a few questions, recommend, write commented YAML.

    Without a terminal, or with --yes, nothing is asked: every answer has an option and a default.
    """
    from pipeline_lib.config import guided
    from pipeline_lib.config.load import load_config
    from pipeline_lib.config.paths import allow
    from pipeline_lib.errors import ConfigError

    if file.exists() and not force:
        raise ConfigError("it is there already", where=str(file), fix="name another file, or --force")
    asks = not (yes or as_json) and sys.stdin.isatty()
    if not as_json:
        show.say(f"This machine: {_machine()}")
    answers = guided.Answers(
        goal=_answer(asks, "What is the model for?", goal, "A small language model of my own"),
        data=_answer(asks, "Folder or file with your text (empty: text that is on this machine)", data, ""),
        max_hours=_hours(_answer(asks, "How many hours may the whole run take?", max_hours, "0.1")),
        priority=_answer(asks, "What matters more: speed, balanced or quality?", priority, "balanced"),
        family=_answer(asks, "Model family", model, "llama"),
    )
    found = guided.recommend(answers)
    text = guided.pipeline_yaml(answers, found)
    if answers.data:
        allow([Path(answers.data).expanduser().absolute()])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, "utf-8")
    load_config(file)  # what is written here is never refused later: refused now, it is a bug that shows at once
    past = _past(answers)
    if as_json:
        show.json_out({**guided.as_json(answers, found, file), "past_run": past})
        return
    show.say(f"Recommended: preset {found.preset.name}, because {found.why}")
    show.say(f"Profile: by priority {answers.priority}; `millrace plan --config {show.path(file)}` shows what it becomes here")
    if past:
        show.say(
            f"A past run like this: {past['run_id']} with {past['preset'] or 'no preset'}, {past['came']} ({past['because']})"
        )
    show.say(f"Written: {show.path(file)}")
    show.say(f"Next: millrace run --config {show.path(file)}")


def _past(answers: Answers) -> dict[str, Any] | None:
    """The remembered run most like these answers; None where there is no workspace, or none that trained."""
    if not (Path(os.environ.get("MILLRACE_HOME") or "workspace") / "memory").is_dir():
        return None
    from pipeline_lib.memory.ask import features_in
    from pipeline_lib.memory.keep import caught_up

    store = caught_up(home())
    asked = {**features_in(answers.goal), "family": answers.family, "window_hours": answers.max_hours}
    trained = (near for near in store.recall(asked, goal=answers.goal, k=len(store)) if "dev_loss" in near.features)
    if (near := next(trained, None)) is None:
        return None
    numbers = [f"dev loss {float(near.features['dev_loss']):.3f}"]
    if speed := near.features.get("tokens_per_second"):
        numbers.append(f"{float(speed):,.0f} tokens/s")
    memory = store.get(near.run_id)
    return {
        "run_id": near.run_id, "preset": memory.preset, "came": ", ".join(numbers), "because": "; ".join(near.reasons[:3]),
    }  # fmt: skip


def _answer(asks: bool, question: str, given: object, default: str) -> str:
    if given is not None:
        return str(given)
    if not asks:
        return default
    return str(typer.prompt(question, default=default, show_default=bool(default))).strip()


def _hours(text: str) -> float:
    from pipeline_lib.errors import ConfigError

    try:
        hours = float(text)
    except ValueError:
        hours = 0.0
    if not hours > 0:
        raise ConfigError(f"{text!r} is no number of hours", where="--max-hours", fix="such as 0.5 or 8")
    return hours


def _machine() -> str:
    """Without torch: what the operating system says."""
    from pipeline_lib.workspace.machine import machine_identity

    machine = machine_identity()
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return f"{machine['cpu']}, {machine['cores']} cores, {machine.get('memory_gib', 0):.0f} GiB of memory, {gpus}"
