"""What watching a training costs: steps that are watched beside steps of the same training that are not; and how long all that
watches takes by itself. Extras of an evaluation beside it.

Pairs of neighbouring steps, one of them watched, by lot which: nothing drifts between the two, and what is done every some steps
falls on a watched one as often as it would. Processor time says what it costs however busy the machine is; the wall clock says it
where nothing else runs.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from pipeline_lib.training.data import collate, spread
from pipeline_lib.training.evaluate import evaluate
from pipeline_lib.training.loop import fit
from pipeline_lib.training.parts import Sums, by_document
from tests.benchmarks.figures import Book
from tests.benchmarks.training import LENGTH, MICRO_BATCH, Ours, Packs

STEPS = {"1 M": 120, "3 M": 60, "10 M": 30}
PAIRS = {"1 M": 400, "3 M": 150, "10 M": 60}
QUICK_SHARE = 4  # of the pairs, in a quick run
QUICK = ("1 M", "3 M")
EVENTS = ("on_train_begin", "on_step_begin", "on_step_end", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step")
RESAMPLES = 2000


class _Spent:
    """Seconds inside of functions, by name; the wrapper's own half microsecond counts as theirs."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Time a method of an object from here on."""
        inner: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - begin

        setattr(owner, method, timed)


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Print every figure."""
    data = Packs(512)
    book.setup += f", {torch.get_num_threads()} threads, {MICRO_BATCH} × {LENGTH} tokens a step, bf16"
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as text:
        for size in QUICK if arguments.quick else STEPS:
            _pairs(book, size, data, Path(text), PAIRS[size] // (QUICK_SHARE if arguments.quick else 1))
            _steps(book, size, data, Path(text))
        _batches(book, data)
        _evaluation(book, data, Path(text))
    if arguments.quick:
        book.leave_out("10 M parameters; four times as many pairs")


class _Switch:
    """Which steps of a training are watched: of each two neighbours one, by lot; none in the first two."""

    def __init__(self) -> None:
        self.chance, self.step, self.on, self.first = random.Random(0), 0, False, False

    def next(self) -> None:
        """A step is over."""
        self.step += 1
        if self.step < 2:
            return
        self.on = self.first = self.chance.random() < 0.5 if self.step % 2 == 0 else not self.first


class _Sometimes(TrainerCallback):
    """A callback that is told of a step only where the switch is on."""

    def __init__(self, inner: TrainerCallback, switch: _Switch) -> None:
        for event in EVENTS:
            if event in type(inner).__dict__:
                setattr(self, event, self._when(switch, getattr(inner, event), always=event == "on_train_begin"))

    @staticmethod
    def _when(switch: _Switch, told: Callable[..., Any], *, always: bool) -> Callable[..., Any]:
        return lambda *args, **kwargs: told(*args, **kwargs) if switch.on or always else None


class _Marks(TrainerCallback):
    """The clocks at the end of every step, last of all callbacks."""

    def __init__(self, switch: _Switch, steps: int) -> None:
        self.switch, self.steps = switch, steps
        self.marks: list[tuple[bool, float, float]] = []  # watched, wall clock, processor time

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marks.append((self.switch.on, time.perf_counter(), time.process_time()))
        self.switch.next()
        control.should_training_stop = len(self.marks) > self.steps + 1


def _pairs(book: Book, size: str, data: Packs, folder: Path, pairs: int) -> None:
    """Neighbouring steps of one training, watched and not."""
    ours, switch = Ours(size, data, "bf16", folder / f"pairs-{size}"), _Switch()
    objective, marks = ours.session.objective, _Marks(switch, 2 * pairs)
    watch = objective.watch
    objective.watch = lambda batch, losses: watch(batch, losses) if switch.on else None
    fit(ours.session, [*(_Sometimes(callback, switch) for callback in ours.callbacks), marks])
    clocks = np.array([mark[1:] for mark in marks.marks])
    seconds = np.diff(clocks, axis=0)[1:].reshape(-1, 2, 2)  # pair, first or second step, clock
    watched = np.array([mark[0] for mark in marks.marks][2:]).reshape(-1, 2)
    assert (watched.sum(axis=1) == 1).all()
    places = (watched.argmax(1), watched.argmin(1))
    with_it, without = (np.take_along_axis(seconds, place[:, None, None], 1)[:, 0] for place in places)
    for clock, name in enumerate(("wall clock", "processor time")):
        share, low, high = _share(with_it[:, clock], without[:, clock])
        usual = 1e3 * without[:, clock].mean()
        book.add(
            f"watching, {size}, {name}", share, "share of a step", most=0.01,
            setup=f"{len(seconds)} pairs of steps, 95 % interval {low:.4f} … {high:.4f}; a step {usual:.1f} ms",
        )  # fmt: skip


def _share(these: np.ndarray, those: np.ndarray) -> tuple[float, float, float]:
    """What these take beyond those, as a share of those, with the 95 % bootstrap interval over pairs. A mean: what is done every
    some steps counts."""
    apart, usual = these - those, float(those.mean())
    drawn = np.random.default_rng(0).integers(len(apart), size=(RESAMPLES, len(apart)))
    bounds = np.quantile(apart[drawn].mean(axis=1), [0.025, 0.975]) / usual
    return float(apart.mean()) / usual, float(bounds[0]), float(bounds[1])


def _steps(book: Book, size: str, data: Packs, folder: Path) -> None:
    """The callbacks and the hook of the objective, timed from inside one training: which of them takes how long."""
    ours, spent = Ours(size, data, "bf16", folder / f"monitor-{size}"), _Spent()
    ours.turn(5)
    for callback in ours.callbacks:
        for method in ("on_step_end", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step"):
            if method in type(callback).__dict__:
                spent.watch(callback, method, type(callback).__name__)
    spent.watch(ours.session.objective, "watch", "PartLosses")
    steps = STEPS[size]
    rate = ours.turn(steps)
    whole = steps * MICRO_BATCH * LENGTH / rate
    most = ", ".join(f"{name} {1e6 * seconds / steps:.0f} µs" for name, seconds in spent.seconds.most_common())
    inside = sum(spent.seconds.values()) / whole
    book.add(f"watching, {size}, inside of it", inside, "share of a step", most=0.01, setup=f"a step: {most}")


def _batches(book: Book, data: Packs) -> None:
    """What it costs that a batch says whose its tokens are."""
    items = [data[i] for i in range(MICRO_BATCH)]
    bare = [{name: item[name] for name in ("input_ids", "labels", "position_ids")} for item in items]
    book.add(
        "rows in a batch", 1e6 * (_best(lambda: collate(items)) - _best(lambda: collate(bare))), "µs a batch", setup="best of 50"
    )


def _evaluation(book: Book, data: Packs, folder: Path) -> None:
    """Parts and worst documents, beside the evaluation that they come from."""
    ours = Ours("3 M", data, "bf16", folder / "evaluation")
    batches, origins = spread(data, 64, MICRO_BATCH), data.origins
    begin = time.perf_counter()
    found = evaluate(ours.session.model, ours.session.objective, batches)
    evaluated = time.perf_counter() - begin
    sums = Sums.none(len(origins.cells))

    def extras() -> None:
        sums.add(origins.cell_of[found.rows], found.losses)
        by_document(found.rows, found.losses)

    book.add("parts and documents of an evaluation", _best(extras) / evaluated, "share of it", most=0.01,
             setup=f"{len(found.losses):,} tokens")  # fmt: skip


def _best(work: Callable[[], Any], times: int = 50) -> float:
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        found.append(time.perf_counter() - begin)
    return min(found)
