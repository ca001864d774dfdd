"""`millrace plan`: what a run would do in its window, without training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli import show
from flows.cli.command import START, Json, Set, command, home

GIB = 1 << 30


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "plan", example="millrace plan --documents 8000 --tokens-per-document 500 --max-hours 12", panel=START)(plan)


def plan(
    *,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Pipeline YAML (default: the quickstart).")] = None,
    overrides: Set = [],  # noqa: B006 (typer copies it)
    documents: Annotated[int, typer.Option(min=0, help="Plan for so many documents instead of the packed data here.")] = 0,
    tokens_per_document: Annotated[float, typer.Option(min=1, help="Tokens in one of them.")] = 500.0,
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the data, at most (train.max_epochs).")] = 0.0,
    priority: Annotated[str, typer.Option(help="speed, balanced or quality (plan.priority).")] = "",
    max_hours: Annotated[float, typer.Option(min=0, help="The window (resources.max_hours).")] = 0.0,
    finish_by: Annotated[
        str, typer.Option(metavar="TIME", help="Instead: `07:00 Europe/Berlin` or ISO 8601 (resources.finish_by).")
    ] = "",
    preset: Annotated[str, typer.Option(metavar="NAME", help="A preset: `millrace presets` lists them.")] = "",
    as_json: Json = False,
) -> None:
    """Print the plan of a run that would start now: steps, schedule, profile, window by part, what is given up, promises.

    This machine is measured for some seconds, once for a model; nothing is trained.
    """
    from flows.cli.pipelines import default_pipeline
    from pipeline_lib.config.load import load_config
    from pipeline_lib.extensions import check_extensions
    from pipeline_lib.preview import Documents, preview

    named = {
        "train.max_epochs": epochs, "plan.priority": priority, "resources.max_hours": max_hours, "resources.finish_by": finish_by,
        "preset": preset,
    }  # fmt: skip
    told = [f"{name}={value}" for name, value in named.items() if value]
    if max_hours and not any(text.startswith("resources.margin_minutes") for text in overrides):
        told += _margin(max_hours, config or default_pipeline())
    loaded = load_config(config or default_pipeline(), [*told, *overrides])
    check_extensions(loaded)
    details = preview(home(), loaded, documents=Documents(documents, tokens_per_document) if documents else None)
    if as_json:
        show.json_out(details)
        return
    _print(details)


def _margin(max_hours: float, file: Path) -> list[str]:
    """The file's margin where it is sensible in this window; else the default one, or a twentieth of a short window."""
    from pipeline_lib.config.load import load_config
    from pipeline_lib.config.resources import ResourcesConfig

    here = load_config(file).resources
    if here.margin_minutes / 60 / here.max_hours > 0.01 and here.max_hours >= 0.5 * max_hours:
        return []
    default = min(ResourcesConfig().margin_minutes, 3 * max_hours)
    return [f"resources.margin_minutes={default:g}"]


def _print(details: Mapping[str, Any]) -> None:
    batch = details["batch_sequences"]
    micro = f"{batch // details['micro_batch']} × {details['micro_batch']} sequences, {details['precision']}"
    show.table(
        ["what", "value", "why"],
        [
            ["data", details["data"], f"reading and packing: {details['reading']}"],
            ["steps", f"{details['steps']:,}", f"limit: {details['limit']}"],
            ["passes", f"{details['epochs']:.2f}", ""],
            ["schedule", details["schedule"], f"warm-up {details['warmup_steps']:,}, decay {details['decay_steps']:,} steps"],
            ["warm-up", f"{details['warmup_steps']:,} steps", details["warmup_why"]],
            ["batch", f"{batch} sequences", micro],
            ["learning rate", f"{details['learning_rate']:.2e}", details["learning_rate_why"]],
            ["speed", f"{details['tokens_per_second']:,.0f} tokens/s", f"{details['seconds_per_step']:.3g} s a step"],
            ["evaluation, checkpoint", f"every {details['evaluate_every']:,}, {details['save_every']:,} steps", ""],
            ["batch of the law", f"{details['batch_tokens_of_the_law']:,} tokens", "Step Law; advice"],
            ["size", "", details["size_advice"]],
        ],
        "Plan",
    )
    show.say()
    show.table(["part", "time"], [[part, show.seconds(seconds)] for part, seconds in details["window"]], "Window")
    show.say()
    rows = [[row["what"], row["value"], row["unit"], row["formula"], row["source"], row["remark"] or row["range"]]
            for row in details["advice"]]  # fmt: skip
    show.table(["advice", "value", "unit", "formula", "source", "fitted for"], rows, "What scaling laws would choose")
    show.say()
    columns = (
        "profile", "fits", "micro_batch", "accumulation", "precision", "activation_checkpointing", "threads", "tokens_per_second",
        "memory_bytes",
    )  # fmt: skip
    rows = [[_cell(name, profile.get(name)) for name in columns] for profile in details["profiles"]]
    heads = [name.replace("_", " ").replace("memory bytes", "GiB") for name in columns]
    show.table(heads, rows, f"Profiles on this machine; taken: {details['profile']}")
    show.say()
    rows = [[name, *(_number(p[key], p["unit"]) for key in ("value", "low", "high")), p["basis"], _kept(p["kept"])]
            for name, p in details["promises"].items()]  # fmt: skip
    show.table(["promise", "value", "low", "high", "basis", "past promises"], rows, "Promises, with 90 % intervals")
    for title, words in (("Given up to fit", details["gave_up"]), ("Warnings", details["warnings"])):
        if words:
            show.say()
            show.say(f"{title}:")
            for line in words:
                show.say(f"  {line}")


def _cell(name: str, value: Any) -> show.Cell:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name == "memory_bytes" and value is not None:
        return round(float(value) / GIB, 2)
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _number(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / GIB:.2f} GiB"
    return f"{value:,.0f} s" if unit == "s" else f"{value:.4g} {unit}"


def _kept(kept: Mapping[str, float]) -> str:
    return f"{kept['inside']:.0%} of {kept['runs']:.0f} inside, median error {kept['error']:.1%}" if kept else "none yet"
