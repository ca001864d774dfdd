"""The Python API as its examples use it: every verb in small, from a running event loop and from a script."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.api import Config, FineTuner, LLMTrainingOptimizer, MemoryStore, wait_for
from flows.api.jobs import Job, ended, find, stop
from flows.api.results import Monitored, Optimized, PreparedData, Training, Validated
from flows.api.words import size_in
from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.memory.keep import caught_up
from pipeline_lib.trainings import entries
from pipeline_lib.workspace.files import write_json
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.workspace import Workspace
from tests.servers import REPOSITORY, Up
from tests.servers import wait_for as until

sys.path.insert(0, str(REPOSITORY / "deployments" / "examples"))

import finetuner
import optimizer

TINY: dict[str, Any] = {
    "suites.names": ["zen"], "ingest.sources": [{"name": "machine", "kind": "machine", "max_mb": 1.0}],
    "resources.max_hours": 0.5, "resources.margin_minutes": 1.0, "tokenizer.vocabulary_size": 512, "pack.sequence_length": 64,
    "pack.range_tokens": 32768, "model.width": 32, "model.depth": 1, "model.heads": 2, "model.ffn_width": 64,
    "calibrate.seconds": 1.0, "calibrate.micro_batches": [8], "tune.steps": 4, "train.max_steps": 30, "train.precision": "fp32",
    "validation.language_tokens": 5000, "validation.bootstrap": 100, "execution.workers": 1,
}  # fmt: skip
VERBS = {"data": PreparedData, "best": Optimized, "run": Training, "seen": Monitored, "trained": Training, "test": Validated}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api") / "workspace"


@pytest.fixture(scope="module")
def done(up: Up, home: Path) -> dict[str, Any]:
    """The example of the optimizer, in an event loop that is running already, on the session's Prefect server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", f"{up.prefect}/api")
        return wait_for(optimizer.main(str(home), **TINY))


@pytest.mark.slow
def test_every_verb_says_what_it_did_and_survives_json(done: dict[str, Any]) -> None:
    data, best, trained, test = done["data"], done["best"], done["trained"], done["test"]
    assert data["total_examples"] == sum(data["domains"].values()) > 10
    assert 0.1 <= data["quality_score"] <= 1
    assert data["diversity_score"] > 1
    assert best["trials"] >= 3
    assert best["optimal_config"]["learning_rate"] > 0
    assert best["optimal_config"]["steps"] <= 30
    assert set(best["best_metrics"]) == {"validation_loss", "training_speed", "memory_efficiency"}
    assert best.notes == ("max_cost = 100 limits nothing: no price_per_hour was named",)
    assert done["seen"]["state"] in {"starting", "running"}
    assert trained["state"] == "completed"
    assert (Path(trained["model_path"]) / "model.safetensors").exists()
    assert test["category_scores"].keys() == {"general_knowledge"}
    assert test["overall_score"] == pytest.approx(sum(test["metrics"].values()) / 2)
    for name, kind in VERBS.items():
        assert kind.from_json(json.loads(json.dumps(done[name].to_json()))) == done[name]
    with pytest.raises(KeyError, match="did you mean total_examples"):
        data["total_example"]


@pytest.mark.slow
def test_the_verbs_are_runs_like_others_and_reuse_each_other(done: dict[str, Any], home: Path) -> None:
    records = list(RunBook(Workspace.open(home).runs_folder).all())
    assert [record.run_id for record in records] == [done[name].run_id for name in ("data", "best", "trained", "test")]
    assert all(Path(record.report).exists() and record.outcome == "completed" for record in records)
    assert all(record.mlflow["run_id"] for record in records)
    states = [{name: stage.state for name, stage in record.stages.items()} for record in records]
    assert states[1]["ingest"] == states[2]["fill_gaps"] == states[2]["tune"] == "reused"
    assert states[3] == {**dict.fromkeys(states[2], "supplied"), "suites": "made", "validate": "made"}
    assert not records[3].verdict  # scoring promotes nothing


@pytest.mark.slow
def test_what_the_verbs_taught_is_in_both_memories(done: dict[str, Any], home: Path) -> None:
    past, own = MemoryStore(Config(home / "past")), caught_up(Workspace.open(home))
    runs = [done[name].run_id for name in ("data", "best", "trained", "test")]
    assert past.table()["run_id"].to_pylist() == own.table()["run_id"].to_pylist() == runs
    memory = own.get(done["trained"].run_id)
    assert memory.data_fingerprint
    assert memory.features["parameters"] > 0  # its speed only where nothing slowed it down
    assert memory.scores["zen"] == done["trained"].scores["zen"]
    assert memory.tuned["dev_loss"] == pytest.approx(done["best"].best_metrics["validation_loss"])
    assert done["past"][0].reasons


@pytest.mark.slow
def test_a_training_is_looked_at_from_another_process_too(done: dict[str, Any], home: Path) -> None:
    other = LLMTrainingOptimizer(workspace=home)
    seen = wait_for(other.monitor_training(done["run"].id, ["loss", "accuracy", "resource_usage", "estimated_completion"]))
    assert (seen.state, seen.progress, seen.run_id) == ("completed", 1.0, done["trained"].run_id)
    assert 0 < seen.current_metrics["loss"] < 10
    assert 0 < seen.current_metrics["accuracy"] < 1
    assert seen.notes == ()
    assert any(event["kind"] == "evaluated" and event["detail"]["dev_loss"] > 0 for event in seen.events)
    assert seen.resource_utilization["training_memory_bytes"] > 0
    wrong = done["run"].id[:-1] + "x"
    with pytest.raises(NotFoundError, match=done["run"].id):
        wait_for(other.monitor_training(wrong))
    with pytest.raises(NotFoundError, match="no model of this workspace"):
        wait_for(other.validate_model(str(home / "elsewhere"), validation_metrics=["factuality"]))


@pytest.mark.slow
def test_the_one_call_trains_resumes_and_analyses_beside_a_running_loop(done: dict[str, Any], up: Up, home: Path) -> None:
    async def notebook() -> dict[str, Any]:
        return finetuner.main(workspace=str(home), **TINY, **{"tune.trials": 0, "train.save_every": 10})

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", f"{up.prefect}/api")
        made = wait_for(notebook())
        trained, tuner = made["trained"], made["tuner"]
        early = min(one.step for one in entries(tuner.workspace) if one.run and one.run.run_id == trained.run_id)
        resumed = tuner.resume(f"{trained.run_id}@{early}")
    assert (trained.state, resumed.state) == ("completed", "completed")
    assert made["findings"]["run_id"] == trained.run_id
    assert made["findings"]["numbers"]["convergence"]
    assert made["findings"]["similar_runs"][0]["run_id"] in {done[name].run_id for name in ("best", "trained")}
    assert find(tuner.workspace, trained.id).alive() is False
    assert tuner.analyze()["run_id"] == resumed.run_id != trained.run_id
    record = RunBook(tuner.workspace.runs_folder).load(resumed.run_id)
    assert record.config["train"]["parent"].startswith("checkpoint:")
    assert Path(resumed.model_path) != Path(trained.model_path)


def job_of(folder: Path, script: str) -> tuple[Job, psutil.Process]:
    """A job that runs a script, and the child that the script has started and named in a file."""
    folder.mkdir()
    named = folder / "child"
    process = subprocess.Popen([sys.executable, "-c", script, str(named)], start_new_session=True)
    write_json(folder / "job.json", {"pid": process.pid, "born": psutil.Process(process.pid).create_time(), "started": ""})
    until(lambda: named.exists() and named.read_text())
    return Job("one", folder, process), psutil.Process(int(named.read_text()))


START = """
import signal, subprocess, sys, time
from pathlib import Path
def begin():
    Path(sys.argv[1]).write_text(str(subprocess.Popen(["sleep", "300"]).pid))
    time.sleep(300)
"""
DEAF = f"""{START}
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
begin()
"""
POLITE = f"""{START}
try:
    begin()
except KeyboardInterrupt:
    time.sleep(0.3)  # as one that closes its record
"""


def test_a_job_that_does_not_stop_is_ended_with_its_children_and_that_is_said(tmp_path: Path) -> None:
    job, child = job_of(tmp_path / "job", DEAF)
    (said,) = stop(job, seconds=0.3, end_seconds=0.3)
    assert "ended by force" in said
    assert job.alive() is False
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert stop(job) == ("it had ended already",)


def test_who_stops_waiting_stops_the_job_and_the_loop_goes_on_meanwhile(tmp_path: Path) -> None:
    job, child = job_of(tmp_path / "job", POLITE)
    turns = 0

    async def notebook() -> None:
        nonlocal turns
        waiting = asyncio.create_task(ended(job))
        await asyncio.sleep(0.2)
        waiting.cancel()
        while not waiting.done():
            turns += 1
            await asyncio.sleep(0.01)

    wait_for(notebook())
    child.kill()
    assert job.alive() is False
    assert job.process is not None
    assert job.process.returncode == 0
    assert turns > 3


def same_names(home: Path) -> dict[str, Path]:
    files = {name: home / name / "general.jsonl" for name in "ab"}
    for file in files.values():
        file.parent.mkdir(parents=True)
        file.write_text("{}")
    return files


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (lambda home: LLMTrainingOptimizer(workspace=home, model_type="transfomer"), "did you mean transformer"),
        (lambda home: LLMTrainingOptimizer(workspace=home, optimization_strategy="best"), "speed, balanced, quality"),
        (lambda home: LLMTrainingOptimizer(workspace=home, max_training_resources={"gpu_memory": "16 apples"}), "16GB"),
        (lambda home: LLMTrainingOptimizer(workspace=home, max_training_resources={"max_tim": "1h"}), "did you mean max_time"),
        (lambda home: FineTuner(workspace=home, preset="qualty"), "did you mean quality"),
        (lambda home: FineTuner(workspace=home, model="lama"), "did you mean llama"),
        (
            lambda home: wait_for(
                LLMTrainingOptimizer(workspace=home).prepare_training_data(selection_criteria={"quality_treshold": 0.5})
            ),
            "did you mean quality_threshold",
        ),
        (lambda home: wait_for(LLMTrainingOptimizer(workspace=home).prepare_training_data(target_size="5 heaps")), "no size"),
        (
            lambda home: wait_for(LLMTrainingOptimizer(workspace=home).optimize_hyperparameters({"batch_size_range": 4})),
            "no range",
        ),
        (
            lambda home: LLMTrainingOptimizer(workspace=home, max_training_resources={"max_cost": "much"}),
            "max_cost: 'much' cannot be used",
        ),
        (lambda home: Config(home, hot_memory_size=0), "keeps nothing"),
        (
            lambda home: wait_for(
                LLMTrainingOptimizer(workspace=home).prepare_training_data(selection_criteria={"domain_balance": "no"})
            ),
            "domain_balance: 'no' cannot be used",
        ),
        (
            lambda home: wait_for(LLMTrainingOptimizer(workspace=home).optimize_hyperparameters(max_trials=2.5)),
            "2.5 cannot be used",
        ),
        (
            lambda home: wait_for(LLMTrainingOptimizer(workspace=home).optimize_hyperparameters({}, "speed")),
            "'speed' is not known",
        ),
        (
            lambda home: wait_for(LLMTrainingOptimizer(workspace=home).validate_model("latest", same_names(home))),
            "two files have one name",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_nearest_that_can(tmp_path: Path, what: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        what(tmp_path)


def test_an_id_that_is_no_text_and_one_source_without_a_list(tmp_path: Path) -> None:
    optimizer = LLMTrainingOptimizer(workspace=tmp_path)
    with pytest.raises(NotFoundError, match="there is no training '5'"):
        wait_for(optimizer.monitor_training(5))  # type: ignore[arg-type]
    optimizer.read_from(str(tmp_path))
    assert [row["path"] for row in optimizer.settings["ingest.sources"]] == [str(tmp_path)]


def test_sizes_are_read_in_their_units() -> None:
    assert size_in("1.5 h", {"h": 1.0, "m": 1 / 60}, "x", "48h") == 1.5
    assert size_in(2, {"h": 1.0, "m": 1 / 60}, "x", "48h") == 2.0
