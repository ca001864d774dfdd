"""Goals: what is asked in words becomes features, and text finds text. And `millrace recall` from end to end."""

import json

import pytest
from memory_toy import memory, store
from typer.testing import CliRunner

from flows.cli.main import make_app
from pipeline_lib.memory.ask import features_in
from pipeline_lib.memory.text import Goals


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("overnight fine-tune, 8 GB", {"task": "fine-tune", "window_hours": 10.0, "memory_limit_gib": 8.0}),
        (
            "pretrain a 3M parameter mamba for 90 minutes",
            {"task": "pretrain", "parameters": 3e6, "family": "mamba", "window_hours": 1.5},
        ),
        ("5 million tokens", {"tokens": 5e6}),
        ("continue for 2 days on 512 MB", {"task": "continue", "window_hours": 48.0, "memory_limit_gib": 0.5}),
        ("poems", {}),
    ],
)
def test_a_goal_names_features(text, features):
    assert features_in(text) == features


def test_the_goal_that_shares_words_or_parts_of_words_is_most_alike():
    goals = Goals(["fine-tuning on support mails", "a model of poems", "", "FINE-TUNING ON SUPPORT MAILS"])
    like = goals.likeness("finetune with mail of our support")
    assert like[0] == like[3] > 0.2
    assert like[0] > 3 * like[1]
    assert like[2] == 0
    assert goals.likeness("a model  of Poems")[1] == pytest.approx(1)
    assert Goals([]).likeness("x").tolist() == []


def test_recall_weighs_features_and_text_together(tmp_path):
    made = store(tmp_path)
    for index in range(6):
        made.add(memory(index))
    found = made.recall({"family": "llama", "parameters": 2e6}, goal="poems", k=2)
    assert found[0].run_id == memory(1).run_id  # two million parameters, a model of poems
    assert "same parameters: 2e+06" in found[0].reasons
    assert any(reason.startswith("goal ") for reason in found[0].reasons)


def test_the_command_recalls_hands_on_and_says_when_there_is_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path / "home"))
    run = CliRunner()
    empty = run.invoke(make_app(), ["recall"])
    assert empty.exit_code == 0
    assert "nothing is remembered yet" in empty.output
    made = store(tmp_path / "elsewhere")
    for index in range(5):
        made.add(memory(index, task="fine-tune"))
    made.export(tmp_path / "all.parquet")
    told = run.invoke(make_app(), ["recall", "--import", str(tmp_path / "all.parquet"), "--json"])
    assert json.loads(told.stdout)["imported"] == {str(tmp_path / "all.parquet"): {"taken": 5, "passed_over": 0}}
    found = json.loads(run.invoke(make_app(), ["recall", "overnight fine-tune of mails", "--k", "2", "--json"]).stdout)
    assert found["asked"] == {"task": "fine-tune", "window_hours": 10.0}
    assert found["remembered"] == 5
    assert {near["goal"] for near in found["runs"]} == {"overnight fine-tune of mails"}
    assert "because" in run.invoke(make_app(), ["recall", "poems"]).output
    assert run.invoke(make_app(), ["recall", "--import", str(tmp_path / "gone")]).exit_code == 6
