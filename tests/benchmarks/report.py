"""The report of 100,000 steps in time and size; planted troubles named by the analysis, healthy runs left alone.

Troubles and healthy runs are real: the whole pipeline on small models over text of this machine or made text. Played are the
slow disk of the data stall, by a pause before every batch, and what makes a model lose what it had learned, by a learning rate
that jumps half way; the 100,000 steps are a written log.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline_lib.errors import MillraceError
from pipeline_lib.metrics import training_log
from pipeline_lib.reporting.analysis import Analysis
from pipeline_lib.reporting.gather import gather
from pipeline_lib.run import run_plain
from pipeline_lib.stages import ORDER
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import EVENTS, LAYERS, LOSSES, SAMPLES, STEPS
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.figures import Book
from tests.pipeline_toys import DEEDS, PLACES, THINGS, small_config

STEPS_OF_A_LONG_RUN = 100_000
EVALUATIONS, DOMAINS, LOOKS, LAYERS_LOOKED_AT = 1_000, 12, 200, 30
RENDER = """
import sys, time
from pathlib import Path
begin = time.perf_counter()
from pipeline_lib.metrics import training_log
from pipeline_lib.reporting.report import write_report
from pipeline_lib.stages import ORDER
from pipeline_lib.workspace.runs import RunBook
from pipeline_lib.workspace.workspace import Workspace
workspace = Workspace.open(sys.argv[1])
page = write_report(workspace, RunBook(workspace.runs_folder).load(sys.argv[2]), ORDER, training_log)
print(time.perf_counter() - begin, page.stat().st_size)
"""
Sections = dict[str, Any]
MEMORY = {"width": 128, "depth": 2, "heads": 4, "ffn_width": 384}  # large enough to learn a few pages by heart
STEPS_A_RUN = 240
TRAIN = {"max_steps": STEPS_A_RUN, "save_every": 120, "evaluate_every": 24, "batch_tokens": 1024, "learning_rate": 0.005}
# `recovery` would mend what is planted: here it only watches.
ONLY_WATCH = {"policies": {name: {"at_most": 0} for name in ("spike", "spike_again", "divergence", "divergence_again")}}


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Print time and size of the long report, then what the analysis said of each run."""
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as name:
        folder = Path(name)
        workspace = Workspace.open(folder / "workspace")
        healthy = healthy_runs()
        record: RunRecord | None = None
        alarms = 0
        for label, sections in healthy.items():
            record, analysis = _train(workspace, sections)
            alarms += bool(analysis.troubles)
            told = "; ".join(f"{finding.name}: {finding.evidence}" for finding in analysis.troubles)
            book.add(f"healthy: {label}", len(analysis.troubles), "alarms", most=0, setup=told)
        book.add("healthy runs with a false alarm", alarms, "runs", most=0, setup=f"of {len(healthy)}")
        named = 0
        planted = troubles(folder)
        for trouble, (sections, around) in planted.items():
            with around():
                planted_run, analysis = _train(workspace, sections)
            found = {finding.name: finding for finding in analysis.troubles}
            failed = f"; the run failed: {planted_run.error}" if planted_run.error else ""
            named += trouble in found
            told = (
                f"{found[trouble].evidence} → {found[trouble].setting}"
                if trouble in found
                else f"said: {', '.join(found) or 'nothing'}{failed}"
            )
            book.add(f"planted: {trouble}", trouble in found, "named", least=1, setup=told)
        book.add("planted troubles that are named", named, "troubles", least=len(planted))
        assert record is not None
        _long(book, workspace, record, times=1 if arguments.quick else 3)
    if arguments.quick:
        book.leave_out("the median of three renderings")


def healthy_runs() -> dict[str, Sections]:
    """Ordinary trainings: seeds, schedules, sizes, several passes over made text."""
    machine = _machine(2.0)
    return {
        "text of the machine": {**machine, "train": TRAIN},
        "another seed": {**machine, "train": TRAIN, "seed": 7},
        "a linear schedule": {**machine, "train": {**TRAIN, "schedule": "linear"}},
        "a larger model, the law's learning rate": {
            **machine, "train": {**TRAIN, "learning_rate": 0.0},
            "model": {"width": 96, "depth": 2, "heads": 2, "ffn_width": 256},
        },
        "half the batch": {**machine, "train": {**TRAIN, "batch_tokens": 512, "learning_rate": 0.003}},
    }  # fmt: skip


def troubles(folder: Path) -> dict[str, tuple[Sections, Callable[[], contextlib.AbstractContextManager[None]]]]:
    """Trouble → the configuration that has it, and what else must be so while it runs."""
    machine = _machine(2.0)
    train = {**TRAIN, "recovery": ONLY_WATCH}
    quiet = contextlib.nullcontext
    return {
        "overfitting": (
            {
                **_files(folder / "few.jsonl", _few()),
                "split": {"floor_per_domain": 4},
                "model": MEMORY,
                "train": {**train, "max_epochs": 1000.0, "learning_rate": 0.003},
            },
            quiet,
        ),
        "divergence": ({**machine, "train": {**train, "learning_rate": 0.0049, "max_grad_norm": 1e6}}, _jump),
        "plateau": ({**_files(folder / "same.jsonl", _same()), "train": {**train, "max_epochs": 1000.0}}, quiet),
        "rate_too_high": ({**machine, "train": {**train, "learning_rate": 0.15}}, quiet),
        "rate_too_low": ({**machine, "train": {**train, "learning_rate": 2e-5}}, quiet),
        "data_stall": ({**machine, "train": {**train, "learning_rate": 0.0051}}, _slow_disk),
        "duplicate_heavy": ({**_files(folder / "copies.jsonl", _copies()), "train": train}, quiet),
        "leaking_validation": ({**_files(folder / "halves.jsonl", _halves()), "train": train}, quiet),
    }


def _train(workspace: Workspace, sections: Sections) -> tuple[RunRecord, Analysis]:
    """The whole pipeline; a training that gives up has a record all the same."""
    config = small_config(tune={"trials": 0}, **sections)
    try:
        record = run_plain(workspace, config)
    except MillraceError:
        record = RunBook(workspace.runs_folder).load("latest")
    return record, gather(workspace, record, ORDER, training_log).analysis


def _machine(megabytes: float) -> Sections:
    return {"ingest": {"sources": [{"name": "machine", "kind": "machine", "max_mb": megabytes}]}}


def _files(path: Path, texts: list[str]) -> Sections:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    source = {"name": "made", "kind": "files", "path": str(path), "licence": "MIT"}
    return {"ingest": {"sources": [source]}, "score": {"rules": {"*": "none"}}}  # made text is no prose


def _story(choose: random.Random, sentences: int) -> str:
    made = (f"The {choose.choice(THINGS)} {choose.choice(DEEDS)} the {choose.choice(THINGS)} {choose.choice(PLACES)} "
            f"while {choose.choice(THINGS)} number {choose.randrange(10**6)} {choose.choice(DEEDS)} it."
            for _ in range(sentences))  # fmt: skip
    return " ".join(made)


def _copies() -> list[str]:
    """Every document is there three times, nearly."""
    choose = random.Random(1)
    texts = [_story(choose, 30) for _ in range(300)]
    return [text + ending for text in texts for ending in ("", " The end.", " So it was.")]


def _halves() -> list[str]:
    """Documents in threes that share two thirds of their text: too little to be duplicates, enough to know the rest by heart."""
    choose = random.Random(2)
    texts = []
    for _ in range(150):
        shared = _story(choose, 24)
        texts += [f"{shared} {_story(choose, 12)}" for _ in range(3)]
    return texts


def _few() -> list[str]:
    """A few pages of words drawn evenly: which words there are is soon learned, the rest only by heart."""
    choose = random.Random(4)
    return [" ".join(choose.choice(THINGS + DEEDS) for _ in range(120)) + "." for _ in range(32)]


def _same() -> list[str]:
    """Words drawn evenly from a few: there is nothing more to learn than that."""
    choose = random.Random(3)
    return [" ".join(choose.choice(THINGS) for _ in range(400)) + "." for _ in range(400)]


@contextlib.contextmanager
def _slow_disk() -> Iterator[None]:
    """Every batch comes late."""
    from pipeline_lib.training.data import MicroBatches

    whole = MicroBatches.__iter__

    def late(batches: MicroBatches) -> Iterator[Any]:
        for batch in whole(batches):
            time.sleep(0.05)
            yield batch

    MicroBatches.__iter__ = late  # type: ignore[method-assign]
    try:
        yield
    finally:
        MicroBatches.__iter__ = whole  # type: ignore[method-assign]


@contextlib.contextmanager
def _jump() -> Iterator[None]:
    """From the middle on the learning rate is 200 times what the schedule says."""
    from pipeline_lib.training.schedule import Schedule

    whole = Schedule.factor

    def jumped(schedule: Schedule, step: int) -> float:
        return whole(schedule, step) * (200.0 if step >= STEPS_A_RUN // 2 else 1.0)

    Schedule.factor = jumped  # type: ignore[method-assign]
    try:
        yield
    finally:
        Schedule.factor = whole  # type: ignore[method-assign]


def _long(book: Book, workspace: Workspace, record: RunRecord, *, times: int) -> None:
    """The run's log becomes one of 100,000 steps; the report is rendered in processes of their own."""
    ref = record.ref("train")
    assert ref is not None
    artifact = workspace.store.artifact(ref.key)
    places = {entry.path: artifact.place(entry) for entry in artifact.manifest.files if entry.table == "observed"}
    for name, table in long_log().items():
        place = places[f"observed/{name}.parquet"]
        place.unlink()  # it may be linked elsewhere
        write_table(table, place)
    seconds, size = [], 0.0
    for _ in range(times):
        done = subprocess.run(
            [sys.executable, "-c", RENDER, str(workspace.root), record.run_id], capture_output=True, text=True, check=True
        )
        took, size = map(float, done.stdout.split()[-2:])
        seconds.append(took)
    setup = f"{STEPS_OF_A_LONG_RUN:,} steps, {EVALUATIONS:,} evaluations, a fresh process with its imports; median of {times}"
    book.add("report of 100,000 steps", sorted(seconds)[times // 2], "s", most=5, setup=setup)
    book.add("its size", size / 1e6, "MB", most=3)


def long_log() -> dict[str, pa.Table]:
    """A log as a long training leaves it: losses that fall, spikes and recoveries, evaluations by domain."""
    draw, steps = np.random.default_rng(0), np.arange(1, STEPS_OF_A_LONG_RUN + 1)
    loss = 2.5 + 6.0 * steps**-0.3 + 0.05 * draw.standard_normal(len(steps))
    columns: dict[str, Any] = {
        "step": steps, "loss": loss, "lr": 0.001 * np.minimum(steps / 1000, 1), "grad_norm": 0.3 + 0.1 * draw.random(len(steps)),
        "seconds": np.full(len(steps), 0.1), "data_wait": np.full(len(steps), 0.01),
        "tokens_per_second": 1e4 + 500 * draw.standard_normal(len(steps)), "attempt": np.ones(len(steps), np.int32),
        "superseded": np.zeros(len(steps), bool),
    }  # fmt: skip
    table = pa.table({
        field.name: pa.array(columns[field.name]).cast(field.type) if field.name in columns else pa.nulls(len(steps), field.type)
        for field in STEPS
    })  # fmt: skip
    looked = [int(step) for step in np.linspace(100, STEPS_OF_A_LONG_RUN, EVALUATIONS)]
    now = "2026-01-01T00:00:00+00:00"
    events = [
        {"time": now, "step": step, "kind": "evaluated",
         "detail": json.dumps({"dev_loss": 2.6 + 6 * step**-0.3, "perplexity": math.e**3})}
        for step in looked
    ]  # fmt: skip
    spikes = [int(step) for step in draw.integers(1000, STEPS_OF_A_LONG_RUN, 400)]
    events += [
        {"time": now, "step": step, "kind": "loss_spike", "detail": json.dumps({"loss": 9.0, "mean": 3.0})} for step in spikes
    ]
    cost = {"policy": "spike", "action": "skip_step", "signal": "loss_spike", "evidence": {"loss": 9.0}, "cost": {"tokens": 1024}}
    events += [{"time": now, "step": step, "kind": "recovery", "detail": json.dumps(cost)} for step in spikes]
    whose = {"attempt": 1, "superseded": False}
    losses = [
        {"side": "dev", "first_step": step, "step": step, "source": f"source {number}", "domain": f"domain {number}",
         "tokens": 1000, "loss": 2.6 + number / 20 + 6 * step**-0.3, **whose}
        for step in looked
        for number in range(DOMAINS)
    ]  # fmt: skip
    layers = [
        {"step": int(step), "group": group, "grad_norm": 0.3, "update_ratio": 1e-3, **whose}
        for step in np.linspace(1, STEPS_OF_A_LONG_RUN, LOOKS)
        for group in ("all", *(f"layer {number}" for number in range(LAYERS_LOOKED_AT)))
    ]
    samples = [
        {"step": step, "prompt": prompt, "text": "and so on " * 8, "tokens": 24, "repetition": 0.5, "distinct_2": 0.5, **whose}
        for step in looked
        for prompt in ("The", "In the beginning", "There are three reasons why")
    ]
    return {
        "steps": table, "events": pa.Table.from_pylist(sorted(events, key=lambda row: row["step"]), schema=EVENTS),
        "losses": pa.Table.from_pylist(losses, schema=LOSSES), "layers": pa.Table.from_pylist(layers, schema=LAYERS),
        "samples": pa.Table.from_pylist(samples, schema=SAMPLES),
    }  # fmt: skip
