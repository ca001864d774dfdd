"""A figure: value, unit, goal, whether it holds, and the setup it was measured in. And how to measure one honestly."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

NOISY_SPREAD = 0.10  # (max − min) / median


@dataclass(frozen=True)
class Figure:
    """One line of a benchmark's output. `holds` is None where a figure has no goal (a calibration, a setup fact)."""

    figure: str
    value: float
    unit: str
    goal: str = ""
    holds: bool | None = None
    setup: str = ""


@dataclass
class Book:
    """Collects and prints figures as they come."""

    setup: str = ""
    figures: list[Figure] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(
        self, name: str, value: float, unit: str, *, least: float | None = None, most: float | None = None, setup: str = ""
    ) -> None:
        """Print a figure; with `least` or `most` it has a goal."""
        goal, holds, value = "", None, float(value)  # numpy's numbers are not JSON's
        if least is not None:
            goal, holds = f"≥ {least:g}", value >= least
        if most is not None:
            between = least is not None
            goal, holds = f"{least:g}…{most:g}" if between else f"≤ {most:g}", value <= most and holds is not False
        figure = Figure(name, round(value, 6), unit, goal, holds, "; ".join(text for text in (self.setup, setup) if text))
        self.figures.append(figure)
        mark = {True: "holds", False: "MISSED", None: ""}[holds]
        print(f"{name:<58} {value:>14,.4g} {unit:<14} {goal:<10} {mark}  {setup}".rstrip(), flush=True)

    def leave_out(self, what: str) -> None:
        """What only the full run can decide."""
        self.left_out.append(what)

    def finish(self, path: Path | None) -> int:
        """Print the last line, write the JSON; the exit code: 1 when a goal was missed."""
        if self.left_out:
            print("left to the full run: " + "; ".join(self.left_out))
        if path:
            path.write_text(json.dumps([asdict(figure) for figure in self.figures], indent=1, ensure_ascii=False) + "\n", "utf-8")
        missed = [figure.figure for figure in self.figures if figure.holds is False]
        print(f"{len(self.figures)} figures, {len(missed)} missed" + (": " + ", ".join(missed) if missed else ""))
        return 1 if missed else 0


def timed(work: Callable[[], object], *, times: int = 3) -> tuple[float, str]:
    """Median seconds of several runs, and `noisy` with the spread when they differ by more than a tenth."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    middle = statistics.median(seconds)
    spread = (max(seconds) - min(seconds)) / middle
    return middle, f"noisy: spread {spread:.0%} over {times}" if spread > NOISY_SPREAD else f"median of {times}"


def calibrate(book: Book) -> None:
    """What this machine does right now: copying, LZ4, a matrix product. Absolute figures are read beside these."""
    import lz4.frame
    import numpy as np

    rng = np.random.default_rng(0)
    data = rng.integers(0, 4096, 16 << 20, dtype=np.uint16)
    target, raw, square = np.empty_like(data), data[: 2 << 20].tobytes(), rng.random((1024, 1024), dtype=np.float32)
    works: list[tuple[str, Callable[[], object], float, str]] = [
        ("memory copy", lambda: np.copyto(target, data), data.nbytes / 1e9, "GB/s"),
        ("LZ4 of random 12-bit tokens", lambda: lz4.frame.compress(raw, compression_level=0), len(raw) / 1e6, "MB/s"),
        ("float32 matrix product", lambda: square @ square, 2 * len(square) ** 3 / 1e9, "GFLOP/s"),
    ]
    for name, work, amount, unit in works:
        work()  # pages, tables and threads are there before the clock starts
        seconds, note = timed(work, times=5)
        book.add(f"calibration: {name}", amount / seconds, unit, setup=note)


def machine() -> str:
    """The setup line of every figure."""
    from pipeline_lib.workspace.machine import cpu_model, usable_cores

    return f"{cpu_model()}, {usable_cores()} cores, Python {platform.python_version()}"


def bench_data() -> Path | None:
    """The folder of real data (`$MILLRACE_BENCH_DATA`), or None: then a benchmark uses data that it makes, and says so."""
    folder = os.environ.get("MILLRACE_BENCH_DATA")
    return Path(folder) if folder and Path(folder).is_dir() else None
