"""One trial up to one of its rungs: a short training. Its failure is a result, never an exception.

A reading is written to the trial's folder before anything else hears of it: who is killed after that does not train again.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.model import ModelConfig, Precision, TrainConfig
from pipeline_lib.extensions import active_extensions, load_extensions
from pipeline_lib.tuning.budget import DEV_SEQUENCES, REPORTS
from pipeline_lib.tuning.rungs import Rung
from pipeline_lib.workspace.files import read_json, write_json

if TYPE_CHECKING:
    from pipeline_lib.packing.reader import PackedDataset
    from pipeline_lib.training.loop import Session

PART_SEQUENCES = 4  # dev sequences in a part of the loss: what trials are compared by, pair by pair
POLL_SECONDS = 0.2
# Imported once, by the process that those of trials are forked from: importing torch anew would cost each some seconds.
NEEDED = (
    "pipeline_lib.training.loop",
    "pipeline_lib.training.saving",
    "pipeline_lib.packing.reader",
    "pipeline_lib.tuning.course",
)


@dataclass(frozen=True)
class Job:
    """Everything that a trial needs to get to a rung; small and of plain values, so that it can travel to another process."""

    number: int
    rung: int  # which one is to be read
    rungs: tuple[Rung, ...]
    folder: Path  # checkpoints and readings of the trial
    home: Path  # the workspace
    cache: str  # key of the artifact with the packed sequences
    sequence_length: int
    vocabulary_size: int
    model: ModelConfig
    train: TrainConfig
    learning_rate: float
    weight_decay: float
    batch_sequences: int
    micro_batch: int
    warmup_share: float
    precision: Precision
    seed: int
    threads: int
    memory_bytes: int = 0  # estimated, at the peak
    alone: bool = True  # in this process; else in one of its own
    judge: str = "dev"  # the side that the loss is read on

    @property
    def reading(self) -> Path:
        """Where the reading is written."""
        return self.folder / f"reading-{self.rung}.json"


@dataclass(frozen=True)
class Reading:
    """What came out of a rung."""

    rung: int
    steps: int  # that the reading has seen
    tokens: int
    spent_tokens: int  # trained for it, the decays included
    seconds: float
    dev_loss: float | None = None  # nats a token; None: the trial failed
    parts: list[float] = field(default_factory=list)  # dev loss by batch
    curve: list[tuple[int, float]] = field(default_factory=list)  # (step, dev loss)
    tokens_per_second: float = 0.0
    error: str = ""
    stopped: bool = False  # a clean stop was asked for: this is no result


def read_rung(job: Job, should_stop: Callable[[], bool] = lambda: False) -> Reading:
    """Train a trial to its rung, or give what an earlier attempt wrote; in a process of its own unless it is alone."""
    if found := _written(job):
        return found
    begin = time.monotonic()
    if job.alone:
        return _train(job, should_stop)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", *NEEDED])
    child = context.Process(target=_train_apart, args=(job, active_extensions()), name=f"trial-{job.number}", daemon=True)
    child.start()
    try:
        while child.is_alive() and not should_stop():
            child.join(POLL_SECONDS)
    finally:
        if child.is_alive():
            child.terminate()
        child.join()
    if found := _written(job):
        return found
    nothing = Reading(job.rung, 0, 0, 0, _since(begin))
    if should_stop():
        return Reading(**{**asdict(nothing), "stopped": True})
    return Reading(**{**asdict(nothing), "error": f"its process ended with code {child.exitcode}"})


def _train_apart(job: Job, modules: Sequence[str]) -> None:
    """In a process of its own, which ends at once when the search's does: whoever goes on with the search trains this again."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    load_extensions(modules)
    _train(job)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _written(job: Job) -> Reading | None:
    try:
        return Reading(**read_json(job.reading))
    except (OSError, ValueError, TypeError):
        return None


def _train(job: Job, should_stop: Callable[[], bool] = lambda: False) -> Reading:
    begin = time.monotonic()
    try:
        reading = _learn(job, should_stop)
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:  # torch's out-of-memory is a RuntimeError
        words = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        reading = Reading(job.rung, 0, 0, 0, _since(begin), error=words)
    if not reading.stopped:
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(job.reading, asdict(reading))
    return reading


def _learn(job: Job, should_stop: Callable[[], bool]) -> Reading:
    begin = time.monotonic()  # the first trial of a process imports torch: that is its start-up, as a training's
    import torch

    from pipeline_lib.training.data import spread
    from pipeline_lib.training.evaluate import evaluate
    from pipeline_lib.training.loop import fit
    from pipeline_lib.training.saving import CheckpointWriter, restore
    from pipeline_lib.tuning.course import Course

    torch.set_num_threads(job.threads)
    rung = job.rungs[job.rung]
    data, held_out = _side(job, "train"), _side(job, job.judge)
    session = _session(job, data)
    if earlier := _earlier(job):
        restore(earlier, session, schedule=session.plan.first_schedule())
    started = session.step
    dev = spread(held_out, DEV_SEQUENCES, min(job.micro_batch, PART_SEQUENCES))
    last = job.rung == len(job.rungs) - 1
    every = max(1, math.ceil(rung.steps / REPORTS)) if len(job.rungs) == 1 else 0
    root = job.folder / "checkpoints"
    with CheckpointWriter(root, identity={"data": job.cache}) as writer:
        course = Course(session, dev, every=every, hold=0 if last else rung.hold, save=writer.save, should_stop=should_stop)
        at_work = time.monotonic()
        fit(session, [course])
        spent = time.monotonic() - at_work - session.paused_seconds
    tokens = job.batch_sequences * job.sequence_length
    parts = [evaluate(session.model, session.objective, [batch]) for batch in dev] if not course.stopped else []
    predicted = sum(len(part.losses) for part in parts)
    dev_loss = sum(part.losses.sum() for part in parts) / predicted if predicted else math.nan
    done = session.step - started
    reading = Reading(
        job.rung, session.step, session.step * tokens, done * tokens, _since(begin),
        curve=[*course.curve, *([] if course.stopped else [(session.step, float(dev_loss))])],
        tokens_per_second=round(done * tokens / max(spent, 1e-9), 1), stopped=course.stopped,
    )  # fmt: skip
    if course.stopped:
        return reading
    if course.broken or not math.isfinite(dev_loss):
        return Reading(**{**asdict(reading), "curve": course.curve, "error": "the loss is not finite"})
    return Reading(**{**asdict(reading), "dev_loss": float(dev_loss), "parts": [part.loss for part in parts]})


def _session(job: Job, data: PackedDataset) -> Session:
    from pipeline_lib.training.loop import Session
    from pipeline_lib.training.model import adapt, build_model
    from pipeline_lib.training.plan import TrainingPlan
    from pipeline_lib.workspace.workspace import Workspace

    built = build_model(
        job.model, vocabulary_size=job.vocabulary_size, sequence_length=job.sequence_length, seed=job.seed,
        store_lookup=Workspace.open(job.home).store.artifact,
    )  # fmt: skip
    net, _ = adapt(built, job.train.lora)
    rung, whole = job.rungs[job.rung], job.rungs[-1]
    plan = TrainingPlan(
        steps=rung.steps, warmup_steps=min(max(1, int(job.warmup_share * whole.steps)), max(job.rungs[0].hold, 1)),
        decay_steps=rung.decay, schedule=job.train.schedule, learning_rate=job.learning_rate, weight_decay=job.weight_decay,
        batch_sequences=job.batch_sequences, micro_batch=job.micro_batch, precision=job.precision, evaluate_every=0, save_every=0,
    )  # fmt: skip
    return Session(net, plan, job.train, data, job.seed, job.folder / "trainer")


def _side(job: Job, side: str) -> PackedDataset:
    from pipeline_lib.packing.reader import PackedDataset
    from pipeline_lib.workspace.workspace import Workspace

    workspace = Workspace.open(job.home)
    return PackedDataset.of(workspace, workspace.store.artifact(job.cache), side)


def _earlier(job: Job) -> Any:
    """The furthest intact checkpoint of the trial that lies before this rung's decay, or None."""
    from pipeline_lib.training.checkpoints import checkpoint_at, committed, damage

    for folder in reversed(committed(job.folder / "checkpoints")):
        if int(folder.name.partition("-")[2]) <= job.rungs[job.rung].hold and not damage(folder):
            return checkpoint_at(folder)
    return None


def _since(begin: float) -> float:
    return round(time.monotonic() - begin, 3)
