"""Presets: every one loads, says why, and stands below what a user writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import make_app
from pipeline_lib.config.load import load_config
from pipeline_lib.config.presets import amount_for, built_in
from pipeline_lib.errors import ConfigError

FAMILIES = {"llama", "mistral", "qwen", "phi", "mixtral", "mamba", "lfm2"}


def write(folder: Path, text: str) -> Path:
    path = folder / "p.yaml"
    path.write_text(text, "utf-8")
    return path


def test_every_family_goal_and_amount_has_one() -> None:
    assert {tuple(name.split("-")) for name in built_in()} == {
        (family, goal, amount)
        for family in FAMILIES
        for goal in ("highspeed", "quality", "bestaccuracy")
        for amount in ("small", "medium", "large")
    }


@pytest.mark.parametrize("start", ["scratch", "champion"])
def test_every_preset_is_a_valid_configuration_with_its_values(start: str) -> None:
    for name, preset in built_in().items():
        config = load_config(None, [f"preset={name}", f"model.start={start}"]).model_dump(mode="json")
        for dotted, value in preset.values(start=start).items():
            at = config
            for part in dotted.split("."):
                at = at[part]
            assert at == value, (name, dotted)
        assert (config["train"]["lora"]["rank"] > 0) == (start == "champion"), name


def test_every_value_has_a_reason_and_every_checkpoint_a_revision() -> None:
    for preset in built_in().values():
        for reasoned in [*preset.settings.values(), *preset.continued.values()]:
            assert len(reasoned.why) > 5, preset.name
        name, _, revision = preset.checkpoint.partition("@")
        assert not name or (name.count("/") == 1 and len(revision) == 40)


def test_more_accuracy_reads_the_data_more_often_and_more_data_less_often() -> None:
    def passes(goal: str, amount: str) -> float:
        return float(built_in()[f"llama-{goal}-{amount}"].settings["train.max_epochs"].value)

    for amount in ("small", "medium", "large"):
        assert passes("highspeed", amount) < passes("quality", amount) < passes("bestaccuracy", amount)
    for goal in ("highspeed", "quality", "bestaccuracy"):
        assert passes(goal, "small") >= passes(goal, "medium") >= passes(goal, "large")


def test_what_is_written_goes_before_the_preset(tmp_path: Path) -> None:
    file = write(tmp_path, "preset: phi-quality-small\nmodel: {depth: 3}\ntrain: {max_epochs: 1.5}\n")
    config = load_config(file, ["train.batch_tokens=1024"])
    assert (config.model.family, config.model.depth, config.train.max_epochs, config.train.batch_tokens) == ("phi", 3, 1.5, 1024)
    assert config.pack.sequence_length == 256


def test_a_preset_named_by_an_option_goes_before_the_file_and_other_options_before_it(tmp_path: Path) -> None:
    file = write(tmp_path, "model: {depth: 3}\ntrain: {max_epochs: 1.5}\n")
    config = load_config(file, ["preset=phi-quality-small", "train.max_epochs=7"])
    assert (config.model.family, config.model.depth, config.train.max_epochs) == ("phi", 6, 7.0)


def test_own_presets_extend_others(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "preset: mine\npresets:\n  base: {extends: llama-quality-small, settings: {train.max_epochs: 3.0}}\n"
        "  mine: {extends: base, settings: {model.width: 96}, continued: {train.lora.rank: 2}}\n",
    )
    config = load_config(file)
    assert (config.train.max_epochs, config.model.width, config.model.depth, config.train.lora.rank) == (3.0, 96, 6, 0)
    assert load_config(file, ["model.start=champion"]).train.lora.rank == 2
    listed = CliRunner().invoke(make_app(), ["presets", "mine", "-c", str(file), "--json"])
    assert json.loads(listed.stdout)["settings"]["model.width"] == {"value": 96, "why": "your own"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("preset: lama-quality-small\n", "did you mean llama-quality-small?"),
        ("preset: a\npresets: {a: {extends: b}, b: {extends: a}}\n", "extends itself by way of a → b → a"),
        ("preset: a\npresets: {a: {extends: llama-quality-smal}}\n", "did you mean llama-quality-small?"),
        ("preset: a\npresets: {a: {settings: {train.max_epoch: 2.0}}}\n", "max_epochs"),
        ("preset: a\npresets: {a: {checkpoint: TinyLlama/TinyLlama-1.1B}}\n", "names no revision"),
    ],
)
def test_wrong_presets_are_refused_with_the_nearest(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(write(tmp_path, text))
    assert said in str(refused.value)


def test_the_command_lists_all_and_refuses_unknown_names() -> None:
    run = CliRunner().invoke
    assert len(json.loads(run(make_app(), ["presets", "--json"]).stdout)) == len(built_in())
    assert len(json.loads(run(make_app(), ["presets", "--json", "--family", "phi"]).stdout)) == 9
    assert run(make_app(), ["presets", "lama-quality-small"]).exit_code == ConfigError.exit_code


def test_amounts_meet_their_bounds() -> None:
    assert [amount_for(tokens) for tokens in (1e5, 5e7, 1e9)] == ["small", "medium", "large"]
    assert all(amount_for(preset.tokens) == preset.amount for preset in built_in().values())
