"""`millrace tune`: what a run's search found, and what a search would look at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli import show
from flows.cli.command import LOOK, Json, RunId, Set, command, home, run_with

BEST = 10  # trials of the history that a person sees
BAR = 30  # characters of a whole share


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "tune", example="millrace tune latest", panel=LOOK)(tune)


def tune(
    run_id: RunId = "latest",
    *,
    space: Annotated[bool, typer.Option("--space", help="Print what would be searched, in values, instead.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="With --space: pipeline YAML (default: the quickstart).")
    ] = None,
    overrides: Set = [],  # noqa: B006 (typer copies it)
    tokens: Annotated[int, typer.Option(min=0, help="With --space: of the training (default: 20 a parameter).")] = 0,
    as_json: Json = False,
) -> None:
    """Show a run's search: the best trials, what mattered, the loss along each dimension, what past searches were worth."""
    if space:
        rows = _space(config, overrides, tokens)
        if as_json:
            show.json_out(rows)
        else:
            columns = ("name", "setting", "low", "centre", "high", "options", "why")
            show.table(columns, [[_cell(row[name]) for name in columns] for row in rows], "What a search looks at")
        return
    from pipeline_lib.tables.parquet import read_tables

    workspace = home()
    record = run_with(workspace, run_id, "tune")
    ref = record.ref("tune")
    if ref is None:
        from pipeline_lib.errors import NotFoundError

        raise NotFoundError(f"{record.run_id} has not searched", where="millrace tune", fix="`millrace run --until tune`")
    artifact = workspace.store.artifact(ref.key)
    trials, details = read_tables(artifact.files("trials")).to_pylist(), artifact.manifest.details
    if as_json:
        show.json_out({"run_id": record.run_id, **details, "history": trials})
        return
    _print(trials, details)


def _space(config: Path | None, overrides: list[str], tokens: int) -> list[dict[str, Any]]:
    from flows.cli.pipelines import default_pipeline
    from pipeline_lib.config.load import load_config
    from pipeline_lib.extensions import check_extensions
    from pipeline_lib.planning.memory import count_parameters
    from pipeline_lib.training.start import real_numbers
    from pipeline_lib.tuning.space import checked_space, described
    from pipeline_lib.workspace.resolve import resolve

    loaded = load_config(config or default_pipeline(), overrides)
    check_extensions(loaded)
    workspace = home()
    resolved, _ = resolve(loaded, workspace)
    real, rows = real_numbers(resolved.model, resolved.tokenizer.vocabulary_size, workspace.store.artifact)
    count = count_parameters(real, rows)
    found = checked_space(resolved.tune.space, resolved.train, choices=resolved.tune.choices, model=resolved.model)
    train = resolved.train
    wanted = tokens or (train.max_steps * train.batch_tokens) or 20 * count.total
    return described(
        found, model=resolved.model, train=train, plan=resolved.plan, parameters=count.without_embeddings, tokens=wanted
    )


def _print(trials: list[dict[str, Any]], details: Mapping[str, Any]) -> None:
    show.say(details["why"])
    done = sorted((one for one in trials if one["dev_loss"] is not None), key=lambda one: (-one["tokens"], one["dev_loss"]))
    rows = [
        [one["number"], one["kind"], one["state"], one["dev_loss"], one["tokens"], one["seconds"], _params(one["params"])]
        for one in done[:BEST]
    ]
    show.say()
    title = f"{len(trials)} trials, {len(trials) - len(done)} without a loss; the furthest and best first"
    show.table(["trial", "kind", "state", "dev loss", "tokens", "seconds", "point"], rows, title)
    for name, share in sorted(details.get("importance", {}).items(), key=lambda pair: -pair[1]):
        show.say(f"{name:>16} {share:6.1%} {'█' * round(BAR * share)}")
    for name, pairs in details.get("slices", {}).items():
        show.say()
        show.table(
            [name, "dev loss"], [[_cell(value), loss] for value, loss in pairs[:: max(1, len(pairs) // BEST)]], f"Along {name}"
        )
    if warm := details.get("warm_start"):
        show.say()
        show.say(f"Warm start: {warm['words']}")


def _params(text: str) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in json.loads(text).items()
    )


def _cell(value: Any) -> show.Cell:
    return ", ".join(map(str, value)) if isinstance(value, list) else value
