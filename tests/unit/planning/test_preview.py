"""`millrace plan`: the plan of a run without training, with data that is only named."""

import json
import math
from pathlib import Path

import pytest
from plan_toy import TRAINED, Config
from typer.testing import CliRunner

from flows.cli.main import make_app
from pipeline_lib.config.load import load_config
from pipeline_lib.errors import NotFoundError, RefusedError
from pipeline_lib.planning.forecast import USUAL_SLOPE
from pipeline_lib.planning.window import WANTED_STEPS
from pipeline_lib.preview import Documents, preview
from pipeline_lib.stages import BY_NAME
from pipeline_lib.workspace.machine import machine_identity
from pipeline_lib.workspace.runs import RunBook, RunRecord, StageRecord
from pipeline_lib.workspace.stage import execute
from pipeline_lib.workspace.workspace import Workspace

TINY = ("model.width=16", "model.depth=1", "model.heads=1", "model.ffn_width=16", "tokenizer.vocabulary_size=300",
        "pack.sequence_length=16", "calibrate.seconds=0.3", "calibrate.micro_batches=[4]", "train.precision=fp32",
        "train.batch_tokens=64", "tune.trials=0")  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preview")


def planned(home: Path, *overrides: str, documents: int = 2000) -> dict[str, object]:
    return preview(Workspace.open(home), load_config(None, [*TINY, *overrides]), documents=Documents(documents, 50))


def test_named_data_is_planned_without_any_and_every_second_has_a_part(home: Path) -> None:
    found = planned(home, "resources.max_hours=12", "train.max_epochs=2")
    assert found["limit"] == "epochs"
    assert found["epochs"] == pytest.approx(2, rel=0.01)
    assert found["warmup_steps"] == pytest.approx(0.025 * found["steps"], abs=1)
    assert sum(seconds for _, seconds in found["window"]) == pytest.approx(12 * 3600)
    assert {"expected_end_seconds", "peak_memory_bytes"} <= found["promises"].keys()
    assert len(found["profiles"]) >= 4


def test_a_short_window_decides_and_the_warm_up_is_cut_with_a_warning(home: Path) -> None:
    found = planned(home, "resources.max_hours=0.1", "resources.margin_minutes=0.05", documents=1_000_000)
    assert found["limit"] == "window"
    assert found["steps"] > WANTED_STEPS
    assert found["warmup_steps"] <= found["steps"] // 10
    assert any(words.startswith("data:") for words in found["gave_up"])
    (warning,) = found["warnings"]
    assert "resources.max_hours" in warning


def test_steps_far_larger_than_the_laws_are_warned_of(home: Path) -> None:
    found = planned(home, "resources.max_hours=2", "train.max_steps=150", "train.batch_tokens=16384", documents=100_000)
    law = found["batch_tokens_of_the_law"]
    (warning,) = [words for words in found["warnings"] if "Step Law" in words]
    assert f"a step has 16,384 tokens, {16_384 / law:.1f} times" in warning
    assert f"train.batch_tokens={1 << round(math.log2(law))} " in warning
    asked = planned(home, "resources.max_hours=2", "train.max_steps=150", "train.batch_tokens=1024", documents=100_000)
    assert not any("Step Law" in words for words in asked["warnings"])


def test_reading_and_search_are_foreseen_and_earlier_runs_tell_both_their_time_and_their_loss(home: Path) -> None:
    first = planned(home, "tune.trials=4", "resources.max_hours=2", "resources.search_share=0.1")
    parts = dict(first["window"])
    assert parts["search"] == pytest.approx(720)
    assert parts["reading and packing data"] > 0
    assert first["reading"].startswith("judged")
    assert "final_dev_loss" not in first["promises"]
    remember(home, documents=1000.0, seconds=30.0, ends={100_000: 3.0, 50_000: 3.4})
    found = planned(home, "resources.max_hours=2", "train.max_epochs=1")
    reading = [name for name in BY_NAME if list(BY_NAME).index(name) < list(BY_NAME).index("calibrate")]
    assert dict(found["window"])["reading and packing data"] == pytest.approx(2 * 30 * len(reading))
    assert sum(seconds for _, seconds in found["window"]) == pytest.approx(7200)
    promise = found["promises"]["final_dev_loss"]
    assert promise["low"] < promise["value"] == pytest.approx(3.0 * (found["tokens"] / 100_000) ** -USUAL_SLOPE, rel=1e-3)
    assert "2 earlier runs of this model on other data" in promise["basis"]


def remember(home: Path, *, documents: float, seconds: float, ends: dict[int, float]) -> None:
    """Runs that ended with these dev losses after so many tokens; every stage took so long."""
    workspace, config = Workspace.open(home), load_config(None, TINY)
    known = {"documents": documents, "vocabulary_size": 300, "sequence_length": 16, "cpu": machine_identity()["cpu"],
             **{f"{name}_seconds": seconds for name in BY_NAME}}  # fmt: skip
    for number, (tokens, loss) in enumerate(ends.items()):
        ref = execute(workspace, TRAINED, Config(trained={"tokens": tokens, "dev_loss": loss}), {})
        stages = {name: StageRecord("made", ref.to_json()) for name in ("train", "fill_gaps")}
        record = RunRecord(f"2026010{number + 1}-000000-aaaaaaaa", "p", outcome="completed", stages=stages)
        shape = {"width": config.model.width, "depth": config.model.depth, "trained_tokens": tokens, "dev_loss": loss}
        record.features = {**known, **shape}
        record.config = config.model_dump(mode="json")
        RunBook(workspace.runs_folder).save(record)


def test_what_cannot_be_planned_is_refused_with_what_would_do(home: Path) -> None:
    with pytest.raises(NotFoundError, match="no packed data") as refused:
        preview(Workspace.open(home), load_config(None, TINY))
    assert "--documents" in refused.value.fix
    with pytest.raises(RefusedError, match="less than one sequence") as refused:
        preview(Workspace.open(home), load_config(None, TINY), documents=Documents(1, 10))
    assert "at least" in refused.value.fix
    with pytest.raises(RefusedError, match="no training step fits") as refused:
        planned(home, "resources.max_hours=0.003", "resources.margin_minutes=0.01")
    hours = refused.value.fix.partition("max_hours to ")[2].split(" ")[0]
    assert planned(home, f"resources.max_hours={hours}", "resources.margin_minutes=0.01")["steps"] >= 1


def test_the_command_prints_a_table_and_json(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_HOME", str(home))
    words = ["plan", "--documents", "2000", "--tokens-per-document", "50", "--epochs", "3", "--priority", "speed",
             "--max-hours", "12"]  # fmt: skip
    overrides = [text for override in TINY for text in ("--set", override)]
    shown = CliRunner().invoke(make_app(), [*words, *overrides])
    assert shown.exit_code == 0, shown.output
    for part in ("Plan", "Window", "Profiles on this machine", "Promises, with 90 % intervals"):
        assert part in shown.output
    told = json.loads(CliRunner().invoke(make_app(), [*words, "--json", *overrides]).stdout)
    assert told["epochs"] == pytest.approx(3, rel=0.01)
    wrong = CliRunner().invoke(make_app(), [*words, "--set", "plan.priority=fast"])
    assert wrong.exit_code == 2
