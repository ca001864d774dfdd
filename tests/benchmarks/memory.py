"""Memory of past runs: times with 10,000 runs, how good the guessed speed is, and what ten earlier runs are worth."""

from __future__ import annotations

import argparse
import itertools
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.memory.recall import Guess
from pipeline_lib.memory.record import Remembered
from pipeline_lib.memory.store import Config, MemoryStore
from pipeline_lib.run import run_plain
from pipeline_lib.tuning.space import Dimension
from pipeline_lib.tuning.warm import Past, past_points
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.figures import Book
from tests.pipeline_toys import small

RUNS = 10_000
WARM = 1000
GOALS = ("overnight fine-tune on support mails of {}", "a first model of poems from {}", "licences and manuals, {}, quickly")
FRESH = """
import sys, time
from pipeline_lib.memory.ask import features_in
from pipeline_lib.memory.store import Config, MemoryStore
import pipeline_lib.memory.text
begin = time.perf_counter()
MemoryStore(Config(sys.argv[1], warm_days=1e6)).recall(features_in(sys.argv[2]), goal=sys.argv[2])
print(time.perf_counter() - begin)
"""
MOVE = """
import sys
from pipeline_lib.memory.store import Config, MemoryStore
store = MemoryStore(Config(sys.argv[1], warm_memory_size=1, warm_days=1e6))
while store.tidy(): pass
"""
# Shapes of really recorded runs: width, depth, sequence length. Half of them, drawn by their number, tell of the other half.
SHAPES = tuple((width, depth, length) for width in (32, 64, 96, 128) for depth in (1, 2, 3) for length in (64, 128))
QUICK_SHAPES = SHAPES[::2]
LEAST_RECORDED = 6
BATCH_TOKENS = 1024
EARLIER = 10  # runs that are remembered; each has searched
SEARCH = {"trials": 6, "steps": 40, "pruner": "none", "repeats": 1, "warm_start": 0, "space": {"learning_rate": [0.25, 8.0]}}
TARGET = (80, 2, 64)  # the next run: a shape that none of them had
SEEDS, QUICK_SEEDS = 5, 3


def options(parser: argparse.ArgumentParser) -> None:
    """Nothing to choose."""


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Times first, then the guesses from real runs, then the worth of ten of them."""
    folder = Path(tempfile.mkdtemp(prefix="millrace-memory-"))
    try:
        _times(book, folder / "times")
        workspace = Workspace.open(folder / "real")
        records = _recorded(workspace, QUICK_SHAPES if arguments.quick else SHAPES)
        _guesses(book, records)
        _worth(book, workspace, records, seeds=QUICK_SEEDS if arguments.quick else SEEDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.quick:
        book.leave_out(f"{len(SHAPES)} recorded runs and {SEEDS} seeds (quick: {len(QUICK_SHAPES)} and {QUICK_SEEDS})")


def _made_up() -> Iterator[Remembered]:
    for index in range(RUNS):
        year, month, parameters = 2016 + index // 1200, index % 1200 // 100 + 1, 1e6 * (1 + index % 97)
        yield Remembered(
            run_id=f"{year}{month:02d}01-{index:06d}-00000000",
            pipeline="nightly",
            goal=GOALS[index % 3].format(index % 500),
            started=f"{year}-{month:02d}-01T00:00:00+00:00",
            ended=f"{year}-{month:02d}-02T{index % 24:02d}:00:00+00:00",
            outcome="completed",
            config={"model": {"width": 64 * (1 + index % 9)}, "train": {"batch_tokens": 8192}},
            features={
                "family": ("llama", "mamba")[index % 2], "task": "fine-tune", "cpu": "EPYC", "gpu": "", "cores": 2.0,
                "parameters": parameters, "tokens_per_second": 2e10 / parameters, "width": 64.0 * (1 + index % 9), "depth": 4.0,
                "tokens": 5e6, "dev_loss": 4.0, "memory_limit_gib": 8.0, "window_hours": 10.0, "validate_seconds": 30.0,
            },
            scores={"earth": 0.4, "knowledge": 0.3, "bits_per_byte": 1.5},
        )  # fmt: skip


def _times(book: Book, folder: Path) -> None:
    """10,000 made-up runs, 1,000 of them warm."""
    home, folder = folder, folder / "memory"
    store = MemoryStore(Config(folder, warm_memory_size=WARM, warm_days=1e6))
    everything = list(_made_up())
    store.add_all(everything[:-WARM])
    writes = [_seconds(lambda memory=memory: store.add(memory)) for memory in everything[-WARM:]]
    book.add("write of a run, median", 1000 * statistics.median(writes), "ms", most=10, setup=f"{WARM} writes, each synced")
    book.add("write of a run, 99th of 100", 1000 * sorted(writes)[int(0.99 * WARM)], "ms")
    goal = "overnight fine-tune on mails, 8 GB"
    asked = {"task": "fine-tune", "memory_limit_gib": 8.0, "window_hours": 10.0, "family": "llama", "parameters": 3e6}
    store.recall(asked, goal=goal)
    recalls = [_seconds(lambda: store.recall(asked, goal=goal)) for _ in range(15)]
    setup = f"{len(store):,} runs, {WARM} of them warm, features and text"
    book.add("recall, median of 15", 1000 * statistics.median(recalls), "ms", most=50, setup=setup)

    def after_a_run() -> None:
        store.add(replace(everything[-1], run_id="20990101-000000-00000000"))
        store.recall(asked, goal=goal)

    book.add("recall right after another run has ended", 1000 * _seconds(after_a_run), "ms", setup="write included")
    fresh = [float(_python(FRESH, str(folder), goal)) for _ in range(3)]
    book.add("recall in a fresh process, without imports", 1000 * statistics.median(fresh), "ms", setup="reads all files")
    environment = {**os.environ, "MILLRACE_HOME": str(home)}
    command = [sys.executable, "-m", "flows.cli.main", "recall", goal]
    whole = [_seconds(lambda: subprocess.run(command, env=environment, check=True, capture_output=True)) for _ in range(3)]
    book.add(
        "millrace recall, the whole command",
        1000 * statistics.median(whole),
        "ms",
        setup="a process of its own, imports included",
    )
    moving = subprocess.Popen([sys.executable, "-c", MOVE, str(folder)])
    meanwhile, number = [], 0
    while moving.poll() is None:
        memory = replace(everything[0], run_id=f"20980101-{number:06d}-00000000")
        meanwhile.append(_seconds(lambda memory=memory: store.add(memory)))
        number += 1
        time.sleep(0.01)
    assert moving.returncode == 0
    left = sum(1 for _ in store.warm.glob("*.json"))
    setup = f"{number} writes while {WARM + number + 1 - left} runs were moved"
    book.add("write while another process moves to cold, slowest", 1000 * max(meanwhile), "ms", setup=setup)
    lost = {memory.run_id for memory in everything} - set(store.table()["run_id"].to_pylist())
    book.add("runs lost by moving", len(lost), "runs", most=0)


def _recorded(workspace: Workspace, shapes: tuple[tuple[int, int, int], ...]) -> list[RunRecord]:
    """Runs of the whole pipeline, one a shape, the first ones with a search; data and suites are made once. Those whose speed was
    not kept are left out."""
    records = []
    for number, (width, depth, length) in enumerate(shapes):
        record = run_plain(workspace, _config(width, depth, length, tune=SEARCH if number < EARLIER else {"trials": 0}))
        speed = record.features.get("tokens_per_second")
        told = "left out: something else slowed it down" if speed is None else f"{speed:,.0f} tokens/s"
        print(f"  recorded {number + 1} of {len(shapes)}: {told}", flush=True)
        records += [] if speed is None else [record]
    if len(records) < LEAST_RECORDED:
        raise SystemExit("too little was recorded undisturbed: this machine is too busy to measure anything")
    return records


def _config(width: int, depth: int, length: int, *, tune: dict[str, Any], seed: int = 0, **train: Any) -> PipelineConfig:
    """A small run at the law's learning rate, times what its search finds."""
    return PipelineConfig.model_validate(
        small(
            goal=f"a model of width {width}",
            pack={"sequence_length": length, "range_tokens": 32768},
            model={"width": width, "depth": depth, "heads": 2, "ffn_width": 3 * width},
            seed=seed,
            tune=tune,
            suites={"names": ["zen"]},
            train={"max_steps": 60, "save_every": 1000, "learning_rate": 0.0, "batch_tokens": BATCH_TOKENS, **train},
            validation={"language_tokens": 1000, "bootstrap": 100},
            execution={"workers": 1},
        )
    )


def _features(record: RunRecord) -> dict[str, float | str]:
    """What is known before a run: no rates, no losses, no seconds."""
    known = ("family", "width", "depth", "parameters", "vocabulary_size", "sequence_length", "optimizer", "cpu", "cores", "gpu")
    return {name: record.features[name] for name in known if name in record.features}


def _store_of(folder: Path, records: list[RunRecord]) -> MemoryStore:
    from pipeline_lib.memory.record import remembered

    store = MemoryStore(Config(folder, warm_days=1e6))
    for record in records:
        store.add(remembered(record))
    return store


def _guesses(book: Book, records: list[RunRecord]) -> None:
    """The guessed speed of each run of one half from the other half, both ways."""
    errors = []
    with tempfile.TemporaryDirectory(prefix="millrace-halves-") as folder:
        for half in (0, 1):
            told = [record for number, record in enumerate(records) if (number * 7919 >> 2) % 2 == half]
            asked = [record for record in records if record not in told]
            store = _store_of(Path(folder) / str(half), told)
            for record in asked:
                guess = store.guess(_features(record))
                real = float(record.features["tokens_per_second"])
                errors.append(abs(guess.value - real) / real if guess else 1.0)
    setup = f"{len(errors)} held-out runs, two halves; worst {max(errors):.0%}"
    book.add("error of the guessed speed on held-out runs, median", 100 * statistics.median(errors), "%", most=15, setup=setup)


def _worth(book: Book, workspace: Workspace, records: list[RunRecord], *, seeds: int) -> None:
    """The next run with and without the memory of ten: its time estimate, and the tokens to the same loss at the law's rate and
    at the point that a search would begin with."""
    points: list[str] = []
    tokens: dict[str, list[float]] = {"law": [], "memory": []}
    width, depth, length = TARGET
    warm: list[Past] = []
    for seed in range(seeds):
        law = run_plain(workspace, _config(width, depth, length, tune={"trials": 0}, seed=seed, evaluate_every=2), until="train")
        if not warm:
            asked = _features(law)
            _time_estimates(book, workspace, law, _store_of(workspace.root / "ten", records[:EARLIER]).guess(asked))
            warm = past_points(
                workspace, {"learning_rate": Dimension("learning_rate", *SEARCH["space"]["learning_rate"])}, asked, 1
            )
            factor = float(warm[0].point["learning_rate"]) if warm else 1.0
        rate = float(_details(workspace, law, "plan")["learning_rate"]) * factor
        config = _config(width, depth, length, tune={"trials": 0}, seed=seed, evaluate_every=2, learning_rate=rate)
        wiser = law if factor == 1.0 else run_plain(workspace, config, until="train")
        ends = [_details(workspace, one, "train")["dev_curve"][-1][1] for one in (law, wiser)]
        for name, one in (("law", law), ("memory", wiser)):
            tokens[name].append(_tokens_to(workspace, one, max(ends)))
        points.append(f"{ends[0]:.3f}/{ends[1]:.3f}")
        print(
            f"  seed {seed}: {tokens['law'][-1]:,.0f} tokens at the law's rate, {tokens['memory'][-1]:,.0f} from memory",
            flush=True,
        )
    setup = f"learning rate × {factor:g}; {warm[0].why if warm else 'the law, nothing better is remembered'}"
    book.add(
        "tokens to the same loss, without memory, median", statistics.median(tokens["law"]), "tokens", setup="the law's rate"
    )
    book.add(
        "tokens to the same loss, first point from memory, median", statistics.median(tokens["memory"]), "tokens", setup=setup
    )
    saved = [100 * (1 - with_it / without) for without, with_it in zip(tokens["law"], tokens["memory"], strict=True)]
    setup = f"{seeds} seeds, {min(saved):.0f} to {max(saved):.0f} %; ends without/with: {', '.join(points)}"
    book.add("tokens that ten remembered runs save the first point, median", statistics.median(saved), "%", least=0, setup=setup)


def _time_estimates(book: Book, workspace: Workspace, law: RunRecord, guess: Guess | None) -> None:
    """Before anything of the model is measured. Without memory there is a rule of thumb: 6·N operations a token, at the rate of a
    large matrix product."""
    real = _speed(workspace, law)
    square = np.ones((512, 512), np.float32)
    flops = 2 * 512**3 / min(_seconds(lambda: square @ square) for _ in range(9))
    thumb = flops / (6 * float(law.features["parameters"]))
    # As shares of the true time: a rate that is guessed twice too high makes the time half of what it is.
    book.add(
        "time estimate before calibration, without memory", 100 * abs(real / thumb - 1), "% off", setup="6·N at a product's rate"
    )
    remembered = 100 * abs(real / guess.value - 1) if guess else math.inf
    book.add("time estimate before calibration, ten runs remembered", remembered, "% off")


def _details(workspace: Workspace, record: RunRecord, stage: str) -> Any:
    ref = record.ref(stage)
    assert ref is not None
    return workspace.store.artifact(ref.key).details


def _speed(workspace: Workspace, record: RunRecord) -> float:
    """Tokens a second of a training: the median of its steps, which a disturbance changes least."""
    from pipeline_lib.metrics import training_log

    return float(np.median(training_log(workspace, record)["tokens_per_second"].to_numpy()))


def _tokens_to(workspace: Workspace, record: RunRecord, loss: float) -> float:
    """Training tokens until the dev loss is that low, between evaluations by a straight line."""
    for (before, high), (step, low) in itertools.pairwise(_details(workspace, record, "train")["dev_curve"]):
        if low <= loss:
            return float(before + (step - before) * (high - loss) / (high - low)) * BATCH_TOKENS
    return math.inf


def _seconds(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _python(script: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return done.stdout.strip().splitlines()[-1]
