"""The quickstart in small, from the command line: once, again, with a changed parameter, with damage, with a missing chunk."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_lib.run import run_plain
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.workspace import Workspace
from tests.pipeline_toys import NAMES, TRAINING, digests, made, newest, small_config, states, write_config
from tests.servers import REPOSITORY, environment, millrace


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def first(folder: Path) -> RunRecord:
    """The first run; the others are compared with it."""
    said = millrace("run", "--config", str(write_config(folder / "small.yaml")), home=folder / "w").stdout
    record = newest(folder / "w")
    assert f"run {record.run_id}" in said
    assert record.report in said.replace("\n", "")
    return record


def output(home: Path, record: RunRecord, stage: str) -> Artifact:
    ref = record.ref(stage)
    assert ref is not None
    return Workspace.open(home).store.artifact(ref.key)


def test_a_first_run_makes_everything(folder: Path, first: RunRecord) -> None:
    assert (first.outcome, made(first)) == ("completed", NAMES)
    trained = output(folder / "w", first, "train")
    assert (trained.details["steps"], trained.details["vocabulary_size"]) == (30, 512)
    assert trained.metrics["dev_loss"] < trained.metrics["first_dev_loss"] - 0.5
    assert output(folder / "w", first, "suites").metrics["items"] >= 1000
    assert output(folder / "w", first, "ingest").metrics["domains"] >= 3
    assert output(folder / "w", first, "dedup").metrics["clusters"] >= 1
    assert first.verdict["outcome"] in {"pass", "fail"}
    report = Path(first.report).read_text()
    assert all(stage in report for stage in NAMES)


def test_a_second_run_reuses_everything_and_imports_nothing_heavy(folder: Path, first: RunRecord) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "flows.cli.main", "run", "--config", str(folder / "small.yaml")],
        env=environment(folder / "w"), cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    second = newest(folder / "w")
    assert second.run_id != first.run_id
    assert states(second) == dict.fromkeys(NAMES, "reused")
    assert digests(second) == digests(first)
    assert Path(second.report).is_file()
    assert second.report != first.report
    imported = set(re.findall(r"\|\s+([\w.]+)$", done.stderr, re.MULTILINE))
    assert "prefect" in imported  # the list is one of imports
    assert not imported & {"torch", "transformers", "accelerate", "optuna"}


def test_a_changed_training_parameter_starts_at_calibrate_or_later(folder: Path, first: RunRecord) -> None:
    home = folder / "w"
    millrace("run", "--config", str(folder / "small.yaml"), "--set", "train.learning_rate=0.005", home=home)
    record = newest(home)
    assert record.outcome == "completed"
    assert [name for name in NAMES if name not in TRAINING and states(record)[name] != "reused"] == []
    assert {"plan", "train", "validate"} <= set(made(record)) <= set(TRAINING)
    assert digests(record)["train"] != digests(first)["train"]


def test_two_models_are_compared_item_by_item(folder: Path, first: RunRecord) -> None:
    """After the test above: the same data, another learning rate."""
    home = folder / "w"
    shown = json.loads(millrace("validate", "show", first.run_id, "--suite", "earth", "--json", home=home).stdout)
    assert {"earth", "earth/geographic", "earth/temporal/weekday"} <= shown.keys()
    wrong = json.loads(millrace("validate", "show", first.run_id, "--wrong", "--limit", "50", "--json", home=home).stdout)
    assert [row["confidence"] for row in wrong] == sorted((row["confidence"] for row in wrong), reverse=True)
    assert all(row["chosen"] != row["right"] or row["score"] == 0 for row in wrong)
    compared = json.loads(millrace("validate", "compare", "latest", first.run_id, "--json", home=home).stdout)
    assert {"language", "grammar", "earth"} <= {row["suite"] for row in compared["tasks"]}
    gains = [row["gain"] for row in compared["tasks"]]
    assert gains == sorted(gains)
    lost = sum(row["lost"] for row in compared["tasks"] if row["suite"] == "grammar")
    told = json.loads(
        millrace(
            "validate", "compare", "latest", first.run_id, "--suite", "grammar", "--limit", "9999", "--json", home=home
        ).stdout
    )
    assert len(told["forgotten"]) == lost
    assert "right:" in millrace("validate", "show", "--wrong", "--limit", "3", home=home).stdout


def test_a_damaged_artifact_is_found_quarantined_and_remade(folder: Path, first: RunRecord) -> None:
    workspace = Workspace.open(folder / "w")
    signals = output(workspace.root, first, "score").files("signals")[0]
    spoilt = bytearray(signals.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    signals.write_bytes(spoilt)
    said: list[str] = []

    status = millrace("status", "--config", str(folder / "small.yaml"), home=workspace.root).stdout
    assert re.search(r"score\s.*damaged", status)
    record = run_plain(workspace, small_config(), services=Services(log=said.append))
    assert made(record) == ["score"]
    assert digests(record) == digests(first)
    (aside,) = workspace.quarantine_folder.iterdir()
    assert any(bytes(spoilt) == path.read_bytes() for path in aside.rglob("*") if path.is_file())
    assert any("damaged" in line and str(aside) in line for line in said)


def test_a_removed_chunk_is_filled_bit_identically(folder: Path, first: RunRecord) -> None:
    workspace = Workspace.open(folder / "w")
    cache = workspace.root / "cache" / output(workspace.root, first, "fill_gaps").details["cache"]
    chunk = sorted(cache.glob("*.arrow"))[0]
    content = chunk.read_bytes()
    chunk.unlink()
    record = run_plain(workspace, small_config())
    assert made(record) == ["fill_gaps"]
    assert digests(record) == digests(first)
    assert chunk.read_bytes() == content
