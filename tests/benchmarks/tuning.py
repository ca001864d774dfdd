"""The search against 42 random trials at full length, against defaults on untouched test text, and what it costs itself."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.config.load import load_config
from pipeline_lib.config.model import TrainConfig
from pipeline_lib.run import run_plain
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.tuning.budget import TrialPlan
from pipeline_lib.tuning.feasible import Setting, job_of, trial_of
from pipeline_lib.tuning.pruning import Rule, Standing, promotable
from pipeline_lib.tuning.space import Dimension
from pipeline_lib.tuning.study import Study
from pipeline_lib.tuning.trial import Reading, read_rung
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.identity import fingerprint_of
from pipeline_lib.workspace.machine import machine_identity, versions
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.figures import Book

REPOSITORY = Path(__file__).parents[2]
QUICKSTART = REPOSITORY / "deployments" / "pipelines" / "quickstart.yaml"
SEEDS, QUICK_SEEDS = 5, 1
RANDOM = 42  # trials at full length, the loss of the best of which is to be reached
SEARCHED = 14  # trials of the search, most of them ended early
WARM = 7  # of the search that knows one at half the size
STEPS, QUICK_STEPS = 120, 72  # fewer than 72 are too few for three rungs
HALF = ("model.width=48", "model.ffn_width=96")
DATA = (
    "ingest.sources=[{name: machine, kind: machine, max_mb: 3}]", "tokenizer.vocabulary_size=512", "pack.sequence_length=128",
    "suites.level=smoke", "model.width=64", "model.depth=2", "model.heads=4", "model.ffn_width=176", "train.batch_tokens=1024",
    "calibrate.seconds=4", "calibrate.micro_batches=[8]", "train.precision=fp32", "tracking.enabled=false",
    "resources.max_hours=20", "resources.margin_minutes=10", "resources.search_share=0.5",  # the number of trials is the limit
)  # fmt: skip
SPACE = (
    "{learning_rate: [0.1, 8], weight_decay: [0.1, 8], batch_tokens: [0.5, 2], warmup_share: [0.3, 3], max_grad_norm: [0.3, 3]}"
)
CHOICES = "{optimizer: [adamw, muon]}"
LIBRARY = {"learning_rate": 5e-5, "weight_decay": 0.0}  # transformers.TrainingArguments: AdamW, linear, beta2 0.999, no warm-up
STUDENT_95 = {2: 2.920, 3: 2.353, 4: 2.132}  # one-sided, by degrees of freedom


def options(parser: argparse.ArgumentParser) -> None:
    """Where baselines are kept."""
    parser.add_argument("--cache", type=Path, default=None, help="folder for results of random searches")


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Everything on one workspace with a small model."""
    quick = arguments.quick
    steps, seeds = (QUICK_STEPS, QUICK_SEEDS) if quick else (STEPS, SEEDS)
    with tempfile.TemporaryDirectory(prefix="millrace-tuning-") as folder:
        workspace = Workspace.open(Path(folder) / "home")
        cache = arguments.cache or Path(tempfile.gettempdir()) / "millrace-benchmark-baselines"
        bench = Bench(workspace, steps, cache)
        bench.record("calibrate")
        shares, gaps, saved, own, once, found = [], [], [], [], [], []
        for seed in range(seeds):
            target, tokens = bench.random(seed, RANDOM)
            cold = bench.search(seed, SEARCHED, through_command=True)
            shares.append(min(reached(cold, target) / tokens, 1.0))
            gaps.append(best(cold) / target - 1)
            beside, start = overhead(cold)
            own.append(beside)
            once.append(start)
            # Where nothing else is remembered than a search at half the size.
            other = Bench(Workspace.open(Path(folder) / f"half-{seed}"), steps, cache)
            other.search(seed, SEARCHED, *HALF)
            warm = other.search(seed, WARM, "tune.warm_start=2")
            level = max(target, best(cold))
            saved.append(max(1 - reached(warm, level) / reached(cold, level), 0.0))
            found.append(bench.against_defaults(seed, cold, target))
            print(f"  seed {seed}: target {target:.4f}, search {best(cold):.4f}, warm {best(warm):.4f}; {found[-1]}", flush=True)
        setup = (
            f"{seeds} seeds, {RANDOM} trials of {steps} steps of 1,024 tokens, {bench.parameters:,} parameters; a search that "
            "misses counts as all"
        )
        book.add("tokens to the loss of random search, median", 100 * statistics.median(shares), "%", most=25, setup=setup)
        setup = "the least of 42 losses is partly luck: those of neighbouring points differ by about 1 % (4.07, 4.12, 4.15 seen)"
        book.add("  the search's loss above that one, median", 100 * statistics.median(gaps), "%", setup=setup)
        book.add("tokens that a warm start saves, median", 100 * statistics.median(saved), "%", least=100 / 3)
        setup = "sampler, storage, tracking, task; of the trials' time"
        book.add("search's own time for its trials, median", 100 * statistics.median(own), "%", most=2, setup=setup)
        setup = "imports, opening and closing the study, however many trials; the first trial's import of torch is its own"
        book.add("search's start and end, median", statistics.median(once), "s", setup=setup)
        _defaults(book, found)
        _large(book, Path(folder), 200 if quick else 1000)
    if quick:
        book.leave_out("five seeds, 120 steps a trial, a study of 1,000 trials")


class Bench:
    """A workspace with packed data, and searches on it."""

    def __init__(self, workspace: Workspace, steps: int, cache: Path | None) -> None:
        self.workspace, self.steps, self.cache, self.parameters = workspace, steps, cache, 0

    def record(self, until: str, *overrides: str) -> Artifact:
        """Run up to a stage; its artifact."""
        config = load_config(QUICKSTART, [*DATA, *overrides])
        made = run_plain(self.workspace, config, until=until)
        ref = made.ref(until)
        if ref is None:
            raise SystemExit(f"{until} was not made: {made.error}")
        artifact = self.workspace.store.artifact(ref.key)
        self.parameters = self.parameters or int(artifact.manifest.details.get("parameters", 0))
        return artifact

    def tune(self, seed: int, trials: int, *overrides: str, through_command: bool = False) -> Artifact:
        """A search; through the command line it is seen by Prefect and MLflow."""
        told = (
            f"tune.space={SPACE}",
            f"tune.choices={CHOICES}",
            f"tune.steps={self.steps}",
            f"seed={seed}",
            f"tune.trials={trials}",
        )
        wanted = (*told, *(("tune.warm_start=0",) if not any("warm_start" in o for o in overrides) else ()), *overrides)
        if through_command:
            sets = [text for override in (*DATA, *wanted, "tracking.enabled=true") for text in ("--set", override)]
            command = [sys.executable, "-m", "flows.cli.main", "run", "--until", "tune", *sets]
            environment = {**os.environ, "MILLRACE_HOME": str(self.workspace.root)}
            done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"the search ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        return self.record("tune", *wanted)

    def random(self, seed: int, trials: int) -> tuple[float, int]:
        """The best loss of random trials at full length, and all their tokens; kept by digest."""
        key = fingerprint_of([DATA, SPACE, CHOICES, self.steps, seed, trials, machine_identity(), versions()])[:24]
        file = self.cache / f"random-{key}.json" if self.cache else None
        if file and file.is_file():
            kept = json.loads(file.read_text("utf-8"))
            return float(kept["loss"]), int(kept["tokens"])
        artifact = self.tune(seed, trials, "tune.sampler=random", "tune.pruner=none", "tune.repeats=0")
        rows = read_tables(artifact.files("trials")).to_pylist()
        loss, tokens = best(artifact), sum(row["spent_tokens"] for row in rows)
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"loss": loss, "tokens": tokens}), "utf-8")
        return loss, tokens

    def search(self, seed: int, trials: int, *overrides: str, through_command: bool = False) -> Artifact:
        """The quick Gaussian process with ASHA on tokens."""
        wanted = ("tune.sampler=quick_gp", "tune.pruner=asha", *overrides)
        return self.tune(seed, trials, *wanted, through_command=through_command)

    def against_defaults(self, seed: int, tuned: Artifact, target: float) -> dict[str, dict[str, float]]:
        """Losses on dev and on untouched test text: the tuned point, the preset's default, the library's."""
        setting = self._setting(seed, tuned)
        library = replace(setting, train=TrainConfig(schedule="linear", beta2=0.999, batch_tokens=1024))
        found: dict[str, dict[str, float]] = {"tuned": {}, "default": {}, "library": {}}
        for side in ("dev", "test"):
            for name, point in (("tuned", tuned.manifest.details["best"]["point"]), ("default", {})):
                found[name][side] = self._loss(setting, point, side, f"{name}-{side}")
            trial = replace(trial_of({}, library), values=LIBRARY, warmup_share=0.0)
            job = replace(job_of(0, 0, trial, library), judge=side, folder=setting.folder / f"library-{side}")
            found["library"][side] = float(read_rung(job).dev_loss or float("inf"))
        found["best known"] = {
            "dev": min(target, *(f["dev"] for f in found.values())),
            "test": min(f["test"] for f in found.values()),
        }
        return found

    def _loss(self, setting: Setting, point: dict[str, Any], side: str, name: str) -> float:
        job = job_of(0, 0, trial_of(point, setting), setting, seed=1000)  # a seed that no search has seen
        return float(read_rung(replace(job, judge=side, folder=setting.folder / name)).dev_loss or float("inf"))

    def _setting(self, seed: int, tuned: Artifact) -> Setting:
        config = load_config(QUICKSTART, [*DATA])
        key = tuned.manifest.inputs["fill_gaps"]["key"]
        data, setup = self.workspace.store.artifact(key).details, TrialPlan(**tuned.manifest.details["setup"])
        return Setting(
            home=self.workspace.root, folder=self.workspace.root / "judged" / str(seed), cache=key, data=data, model=config.model,
            real=config.model, rows=int(data["vocabulary_size"]), train=config.train, plan=setup, rule=Rule("none", 1, 3.0),
            precision="fp32", threads=1, seed=seed, memory_limit=1 << 40,
        )  # fmt: skip


def best(artifact: Artifact) -> float:
    """The least dev loss of a trial at full length, repeats left out."""
    rows = read_tables(artifact.files("trials")).to_pylist()
    return min(row["dev_loss"] for row in rows if row["state"] == "complete" and row["kind"] != "repeat")


def reached(artifact: Artifact, target: float) -> float:
    """All tokens that a search trained, repeats and failures with them; infinite when it did not reach the loss."""
    rows = read_tables(artifact.files("trials")).to_pylist()
    return float(sum(row["spent_tokens"] for row in rows)) if best(artifact) <= target else float("inf")


def overhead(artifact: Artifact) -> tuple[float, float]:
    """Time of a search that no trial took: what goes with the trials, as a share of theirs; what is spent once, in seconds."""
    work = sum(row["seconds"] for row in read_tables(artifact.files("trials")).to_pylist())
    own = float(artifact.manifest.metrics["own_seconds"])
    return own / work, artifact.manifest.seconds - work - own


def _defaults(book: Book, found: Sequence[dict[str, dict[str, float]]]) -> None:
    for other in ("default", "library"):
        for side in ("dev", "test"):
            lower = []
            for one in found:
                floor = one["best known"][side]
                lower.append(1 - (one["tuned"][side] - floor) / max(one[other][side] - floor, 1e-9))
            name = f"excess {side} loss below that of the {'preset' if other == 'default' else 'library'}'s default"
            book.add(name, 100 * statistics.fmean(lower), "%", least=15)
            if (bound := STUDENT_95.get(len(lower) - 1)) is not None:
                error = bound * statistics.stdev(lower) / len(lower) ** 0.5
                book.add(f"  lower 95 % bound of it ({side}, {other})", 100 * (statistics.fmean(lower) - error), "%")


def _large(book: Book, folder: Path, trials: int) -> None:
    """All that a search does beside training: asking, storing a reading, deciding who goes on; most trials wait for ever."""
    space = {name: Dimension(name, 0.1, 10.0) for name in ("learning_rate", "weight_decay")}
    (folder / "large").mkdir()
    study, rule = Study(folder / "large", "large", space, sampler="quick_gp"), Rule("asha", 3, 3.0)

    def loss(point: Mapping[str, Any], rung: int) -> float:
        return 3.0 - 0.1 * rung + float(sum(np.log(float(value) / 3) ** 2 for value in point.values()))

    took = []
    for _ in range(trials):
        begin = time.perf_counter()
        number, rung = study.ask()["number"], 0
        while True:
            read = loss(study.entry(number)["point"], rung)
            study.read(number, Reading(rung, 10 * 3**rung, 0, 0, 1.0, dev_loss=read, parts=[read] * 8, curve=[(1, read)]))
            if rung == rule.rungs - 1:
                study.end(number, "complete", [read])
            entries = study.entries()
            standings = [
                Standing(one["number"], {r["rung"]: r["dev_loss"] for r in one["readings"]}, running=bool(one["result"]))
                for one in entries
            ]
            if (ready := promotable(standings, rule)) is None:
                break
            number, rung = ready.number, ready.at + 1
        took.append(time.perf_counter() - begin)
    setup = "a trial with its promotions, stored in a journal, quick_gp"
    book.add(
        f"search beside training, last tenth of {trials:,} trials",
        1e3 * statistics.median(took[-trials // 10 :]),
        "ms",
        setup=setup,
    )
    begin = time.perf_counter()
    Study(folder / "large", "large", space)
    book.add(f"going on with a study of {trials:,} trials", time.perf_counter() - begin, "s")
