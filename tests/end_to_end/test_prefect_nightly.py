"""Nights: the first trains, one with nothing new stops before calibrating, one that overlaps a run is skipped."""

from __future__ import annotations

from pathlib import Path

from flows.launch import nightly
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.promotion import promote
from pipeline_lib.run import close_run, open_run
from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.workspace import Workspace
from tests.servers import toy_config

TINY = {
    "tokenizer": {"vocabulary_size": 320, "source": "champion"},
    "model": {"width": 32, "depth": 1, "heads": 2, "ffn_width": 64, "start": "champion"},
    "select": {"parent": "previous"},
    "pack": {"sequence_length": 64},
    "calibrate": {"seconds": 1.0, "micro_batches": [4]},
    "tune": {"trials": 0},
    "train": {"max_steps": 20, "batch_tokens": 1024, "learning_rate": 0.01, "precision": "fp32"},
    "validation": {"bootstrap": 100},
    "resources": {"max_hours": 0.2, "margin_minutes": 0.5},
}


def test_two_nights_and_a_busy_one(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "workspace")
    config = PipelineConfig.model_validate(toy_config(workspace.root / "source", **TINY))

    first = nightly(config, workspace=workspace)
    assert first is not None
    assert first.outcome == "completed"
    assert first.resolved["model.start=champion"] == "scratch"
    assert first.stages["validate"].state == "made"
    assert bool(read_champion(workspace)) == (first.verdict["outcome"] == "pass")
    promote(workspace, first, first.verdict, by="a person")  # a toy knows nothing: where the gate keeps it out, a person does not

    second = nightly(config, workspace=workspace)
    assert second is not None
    assert second.outcome == "nothing_new"
    assert list(second.stages) == ["suites", "ingest", "score", "dedup", "split", "select"]
    assert Path(second.report).exists()

    going = open_run(workspace, config)  # a run of this process, which lives
    assert nightly(config, workspace=workspace) is None
    close_run(workspace, going, "completed")
    assert len(RunBook(workspace.runs_folder).ids()) == 3
