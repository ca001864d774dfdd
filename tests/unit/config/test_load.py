"""Reading, merging and refusing configurations, by the words a person gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline_lib.config.load import dump_yaml, load_config, with_overrides
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import ConfigError

PIPELINES = Path(__file__).parents[3] / "deployments" / "pipelines"


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    file = tmp_path / "p.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    return str(caught.value)


def test_no_file_and_empty_file_are_the_defaults(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing\ntrain:\n")
    assert load_config(None) == PipelineConfig() == load_config(empty)


def test_every_problem_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = """\
train:
  learning_rat: 3e-4
  batch_tokens: 20k
resources:
  max_hours: 4h
  memory_gib: 16GB
  search_share: 15
plan:
  priority: fast
model:
  heads: 5
  width: 192
dedup:
  bands: 64
trian: {}
"""
    words = refusal(tmp_path, text)
    assert words.startswith("p.yaml: 9 problems")
    for expected in (
        "p.yaml:2: train.learning_rat = 0.0003: train has no setting of this name\n  → did you mean train.learning_rate?",
        "p.yaml:3: train.batch_tokens = '20k': must be a whole number (tokens)\n  → it is a number in tokens: write 20000",
        "p.yaml:5: resources.max_hours = '4h': must be a number (hours)\n  → it is a number in hours: write 4",
        "p.yaml:6: resources.memory_gib = '16GB': must be a number (GiB)\n  → it is a number in GiB: write 14.9012",
        "p.yaml:7: resources.search_share = 15: must be at most 0.9\n  → it is a share of 1: 15 % is written 0.15",
        "p.yaml:9: plan.priority = 'fast': is not one of the choices: speed, balanced, quality",
        "p.yaml:10: model: heads = 5 does not divide width = 192; 4 heads would",
        "p.yaml:13: dedup: bands × rows = 384 is more than the 128 MinHash values",
        "p.yaml:15: trian: a configuration has no setting of this name\n  → did you mean train?",
    ):
        assert expected in words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  beta2: .9\n  beta2: .8\n", "this key stands twice; it was already set on line 2"),
        ("plan:\n  learning_rate: 1e-3\n", "plan has no setting of this name\n  → it belongs under train.learning_rate"),
        ("train: {lora: {rnk: 3}}\n", "did you mean train.lora.rank?"),
        ("dedup: {decontaminate: yes}\n", "dedup.decontaminate = 'yes': must be true or false\n  → write true"),
        ("ingest: {sample: 1.5}\n", "ingest.sample = 1.5: must be a whole number (documents)"),
        ("resources: {max_hours: '4'}\n", "it is a number in hours: write 4"),
        ("resources: {max_hours: true}\n", "resources.max_hours = true: must be a number (hours)"),
        ("resources: {watts: .inf}\n", "resources.watts = '.inf': must be a number (W)"),
        ("resources: {margin_minutes: 90 s}\n", "it is a number in minutes: write 1.5"),
        ("resources: {finish_by: 07:00}\n", "07:00 does not say in which zone; write `07:00 Europe/Berlin`"),
        ("ingest: {sources: {kind: machine}}\n", "{'kind': 'machine'}: must be a list\n  → start every item with `- `"),
        ("ingest: {sources: [{path: texts}]}\n", "a source of kind 'machine' reads no path; `kind: files` does"),
        ("ingest: {sources: [{kind: fils}]}\n", "choices: machine, files, module, dataset\n  → did you mean files?"),
        ("pack: 3\n", "pack = 3: must be a section"),
        ("name: 5\n", 'must be text\n  → write it in quotes: "5"'),
        ("name: a b\n", "must match pattern '^[A-Za-z0-9_.-]{1,60}$'"),
        ("tune: {space: {learning_rate: [1]}}\n", "tune.space.learning_rate.1 = [1]: a value is missing"),
        ("train: {schedule: cosine}\n", "train.schedule = cosine needs a known end"),
        ("train: {batch_tokens: 128}\n", "p.yaml:1: train.batch_tokens = 128 is less than one sequence"),
        ("tracking: {uri: 'postgresql://me:hidden@host/db'}\n", "tracking.uri: holds a password"),
        ("- a\n", "p.yaml:1: a configuration is `name: value` lines"),
        ("train: [\n", "this is not valid YAML"),
        ("name: !!python/object/apply:os.system ['true']\n", "python/object/apply:os.system is refused"),
        ("name: !!python/name:os.system x\n", "p.yaml:1: this is not valid YAML"),
        ("a: &a [*a]\n", "does an alias (`*name`) contain itself?"),
        ("{[1]: 2}\n", "a key must be a word"),
    ],
)  # fmt: skip
def test_refusals_say_what_would_be_right(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text)


def test_a_wrong_value_does_not_bring_up_its_default(tmp_path: Path) -> None:
    """batch_tokens is wrong; that its default would be too short for the sequence length is nobody's problem."""
    words = refusal(tmp_path, "train: {batch_tokens: 20k}\npack: {sequence_length: 16384}\n")
    assert "write 20000" in words
    assert "problems" not in words


def test_passwords_are_never_repeated(tmp_path: Path) -> None:
    words = refusal(tmp_path, "trakcing: {uri: 'postgresql://me:hidden@host/db'}\n", "trackin.uri=postgresql://me:hidden@h/db")
    assert "hidden" not in words


def test_missing_file_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be read.*\n.*there are: other\.yaml"):
        load_config(tmp_path / "p.yaml")


def test_an_option_for_the_window_takes_the_place_of_the_files_and_two_windows_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("resources: {max_hours: 2}\n")
    there = load_config(file, ["resources.finish_by=07:00 Europe/Berlin"]).resources
    assert (there.finish_by, there.max_hours) == ("07:00 Europe/Berlin", 12)
    file.write_text('resources: {finish_by: "07:00 UTC"}\n')
    assert load_config(file, ["resources.max_hours=3"]).resources.finish_by == ""
    with pytest.raises(ConfigError, match="are two windows; keep one"):
        load_config(file, ["resources.finish_by=07:00 UTC", "resources.max_hours=3"])
    file.write_text('resources: {max_hours: 2, finish_by: "07:00 UTC"}\n')
    with pytest.raises(ConfigError, match="max_hours = 2 are two windows"):
        load_config(file)


def test_scalars_are_what_they_look_like(tmp_path: Path) -> None:
    """YAML 1.1 would read 3e-4 as text, 010 as eight, a date as an object and `no` as false."""
    file = tmp_path / "p.yaml"
    file.write_text("train: {learning_rate: 3e-4, beta2: .9}\ntune: {trials: 010}\ngoal: no\n"
                    "resources: {finish_by: 2026-11-21T07:00:00+01:00}\n")  # fmt: skip
    config = load_config(file)
    assert (config.train.learning_rate, config.train.beta2, config.tune.trials, config.goal) == (3e-4, 0.9, 10, "no")
    assert config.resources.finish_by == "2026-11-21T07:00:00+01:00"


def test_overrides_go_before_the_file_and_know_lists(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("train:\n  learning_rate: 1e-3\n  batch_tokens: 4096\n")
    config = load_config(
        file,
        ["train.learning_rate=3e-4", "ingest.sources.0.max_mb=5", "calibrate.micro_batches=[2, 4]",
         "tune.space={learning_rate: [0.1, 3]}", "score.rules.*=none", "goal='3'"],
        sample=7,
    )  # fmt: skip
    assert (config.train.learning_rate, config.train.batch_tokens, config.ingest.sample) == (3e-4, 4096, 7)
    assert config.ingest.sources[0].max_mb == 5
    assert config.calibrate.micro_batches == [2, 4]
    assert config.tune.space == {"learning_rate": (0.1, 3.0)}
    assert config.score.rules == {"*": "none"}
    assert config.goal == "3"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.learning_rat=1", "--set train.learning_rat=1: train.learning_rat = 1: train has no setting of this name"),
        ("train.learning_rate", "this sets nothing\n  → write --set section.name=value"),
        ("ingest.sources.4.path=x", "ingest.sources has 1 items, numbered from 0"),
        ("train.learning_rate.x=1", "must be a number"),
        ("train.0=1", "train is not a list"),
        ("name=[", "this is not valid YAML"),
    ],
)
def test_wrong_overrides_are_named(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert expected in str(caught.value)


def test_wrong_sample_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--sample: ingest.sample = -3: must be at least 0 documents"):
        load_config(None, sample=-3)


@pytest.mark.parametrize("name", ["quickstart", "nightly", "finetune"])
def test_pipelines_load_and_their_yaml_round_trips(name: str, tmp_path: Path) -> None:
    config = load_config(PIPELINES / f"{name}.yaml")
    assert config.name == name
    written = tmp_path / f"{name}.yaml"
    written.write_text(dump_yaml(config))
    assert load_config(written) == config
    written.write_text(dump_yaml(config, changed_only=True))
    assert load_config(written) == config


def test_texts_that_look_like_numbers_survive_the_round_trip(tmp_path: Path) -> None:
    config = load_config(None, ["goal='3e-4'"])
    assert config.goal == "3e-4"
    file = tmp_path / "p.yaml"
    file.write_text(dump_yaml(config))
    assert load_config(file) == config


def test_overrides_on_a_recorded_configuration() -> None:
    recorded = PipelineConfig.model_validate(json.loads(load_config(None, ["seed=3"]).model_dump_json()))
    changed = with_overrides(recorded, ["train.learning_rate=3e-4"])
    assert (changed.seed, changed.train.learning_rate) == (3, 3e-4)
    assert with_overrides(changed, ["train.learning_rate=0"]) == recorded
    with pytest.raises(ConfigError, match=r"did you mean train.learning_rate"):
        with_overrides(recorded, ["train.learning_rte=1"])


def test_quickstart_is_what_it_promises() -> None:
    config = load_config(PIPELINES / "quickstart.yaml")
    assert config.resources.max_hours * 60 == pytest.approx(4.5)
    assert config.resources.margin_minutes * 60 == pytest.approx(15)
    assert [source.kind for source in config.ingest.sources] == ["machine"]
    assert config.ingest.sources[0].max_mb <= 20
    assert config.suites.level == "smoke"


def test_nightly_continues_the_champion() -> None:
    config = load_config(PIPELINES / "nightly.yaml")
    assert (config.tokenizer.source, config.model.start, config.select.parent) == ("champion", "champion", "previous")
    assert config.resources.max_hours == 8
