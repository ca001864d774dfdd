"""`millrace presets`: ready settings for a family of models, a goal and an amount of data, each with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli import show
from flows.cli.command import START, Json, command


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "presets", example="millrace presets llama-quality-small", panel=START)(presets)


def presets(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Show one with every setting and its reason.")] = "",
    config: Annotated[Path | None, typer.Option("--config", "-c", help="Pipeline YAML whose own presets are listed too.")] = None,
    family: Annotated[str, typer.Option(help="Only those of a family.")] = "",
    as_json: Json = False,
) -> None:
    """List the presets, or one with its settings. Use one by `preset: NAME` in a pipeline YAML, or `--set preset=NAME`."""
    from pipeline_lib.config.load import load_config
    from pipeline_lib.config.presets import preset
    from pipeline_lib.config.presets import presets as every

    own = load_config(config).presets if config else {}
    if not name:
        found = [one for one in every(own).values() if family in ("", one.family)]
        if as_json:
            show.json_out([one.to_json() for one in found])
            return
        columns = ("model.width", "model.depth", "train.max_epochs", "train.batch_tokens", "train.lora.rank")
        rows = []
        for one in found:
            told = {**one.continued, **one.settings}
            numbers = [told[column].value if column in told else "" for column in columns]
            rows.append([one.name, *numbers])
        show.table(["preset", "width", "depth", "passes", "batch tokens", "LoRA rank"], rows, "Presets")
        show.say()
        checkpoints = sorted({(one.family, one.checkpoint.partition("@")[0]) for one in found if one.checkpoint})
        show.table(["family", "goes well with"], checkpoints, "To go on from a checkpoint (model.start)")
        return
    one = preset(name, own)
    if as_json:
        show.json_out(one.to_json())
        return
    listed = [[key, reasoned.value, reasoned.why] for key, reasoned in one.settings.items()]
    show.table(["setting", "value", "why"], listed, f"{one.name}: {one.what}")
    show.say()
    listed = [[key, reasoned.value, reasoned.why] for key, reasoned in one.continued.items()]
    checkpoint = f", such as {one.checkpoint}" if one.checkpoint else ""
    show.table(["setting", "value", "why"], listed, f"Further, where model.start is a checkpoint{checkpoint}")
