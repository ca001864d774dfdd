"""`millrace config`: what counts, what is allowed, what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.cli import show
from flows.cli.command import START, Json, Set, command, group

File = Annotated[Path | None, typer.Argument(help="Pipeline YAML; none: the quickstart.")]
Sample = Annotated[int, typer.Option(min=0, help="Read at most this many documents (0: all).")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    example = "millrace config check deployments/pipelines/nightly.yaml"
    config = group(app, "config", "Show, check and explain configurations.", example=example, panel=START)
    command(config, "check", example=example)(check)
    command(config, "show", example="millrace config show --set train.learning_rate=3e-4")(show_config)
    command(config, "schema", example="millrace config schema > millrace.schema.json")(schema)
    command(config, "reference", example="millrace config reference | less")(reference)
    command(config, "environment", example="millrace config environment")(environment)


def check(
    files: Annotated[list[Path] | None, typer.Argument(help="Pipeline YAML files; none: the quickstart.")] = None,
    overrides: Set = [],  # noqa: B006 (typer copies it)
    as_json: Json = False,
) -> None:
    """Say everything that is wrong with a configuration, or that nothing is."""
    from flows.cli.pipelines import default_pipeline
    from pipeline_lib.config.load import load_config
    from pipeline_lib.config.paths import missing_sources
    from pipeline_lib.config.window import deadline
    from pipeline_lib.errors import ConfigError
    from pipeline_lib.extensions import check_extensions
    from pipeline_lib.workspace.services import now

    wrong, missing = {}, []
    for file in files or [default_pipeline()]:
        try:
            config = load_config(file, overrides)
            deadline(config.resources, now())
            check_extensions(config)
            missing += [f"{file}: source {name} has nothing at {path}" for name, path in missing_sources(config.ingest.sources)]
            if config.score.extra_rules:  # only then: DuckDB and compiled signals are slow to import
                from pipeline_lib.quality.rules import rules_of
                from pipeline_lib.quality.signals import signal_names

                rules_of(config.score, signal_names())
        except ConfigError as error:
            wrong[str(file)] = str(error)
    for line in [] if as_json else missing:
        show.warn(f"WARNING: {line}; ingest would fail here")
    if as_json:
        show.json_out({"ok": not wrong, "refused": wrong, "missing": missing})
    elif not wrong:
        show.say("fine: " + ", ".join(show.path(file) for file in files or [default_pipeline()]))
    if wrong:
        if not as_json:
            show.warn("\n".join(f"refused: {text}" for text in wrong.values()))
        raise typer.Exit(ConfigError.exit_code)


def show_config(
    file: File = None,
    overrides: Set = [],  # noqa: B006
    sample: Sample = 0,
    changed: Annotated[bool, typer.Option("--changed", help="Only what differs from the defaults.")] = False,
    as_json: Json = False,
) -> None:
    """Print what counts: defaults, file and options together."""
    from flows.cli.pipelines import default_pipeline
    from pipeline_lib.config.load import dump_yaml, load_config

    config = load_config(file or default_pipeline(), overrides, sample=sample)
    if as_json:
        show.json_out(config.model_dump(mode="json", exclude_defaults=changed))
    else:
        show.say(dump_yaml(config, changed_only=changed).rstrip("\n"))


def schema() -> None:
    """Print the JSON Schema of a configuration, for editors and forms."""
    from pipeline_lib.config.pipeline import PipelineConfig

    print(json.dumps(PipelineConfig.model_json_schema(), indent=1, ensure_ascii=False))


def reference() -> None:
    """Print the reference page: every field with type, default, unit, limits and reason."""
    from pipeline_lib.config.reference import reference_markdown

    print(reference_markdown(), end="")


def environment(as_json: Json = False) -> None:
    """List the environment variables that are read (secrets and locations only). Values are never printed."""
    import os

    from pipeline_lib.config.environment import ENVIRONMENT

    if as_json:
        show.json_out([{**variable._asdict(), "set": variable.name in os.environ} for variable in ENVIRONMENT])
        return
    rows = [[v.name, "set" if v.name in os.environ else "", v.default, v.what] for v in ENVIRONMENT]
    show.table(["variable", "now", "default", "what"], rows)
