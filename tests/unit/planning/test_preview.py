"""`millrace plan`: the plan of a run without training, with data that is only named."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import make_app
from pipeline_lib.config.load import load_config
from pipeline_lib.errors import NotFoundError, RefusedError
from pipeline_lib.planning.window import WANTED_STEPS
from pipeline_lib.preview import Documents, preview
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
    found = planned(home, "resources.max_hours=0.02", "resources.margin_minutes=0.05", documents=2_000_000)
    assert found["limit"] == "window"
    assert found["steps"] > WANTED_STEPS
    assert found["warmup_steps"] <= found["steps"] // 10
    assert any(words.startswith("data:") for words in found["gave_up"])
    (warning,) = found["warnings"]
    assert "resources.max_hours" in warning


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
    words = [
        "plan",
        "--documents",
        "2000",
        "--tokens-per-document",
        "50",
        "--epochs",
        "3",
        "--priority",
        "speed",
        "--max-hours",
        "12",
    ]
    overrides = [text for override in TINY for text in ("--set", override)]
    shown = CliRunner().invoke(make_app(), [*words, *overrides])
    assert shown.exit_code == 0, shown.output
    for part in ("Plan", "Window", "Profiles on this machine", "Promises, with 90 % intervals"):
        assert part in shown.output
    told = json.loads(CliRunner().invoke(make_app(), [*words, "--json", *overrides]).stdout)
    assert told["epochs"] == pytest.approx(3, rel=0.01)
    wrong = CliRunner().invoke(make_app(), [*words, "--set", "plan.priority=fast"])
    assert wrong.exit_code == 2
