"""The stages calibrate and tune on a packed toy corpus: trials as a table, a winner with a reason, kills, failures."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from search_toy import Config, killed, run_until, window

from pipeline_lib.config.model import LoraConfig, TrainConfig, TuneConfig
from pipeline_lib.config.resources import ResourcesConfig
from pipeline_lib.errors import ConfigError, RefusedError
from pipeline_lib.planning.memory import count_parameters
from pipeline_lib.planning.recalled import features_asked
from pipeline_lib.stages import BY_NAME
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.runs import RunRecord, StageRecord
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.stage import execute
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


class Watched:
    """Tasks that are noted, with the most that were at work at the same moment. One trial's process is killed."""

    def __init__(self):
        self.names, self.now, self.most, self.killed = [], 0, 0, ""
        self.lock = threading.Lock()

    def task(self, name, work):
        with self.lock:
            self.names.append(name)
            self.now += 1
            self.most = max(self.most, self.now)
            victim = len(self.names) == 3
        if victim:
            self.killed = name.split()[1].rstrip(",")
            threading.Thread(target=self._kill, args=(f"trial-{self.killed}",)).start()
        try:
            return work()
        finally:
            with self.lock:
                self.now -= 1

    @staticmethod
    def _kill(name):
        for _ in range(1000):
            for child in multiprocessing.active_children():
                if child.name == name:
                    os.kill(child.pid, signal.SIGKILL)
                    return
            time.sleep(0.005)


def trials_of(artifact):
    return pq.read_table(artifact.file("trials")).to_pylist()


def with_config(searched, config, services=None, name="tune"):
    """The stage `tune` with another configuration behind the calibration that is there."""
    root, made, _ = searched
    workspace = Workspace.open(root)
    inputs = {needed: made[needed].ref() for needed in BY_NAME[name].reads}
    return workspace.store.artifact(execute(workspace, BY_NAME[name], config, inputs, services=services).key)


def small(**tune):
    return Config(tune=TuneConfig(**{"trials": 3, "steps": 4, "repeats": 0, "warm_start": 0, **tune}))


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
    rows = [row for row in trials_of(made["tune"]) if row["kind"] != "repeat"]
    assert [row["kind"] for row in rows] == ["baseline", "sampled", "sampled"]
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    params = [json.loads(row["params"]) for row in rows]
    assert (params[0]["learning_rate_factor"], params[0]["weight_decay_factor"]) == (1.0, 1.0)
    assert len({p["learning_rate"] for p in params}) == 3
    for row in rows:
        curve = json.loads(row["curve"])
        assert curve[-1] == [row["steps"], pytest.approx(row["dev_loss"])]
        assert row["tokens"] == row["steps"] * 8 * 32 <= row["spent_tokens"]


def test_the_best_point_is_trained_again_with_another_seed_or_is_the_default(searched):
    _, made, _ = searched
    details, rows = made["tune"].details, trials_of(made["tune"])
    whole = [row for row in rows if row["state"] == "complete" and row["kind"] != "repeat"]
    best = min(whole, key=lambda row: row["dev_loss"])
    repeats = {row["seed_of"]: row["dev_loss"] for row in rows if row["kind"] == "repeat"}
    assert set(repeats) == ({best["number"], 0} if best["number"] else set())
    if repeats:
        default = (rows[0]["dev_loss"] + repeats[0]) / 2
        assert details["gain"] == pytest.approx((default - repeats[best["number"]]) / default)
        assert repeats[0] != rows[0]["dev_loss"], "another seed is another training"
    assert details["best"]["trial"] == (best["number"] if details["gain"] > details["noise"] else 0)


def test_every_trial_is_a_nested_run_and_every_nested_run_a_trial(searched):
    _, made, book = searched
    rows = trials_of(made["tune"])
    assert {f"trial-{row['number']}" for row in rows} == {name for name in book if name.startswith("trial-")}
    for row in rows:
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
    skipped = with_config(searched, Config(tune=TuneConfig(trials=0)))
    assert skipped.details["best"] == {}
    assert trials_of(skipped) == []
    assert isinstance(skipped.manifest.summary, SummaryTable)


@pytest.mark.parametrize(
    "pruner", ["asha", "median", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hyperband", "wilcoxon"))]
)
def test_every_pruner_on_a_real_model(searched, pruner):
    made = with_config(searched, small(trials=4, steps=24, pruner=pruner, sampler="qmc", space={"learning_rate": (0.02, 3.0)}))
    rows = trials_of(made)
    read = [json.loads(row["rungs"]) for row in rows]
    assert len(rows) == 4
    assert [one["steps"] for one in read[0]] == [8, 24], "the default is read at every rung"
    assert any(row["state"] == "pruned" and row["steps"] == 8 for row in rows)
    assert sum(row["spent_tokens"] for row in rows) < 4 * rows[0]["tokens"]
    assert read[0][1]["spent_tokens"] == (24 - 6) * 8 * 32, "it went on from step 6, where the decay of its first reading began"


@pytest.fixture(scope="module")
def side_by_side(searched):
    """Two trials at a time; the process of one of them is killed."""
    watched = Watched()
    config = small(trials=4, steps=24, pruner="asha", parallel=2)
    return trials_of(with_config(searched, config, Services(task=watched.task))), watched


def test_nothing_is_lost_and_nothing_doubled(side_by_side):
    rows, watched = side_by_side
    assert [row["number"] for row in rows] == list(range(len(rows)))
    assert len({row["params"] for row in rows}) == 4
    read = [(row["number"], one["rung"]) for row in rows for one in json.loads(row["rungs"])]
    assert len(read) == len(set(read)) == len(watched.names)


def test_two_are_at_work_at_a_time_and_each_reading_is_a_task(side_by_side):
    rows, watched = side_by_side
    assert watched.most == 2
    assert sorted(set(watched.names)) == sorted(watched.names)
    steps = {f"trial {row['number']}, {one['steps']} steps" for row in rows for one in json.loads(row["rungs"]) if one["steps"]}
    assert steps <= set(watched.names)


def test_a_trial_whose_process_dies_is_a_result(side_by_side):
    rows, watched = side_by_side
    (failed,) = [row for row in rows if row["state"] == "failed"]
    assert str(failed["number"]) == watched.killed
    assert failed["error"] == "its process ended with code -9"


@pytest.mark.parametrize("sampler", ["gp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cmaes", "nsga3"))])
def test_samplers_on_a_real_model(searched, sampler):
    made = with_config(searched, small(trials=5, sampler=sampler, pruner="none"))
    assert [row["state"] for row in trials_of(made)] == ["complete"] * 5


def test_several_objectives_have_a_front_and_a_recommended_point(searched):
    config = small(
        trials=6, sampler="nsga2", objectives=["dev_loss", "memory"], choices={"width": [16, 32], "depth": [1, 2, 30]},
        space={"learning_rate": (0.5, 2.0)},
    )  # fmt: skip
    made = with_config(searched, config)
    details, rows = made.details, {row["number"]: row for row in trials_of(made)}
    ran = [row for row in rows.values() if row["state"] == "complete"]
    assert len(ran) == 6
    assert all(json.loads(row["params"])["depth"] < 30 for row in ran), "no architecture beyond the budget runs"
    refused = [row for row in rows.values() if row["state"] == "refused"]
    assert all("are the budget" in row["error"] and row["tokens"] == 0 for row in refused)
    points = details["front"]["points"]
    for one in points:
        assert not any(
            other["values"]["dev_loss"] < one["values"]["dev_loss"] and other["values"]["memory"] <= one["values"]["memory"]
            for other in points
        )
    assert details["best"]["trial"] == details["front"]["recommended"] in {one["number"] for one in points}
    chosen = details["best"]["chosen"]
    if details["best"]["point"]["width"] == 16:
        assert (chosen["model.width"], chosen["model.ffn_width"]) == (16, 32)


def test_what_the_estimate_refuses_never_runs(searched):
    config = small(trials=3, pruner="none", sampler="random", space={"learning_rate": (0.5, 2.0)})
    config = config.model_copy(update={"resources": ResourcesConfig(memory_gib=0.1, max_hours=0.1, margin_minutes=0.2)})
    with pytest.raises(RefusedError, match="GiB may be used"):
        with_config(searched, config)


def test_what_a_search_chose_is_what_is_planned_and_trained(searched):
    config = small(
        trials=4, pruner="none", sampler="grid", choices={"optimizer": ["adamw", "muon"]}, space={"max_grad_norm": (0.5, 2.0)}
    )
    root, made, _ = searched
    workspace = Workspace.open(root)
    tuned = with_config(searched, config)
    inputs = {name: (tuned if name == "tune" else made[name]).ref() for name in BY_NAME["plan"].reads}
    plan = workspace.store.artifact(execute(workspace, BY_NAME["plan"], config, inputs).key)
    assert plan.details["chosen"] == tuned.details["best"]["chosen"]
    if tuned.details["best"]["trial"]:
        assert plan.details["chosen"]


def test_past_searches_are_tried_first(searched):
    root, made, _ = searched
    past = with_config(searched, small(trials=5, pruner="none", space={"learning_rate": (0.3, 3.0)}))
    config = Config()
    asked = features_asked(
        config.model, config.train, {"vocabulary_size": 400, "sequence_length": 32}, count_parameters(config.model, 400).total
    )
    record = RunRecord("20260101-000000-000000", "toy", features=asked, outcome="completed")
    record.stages["tune"] = StageRecord("made", asdict(past.ref()))
    folder = Workspace.open(root).runs_folder
    folder.mkdir(exist_ok=True)
    (folder / f"{record.run_id}.json").write_text(json.dumps({"format": 2, **asdict(record)}), "utf-8")
    made = with_config(searched, small(trials=3, steps=5, pruner="none", space={"learning_rate": (0.5, 2.0)}, warm_start=1))
    rows = trials_of(made)
    assert [row["kind"] for row in rows] == ["baseline", "warm", "sampled"]
    best = min(max(past.details["best"]["point"]["learning_rate"], 0.5), 2.0)
    tried = json.loads(rows[1]["params"])["learning_rate_factor"]
    assert min(best, 1.0) < tried < max(best, 1.0)  # towards what was found there, by how sure that was
    told = made.details["warm_start"]
    assert told["points"][0]["run_id"] == record.run_id
    assert told["points"][0]["gain"] == pytest.approx(1 - rows[1]["dev_loss"] / rows[0]["dev_loss"])


def test_a_trial_whose_loss_is_not_finite_is_a_result(searched):
    notebook = Notebook()
    config = small(sampler="random", pruner="none", space={"learning_rate": (1.0, 1e300)})
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
    made = with_config(searched, small(trials=2).model_copy(update={"train": broken}))
    assert made.details["failed"] is True
    assert made.details["best"] == {}
    assert "all 2 trials failed" in made.details["why"]
    assert "2 of them with: the loss is not finite" in made.details["why"]
    assert [event["kind"] for event in made.manifest.events] == ["search_failed"]
    assert [row["state"] for row in trials_of(made)] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("tune", "words"),
    [
        ({"space": {}}, "the space is empty"),
        ({"choices": {"optimizer": ["muon"]}}, "leave out adamw"),
        ({"choices": {"lora_rank": [0, 4]}}, "train.lora.rank is 0"),
        ({"objectives": ["dev_loss", "cost"]}, "nothing has a price"),
    ],
)
def test_bad_input_is_refused(searched, tune, words):
    with pytest.raises(ConfigError, match=words):
        with_config(searched, small(**tune))


def kill_search(root, parallel):
    """Search, killed at several moments; the trials of the search that went on."""
    run_until(root, "calibrate", killed(parallel))
    paths = os.pathsep.join([str(HERE), str(HERE.parent / "packing"), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, str(HERE / "search_toy.py"), str(root), str(parallel), "1+0.05", "2+0.1", "3+0.2"], check=True,
        timeout=120, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    return run_until(root, "tune", killed(parallel))["tune"]


@pytest.mark.slow
def test_a_killed_search_ends_as_one_that_was_not_killed(tmp_path):
    """Killed at several moments, it has the trials, the points and, to the bit, the losses of a search that ran through: trials
    that were promoted went on from their own checkpoint."""
    once = kill_search(tmp_path, 1)
    whole = run_until(tmp_path, "tune", killed(1), force=True)["tune"]
    assert once.key != whole.key
    same = ("number", "kind", "seed_of", "state", "params", "dev_loss", "tokens", "spent_tokens", "curve")
    rows = [[{name: row[name] for name in same} for row in trials_of(made)] for made in (once, whole)]
    assert rows[0] == rows[1]
    assert len({row["params"] for row in rows[0] if row["kind"] != "repeat"}) == 5
    assert any(len(json.loads(row["rungs"])) > 1 for row in trials_of(once) if row["kind"] == "sampled")


@pytest.mark.slow
def test_a_killed_search_of_two_side_by_side_loses_and_doubles_nothing(tmp_path):
    rows = trials_of(kill_search(tmp_path, 2))
    assert [row["number"] for row in rows] == list(range(len(rows)))
    searched = [row for row in rows if row["kind"] != "repeat"]
    assert len(searched) == len({row["params"] for row in searched}) == 5
    for row in searched:
        read = [one["rung"] for one in json.loads(row["rungs"])]
        assert read == list(range(len(read)))
        assert row["state"] in ("complete", "pruned"), row["error"]
        assert row["spent_tokens"] <= 1.3 * row["tokens"], "no reading was trained for twice"
