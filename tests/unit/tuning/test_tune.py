"""The stages calibrate and tune on a packed toy corpus: trials as a table, a winner with a reason, kills, failures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pyarrow.parquet as pq
import pytest
from search_toy import Config, run_stages, run_until, window

from pipeline_lib.config.model import LoraConfig, TrainConfig, TuneConfig
from pipeline_lib.planning.memory import count_parameters
from pipeline_lib.tuning.tune import SEED_NOISE
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.workspace import Workspace

HERE = Path(__file__).parent


class Notebook:
    """A tracker that writes everything down."""

    def __init__(self, name="run", book=None):
        self.name, self.book = name, {} if book is None else book
        self.page = self.book.setdefault(name, {"params": {}, "metrics": [], "tags": {}, "status": ""})

    def params(self, values):
        self.page["params"] |= values

    def metrics(self, values, *, step=0):
        self.page["metrics"].append((step, dict(values)))

    def tags(self, values):
        self.page["tags"] |= values

    def child(self, name, *, tags=None):
        child = Notebook(name, self.book)
        child.tags(tags or {})
        return child

    def end(self, status="FINISHED"):
        self.page["status"] = status


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    root, notebook = tmp_path_factory.mktemp("searched"), Notebook()
    services = window(360, Services(tracker=notebook))
    return root, run_until(root, "plan", services=services), notebook.book


def trials_of(artifact):
    return pq.read_table(artifact.file("trials")).to_pylist()


def test_calibration_measures_what_the_model_is(searched):
    _, made, _ = searched
    details, config = made["calibrate"].details, Config()
    assert details["parameters"] == count_parameters(config.model, 400).total
    assert {(p["micro_batch"], p["precision"]) for p in details["profiles"]} == {(4, "bf16"), (4, "fp32")}
    assert details["chosen"]["tokens_per_second"] == max(p.get("tokens_per_second", 0) for p in details["profiles"])
    low, high = details["interval"]
    assert 0 < low <= 1 <= high


def test_the_search_is_a_table_with_the_baseline_first(searched):
    _, made, _ = searched
    rows = trials_of(made["tune"])
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    params = [json.loads(row["params"]) for row in rows]
    assert (params[0]["learning_rate_factor"], params[0]["weight_decay_factor"]) == (1.0, 1.0)
    assert len({p["learning_rate"] for p in params}) == 3
    for row in rows:
        curve = json.loads(row["curve"])
        assert curve[-1] == [row["steps"], pytest.approx(row["dev_loss"])]
        assert row["tokens"] == row["steps"] * 8 * 32


def test_the_winner_beats_the_baseline_by_more_than_luck_or_is_the_baseline(searched):
    _, made, _ = searched
    details = made["tune"].details
    complete = [row for row in trials_of(made["tune"]) if row["state"] == "complete"]
    best = min(row["dev_loss"] for row in complete)
    gain = (details["baseline"]["dev_loss"] - best) / details["baseline"]["dev_loss"]
    assert details["gain"] == pytest.approx(gain)
    assert details["best"]["trial"] == (0 if gain <= SEED_NOISE else min(complete, key=lambda r: r["dev_loss"])["number"])


def test_every_trial_is_a_nested_run(searched):
    _, made, book = searched
    for row in trials_of(made["tune"]):
        page = book[f"trial-{row['number']}"]
        assert page["status"] == "FINISHED"
        assert page["tags"]["millrace.state"] == row["state"]
        assert page["params"]["learning_rate"] == json.loads(row["params"])["learning_rate"]
        assert [step for step, values in page["metrics"] if "dev_loss" in values] == [s for s, _ in json.loads(row["curve"])]


def test_the_plan_takes_the_winners_values(searched):
    _, made, _ = searched
    best, plan = made["tune"].details["best"], made["plan"].details
    assert plan["weight_decay"] == best["weight_decay"]
    assert plan["learning_rate"] == pytest.approx(5e-3 * best["learning_rate_factor"], rel=1e-3)
    assert plan["steps"] == 30


def test_a_second_run_reuses_all_three(searched):
    root, made, _ = searched
    again = run_until(root, "plan", services=window(5000))
    assert {name: artifact.key for name, artifact in again.items()} == {name: a.key for name, a in made.items()}


def test_no_trials_means_the_law(searched):
    root, made, _ = searched
    skipped = run_stages(
        Workspace.open(root), made, "tune", Config(tune=TuneConfig(trials=0)), services=None
    )["tune"]  # fmt: skip
    assert skipped.details["best"] == {}
    assert trials_of(skipped) == []
    assert isinstance(skipped.manifest.summary, SummaryTable)


def with_config(searched, config, services=None, name="tune"):
    """The stage `tune` with another configuration behind the calibration that is there."""
    from pipeline_lib.stages import BY_NAME
    from pipeline_lib.workspace.stage import execute

    root, made, _ = searched
    workspace = Workspace.open(root)
    inputs = {needed: made[needed].ref() for needed in BY_NAME[name].reads}
    return workspace.store.artifact(execute(workspace, BY_NAME[name], config, inputs, services=services).key)


def test_a_trial_whose_loss_is_not_finite_is_a_result(searched):
    notebook = Notebook()
    space = {"learning_rate": (1.0, 1e300)}
    config = Config(tune=TuneConfig(trials=3, steps=4, sampler="random", space=space), seed=1)
    made = with_config(searched, config, Services(tracker=notebook))
    rows = trials_of(made)
    assert rows[0]["state"] == "complete"
    failed = [row for row in rows if row["state"] == "failed"]
    assert failed
    assert all("not finite" in row["error"] and row["dev_loss"] is None for row in failed)
    assert notebook.book[f"trial-{failed[0]['number']}"]["status"] == "FAILED"
    assert made.details["failed"] is False


def test_when_all_fail_the_default_stays_and_the_commonest_cause_is_said(searched):
    broken = TrainConfig(batch_tokens=256, max_steps=30, lora=LoraConfig(rank=2, alpha=1e300))  # infinite at once
    made = with_config(searched, Config(train=broken, tune=TuneConfig(trials=2, steps=4)))
    assert made.details["failed"] is True
    assert made.details["best"] == {}
    assert "all 2 trials failed" in made.details["why"]
    assert "2 of them with: the loss is not finite" in made.details["why"]
    assert [event["kind"] for event in made.manifest.events] == ["search_failed"]
    assert [row["state"] for row in trials_of(made)] == ["failed", "failed"]


def study_in(root):
    return f"sqlite:///{next((root / 'work').glob('tune-*')) / 'study' / 'study.db'}"


def stored(root):
    url = study_in(root)
    name = optuna.get_all_study_names(url)[0]
    return optuna.load_study(study_name=name, storage=url).get_trials()


def test_a_killed_search_continues_without_a_lost_or_doubled_trial(tmp_path):
    paths = os.pathsep.join([str(HERE), str(HERE.parent / "packing"), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(
        [sys.executable, str(HERE / "search_toy.py"), str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    for line in child.stdout:
        if line.strip() == "2":  # two trials are done, the third begins
            break
    time.sleep(0.3)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = stored(tmp_path)
    done = [trial for trial in before if trial.state.is_finished()]
    running = [trial for trial in before if not trial.state.is_finished()]
    assert len(done) == 2
    assert len(running) == 1
    made = run_until(tmp_path, "tune", Config(tune=TuneConfig(trials=4, steps=40)))["tune"]
    rows = {row["number"]: row for row in trials_of(made)}
    assert len(rows) == 4
    assert running[0].number not in rows
    for trial in done:
        assert rows[trial.number]["dev_loss"] == trial.user_attrs["dev_loss"]
        assert rows[trial.number]["seconds"] == trial.user_attrs["seconds"]
    factors = [json.loads(row["params"])["learning_rate_factor"] for row in rows.values()]
    assert factors.count(running[0].params["learning_rate"]) == 1  # the one that was cut off was repeated, once
    assert len(set(factors)) == 4
