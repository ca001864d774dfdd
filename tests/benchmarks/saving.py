"""Checkpoints: how long saving holds training up, what it costs in all, and whether every flipped bit is found before use."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.errors import DamagedError
from pipeline_lib.training.checkpoints import OBSERVED, PARTS, RECORD, checkpoint_at, committed, damage
from pipeline_lib.training.data import RandomSequences
from pipeline_lib.training.loop import Session, fit
from pipeline_lib.training.model import build_model, count_parameters
from pipeline_lib.training.plan import TrainingPlan
from pipeline_lib.training.saving import CheckpointWriter, read_part, weights_of
from pipeline_lib.training.state import training_tensors
from tests.benchmarks.figures import Book

PAIRS = {"3 M": 25, "50 M": 5}
RESAMPLES = 2000
FLIPS, QUICK_FLIPS = 1000, 1000
SIZES = {
    "3 M": ModelConfig(width=192, depth=4, heads=4, ffn_width=512),
    "50 M": ModelConfig(width=640, depth=8, heads=10, ffn_width=1792),
}
TINY = ModelConfig(width=32, depth=1, heads=2, ffn_width=64)
VOCABULARY, LENGTH = 8192, 64


def options(parser: argparse.ArgumentParser) -> None:
    """How many bits are flipped."""
    parser.add_argument("--flips", type=int, default=0, help=f"number of flipped bits (default {FLIPS})")


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Blocking, cost and detection."""
    folder = Path(tempfile.mkdtemp(prefix="millrace-saving-"))
    try:
        for name in ["3 M"] if arguments.quick else SIZES:
            _speed(book, name, folder / name.replace(" ", ""))
        _flips(book, folder / "flips", arguments.flips or (QUICK_FLIPS if arguments.quick else FLIPS))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.quick:
        book.leave_out("a model of 50 M parameters")


def trained(model: ModelConfig, folder: Path, *, vocabulary: int = VOCABULARY) -> Session:
    """A session after one step, so that the optimizer has its moments."""
    plan = TrainingPlan(
        steps=2, warmup_steps=0, decay_steps=0, schedule="wsd", learning_rate=1e-3, weight_decay=0.1, batch_sequences=1,
        micro_batch=1, precision="fp32", evaluate_every=0, save_every=0,
    )  # fmt: skip
    built = build_model(model, vocabulary_size=vocabulary, sequence_length=LENGTH, seed=0)
    session = Session(built, plan, TrainConfig(), RandomSequences(vocabulary, LENGTH), 0, folder)
    session.follow(session.schedule.stopped(1))
    fit(session, [])
    return session


def _speed(book: Book, name: str, folder: Path) -> None:
    """Interleaved pairs: a copy in memory against what training waits for; a plain write against a whole checkpoint."""
    session = trained(SIZES[name], folder)
    state = {**weights_of(session.model), **training_tensors(session)}
    size = sum(tensor.nbytes for tensor in state.values())
    waited, copied, whole, plain, unsynced = [], [], [], [], []
    with CheckpointWriter(folder / "checkpoints", identity={"data": "", "tokenizer": ""}) as writer:
        first = _seconds(lambda: writer.save(session, notes={}))
        writer.wait()
        for _ in range(PAIRS[name]):
            copied.append(_seconds(lambda: [tensor.clone() for tensor in state.values()]))
            begin = time.perf_counter()
            waited.append(_seconds(lambda: writer.save(session, notes={})))
            writer.wait()
            whole.append(time.perf_counter() - begin)
            unsynced.append(_seconds(lambda: _plain_write(state, folder / "plain.safetensors", sync=False)))
            plain.append(_seconds(lambda: _plain_write(state, folder / "plain.safetensors", sync=True)))
    setup = (
        f"{count_parameters(session.model) / 1e6:.1f} M parameters, {size / 1e6:.0f} MB of state, median of {PAIRS[name]} pairs"
    )
    book.add(f"{name}: a copy of the state in memory", 1e3 * statistics.median(copied), "ms", setup=setup)
    book.add(f"{name}: training waits for a checkpoint", 1e3 * statistics.median(waited), "ms", setup=setup)
    book.add(f"{name}: waiting, share of the copy", **_ratio(waited, copied), most=1.2)
    book.add(f"{name}: waiting for the first one, which takes the memory", 1e3 * first, "ms", setup=setup)
    book.add(f"{name}: a plain write, synced", 1e3 * statistics.median(plain), "ms", setup=setup)
    book.add(f"{name}: a whole checkpoint, digested and committed", 1e3 * statistics.median(whole), "ms", setup=setup)
    book.add(f"{name}: cost, share of the plain write", **_ratio(whole, plain), most=2.0)
    book.add(f"{name}: cost, share of a plain write that is not synced", **_ratio(whole, unsynced))


def _plain_write(state: dict[str, torch.Tensor], path: Path, *, sync: bool) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    if sync:
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _ratio(these: list[float], those: list[float]) -> dict[str, Any]:
    """Median of the pairs' ratios, with its 95 % bootstrap interval."""
    ratios = np.array(these) / np.array(those)
    drawn = np.random.default_rng(0).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
    note = f"median of {len(ratios)} pairs, 95 % interval {low:.3f} … {high:.3f}"
    return {"value": float(np.median(ratios)), "unit": "×", "setup": note}


def _flips(book: Book, folder: Path, wanted: int) -> None:
    """One bit at a time, anywhere in a checkpoint's files; found by whoever looks for one, and by whoever reads it anyway."""
    session = trained(TINY, folder, vocabulary=128)
    with CheckpointWriter(folder / "checkpoints", identity={"data": "", "tokenizer": ""}) as writer:
        writer.save(session, notes={}, observed={"controller": {"pace": [0.25, 1 / 3]}})
    (place,) = committed(folder / "checkpoints")
    checkpoint = checkpoint_at(place)
    chance, found, used = random.Random(0), 0, 0
    names = (*PARTS, RECORD, OBSERVED)
    for number in range(wanted):
        name = names[number % len(names)]
        path = place / name
        data = bytearray(path.read_bytes())
        bit = chance.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        intact = path.read_bytes()
        path.write_bytes(data)
        found += not checkpoint.observed if name == OBSERVED else bool(damage(place))
        if name.endswith(".safetensors"):
            try:
                read_part(checkpoint, name)
                used += 1
            except DamagedError:
                pass
        path.write_bytes(intact)
    assert not damage(place), "the checkpoint itself must be intact"
    each = f"one bit at a time, in turn in {', '.join(names)}"
    book.add("flipped bits", wanted, "bits", setup=each)
    book.add("flipped bits found before use", found, "bits", least=wanted)
    book.add("damaged files that could be read all the same", used, "files", most=0)
