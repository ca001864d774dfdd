"""A cache that grows while a training reads it: reported once, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

from packing_toy import run_toy
from training_toy import planned, run_train

from pipeline_lib.packing.manifest import append_growth


def test_growth_is_reported_and_training_keeps_to_its_snapshot(tmp_path: Path) -> None:
    config = planned(steps=6, evaluate_every=3, save_every=2)
    calm = run_train(tmp_path / "calm", config)
    workspace, found = run_toy(tmp_path / "grown", config)
    era = {"era": 1, "cache": "later", "sequences": {"train": 900}, "tokens": {"train": 9000}}
    append_growth(workspace.cache_folder / found["pack"].details["cache"], era)
    grown = run_train(tmp_path / "grown", config)
    told = [event["detail"] for event in grown.manifest.events if event["kind"] == "cache_grew"]
    assert [(event["era"], event["sequences"]) for event in told] == [(1, {"train": 900})]
    assert not [event for event in calm.manifest.events if event["kind"] == "cache_grew"]
    assert grown.manifest.digest == calm.manifest.digest
