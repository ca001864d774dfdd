"""What watching a training costs: the time inside all that watches, as a share of its steps; and extras of an evaluation."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline_lib.training.data import collate, spread
from pipeline_lib.training.evaluate import evaluate
from pipeline_lib.training.parts import Sums, by_document
from tests.benchmarks.figures import Book
from tests.benchmarks.training import LENGTH, MICRO_BATCH, Ours, Packs

STEPS = {"1 M": 120, "3 M": 60, "10 M": 30}
QUICK = ("1 M", "3 M")


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
            _steps(book, size, data, Path(text))
        _batches(book, data)
        _evaluation(book, data, Path(text))
    if arguments.quick:
        book.leave_out("10 M parameters")


def _steps(book: Book, size: str, data: Packs, folder: Path) -> None:
    """The callbacks and the hook of the objective, timed from inside one training: no second run, so no drift between two."""
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
    book.add(f"watching, {size}", sum(spent.seconds.values()) / whole, "share of a step", most=0.01, setup=f"a step: {most}")


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
