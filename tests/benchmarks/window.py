"""The window: simulated and real trainings against a deadline, predictions against what came, planned against cut schedules."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.calibration import cost_figures, memory_figures
from tests.benchmarks.figures import Book
from tests.window_nights import random_night, simulate

REPOSITORY = Path(__file__).parents[2]
QUICKSTART = REPOSITORY / "deployments" / "pipelines" / "quickstart.yaml"
TROUBLE = Path(__file__).with_name("window_trouble.py")
NIGHTS, QUICK_NIGHTS = 10_000, 2_000
REAL = (*[3.0] * 15, *[10.0] * 5)  # minutes
QUICK_REAL = (1.25, 1.5)  # the second run knows what the first one took after its training, and is killed
TROUBLES = ("slow", "kill", "stall", "none")  # in turn
MARGIN = 0.05  # of the window
DATA = (
    "ingest.sources=[{name: machine, kind: machine, max_mb: 3}]", "tokenizer.vocabulary_size=512", "pack.sequence_length=128",
    "suites.level=smoke",
)  # fmt: skip


def options(parser: argparse.ArgumentParser) -> None:
    """Parts may be left out."""
    parser.add_argument("--part", choices=["simulated", "real", "schedules", "calibration"], default=None, help="only this part")
    parser.add_argument("--first", type=int, default=0, help="begin with this one of the real runs, counted from 0")


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Simulated nights, real runs with trouble, schedules at equal steps."""
    wanted = {arguments.part} if arguments.part else {"simulated", "real", "schedules", "calibration"}
    if "simulated" in wanted:
        simulated(book, QUICK_NIGHTS if arguments.quick else NIGHTS)
    with tempfile.TemporaryDirectory(prefix="millrace-window-") as folder:
        home = Path(folder) / "home"
        if wanted & {"real", "schedules"}:
            _millrace(home, "run", "--until", "fill_gaps", *_set(*DATA))
        if "schedules" in wanted:
            schedules(book, Workspace.open(home), steps=160 if arguments.quick else 600)
        if "real" in wanted:
            real(book, home, QUICK_REAL if arguments.quick else REAL, first=arguments.first)
    if "calibration" in wanted:
        memory_figures(book, quick=arguments.quick)
        cost_figures(book, quick=arguments.quick)
    if arguments.quick:
        book.leave_out(f"{NIGHTS:,} simulated nights; {len(REAL)} real runs and what they tell of predictions; longer schedules")


def simulated(book: Book, nights: int) -> None:
    """The controller against a simulated clock."""
    rng = random.Random(7)
    late = raw = margin_kept = 0
    unused: list[float] = []
    for _ in range(nights):
        night = random_night(rng)
        ended = simulate(night)
        late += ended.seconds > night.window.total
        raw += not ended.annealed
        margin_kept += night.window.margin <= MARGIN * night.window.total
        unused.append((night.window.total - night.window.margin - ended.seconds) / night.window.total)
    setup = (
        f"{nights:,} nights of 3 minutes to 12 hours: ±15 % speed, 60 % at half speed for a third of the run, stalls within the "
        "margin, 40 % killed in the first 85 % of training"
    )
    book.add("simulated nights that end late", late, "nights", most=0, setup=setup)
    book.add("simulated nights that are not annealed", raw, "nights", most=0, setup="decay ≥ 8 % of the steps, last rate ≤ 1 %")
    book.add("simulated nights with a margin ≤ 5 %", margin_kept, "nights", least=nights)
    book.add("simulated: median unused share", 100 * statistics.median(unused), "%", most=5)
    slow = [random_night(rng, validation_too=True) for _ in range(nights // 4)]
    late = sum(simulate(night).seconds > night.window.total for night in slow)
    book.add("simulated, validation slowed too: late", 100 * late / len(slow), "%", setup=f"{len(slow):,} nights")
    book.add("simulated: 95th percentile of the unused share", 100 * sorted(unused)[int(0.95 * nights)], "%")


def real(book: Book, home: Path, windows: Sequence[float], *, first: int = 0) -> None:
    """Whole runs through the command line, each with a trouble of its own, and of another size: each calibrates anew."""
    rng = random.Random(11)
    workspace = Workspace.open(home)
    late = raw = undone = 0
    unused: list[float] = []
    records: list[tuple[str, RunRecord]] = []
    for number, minutes in enumerate(windows):
        window = 60 * minutes
        training = 0.5 * window  # about
        told: dict[str, Any] = {"mark": str(home.parent / f"trouble-{number}.json")}
        kind = TROUBLES[number % len(TROUBLES)]
        if kind == "slow":
            begin = rng.uniform(0, 0.6) * training
            told["slow"] = [begin, begin + training / 3]
        elif kind == "stall":
            told["stalls"] = [[rng.uniform(0.1, 0.9) * training, 0.6 * MARGIN * window]]
        elif kind == "kill":
            told["kill"] = rng.uniform(0.2, 0.7) * training
        width = rng.choice([48, 64, 96, 128]) if number else 64
        overrides = (
            *DATA, f"resources.max_hours={minutes / 60}", f"resources.margin_minutes={MARGIN * minutes}", f"model.width={width}",
            f"model.depth={rng.choice([2, 3, 4])}", "model.heads=4", f"model.ffn_width={2 * width}", "calibrate.seconds=5",
            "tune.trials=0", "train.max_epochs=1000", f"train.batch_tokens={rng.choice([1024, 2048, 4096])}", f"seed={number}",
            "validation.language_tokens=5000", f"execution.extensions=[{TROUBLE}]",
        )  # fmt: skip
        if number < first:
            continue
        begun = time.time()
        code = _millrace(home, "run", *_set(*overrides), trouble=told, must=False)
        killed = code == -signal.SIGKILL
        if killed:
            code = _millrace(home, "retry", "latest", trouble=told, must=False)
        record = RunBook(workspace.runs_folder).load("latest")
        if code or killed != (kind == "kill"):
            undone += 1
            print(f"  {minutes:g} min, {kind}: ended with {code}: {record.outcome} {record.error[:200]}", flush=True)
            continue
        records.append((kind, record))
        end = max(datetime.fromisoformat(record.ended).timestamp(), _written(record.report))
        ahead = datetime.fromisoformat(record.deadline).timestamp() - end
        late += ahead < 0
        annealed, words = _annealed(workspace, record)
        raw += not annealed
        unused.append((ahead - MARGIN * window) / window)
        print(
            f"  {minutes:g} min, {kind}: {ahead:.1f} s to the deadline, margin {MARGIN * window:.0f} s; {words}; "
            f"{_parts(record)}; the command took {time.time() - begun:.0f} s",
            flush=True,
        )
    done = windows[first:]
    setup = f"{len(done)} whole runs of {', '.join(f'{m:g}' for m in sorted(set(done)))} minutes, margin {MARGIN:.0%}"
    book.add("real runs that do not come to their end", undone, "runs", most=0, setup=setup)
    if not records:
        return
    book.add(
        "real runs that end late", late, "runs", most=0, setup=f"{sum(kind == 'kill' for kind, _ in records)} killed and resumed"
    )
    book.add("real runs that are not annealed", raw, "runs", most=0)
    book.add("real runs: median unused share", 100 * statistics.median(unused), "%", most=5)
    _predictions(book, records)


def _parts(record: RunRecord) -> str:
    """Where the time went: planned and actual seconds of training, and of all that follows it, the longest stage of that."""
    told = [f"{part} {one['planned']:.1f} planned, {one['actual']:.1f} s" for part, one in record.graded.get("parts", {}).items()]
    return ", ".join([*told, f"validate {record.stages['validate'].seconds:.1f} s"])


def _predictions(book: Book, told_of: Sequence[tuple[str, RunRecord]]) -> None:
    records = [record for _, record in told_of]
    errors = [abs(error) for record in records if (error := record.graded.get("time_error")) is not None]
    if errors:
        book.add("time, predicted against actual: median error", 100 * statistics.median(errors), "%", most=5)
    calm = [record for kind, record in told_of if kind != "slow"]  # nobody can remember a slowness that is injected
    if told := [abs(error) for r in calm if (error := r.graded.get("speed_error_from_memory")) is not None]:
        setup = f"{len(told)} runs that were not slowed down"
        book.add(
            "speed expected from memory alone against actual: median error",
            100 * statistics.median(told),
            "%",
            most=15,
            setup=setup,
        )
    inside = [one["inside"] for record in records for one in record.graded.get("promises", {}).values()]
    few = len(inside) < 20  # the range can only be judged over many
    if inside:
        share = 100 * sum(inside) / len(inside)
        goal: dict[str, float] = {} if few else {"least": 85, "most": 95}
        book.add("promises inside their 90 % interval", share, "%", setup=f"{len(inside)} promises", **goal)


def _annealed(workspace: Workspace, record: RunRecord) -> tuple[bool, str]:
    """From the steps that the training wrote down: the learning rate of every one."""
    ref = record.ref("train")
    if ref is None:
        return False, f"the run ended as {record.outcome}: {record.error[:200]}"
    (steps,) = [path for path in workspace.store.artifact(ref.key).files("observed") if path.name == "steps.parquet"]
    rows = pq.read_table(steps, columns=["step", "lr", "superseded"])
    rates = rows.filter(pc.invert(rows["superseded"])).sort_by("step").column("lr").to_pylist()
    top = max(rates)
    full = max(index for index, rate in enumerate(rates) if rate >= top * (1 - 1e-6))
    share, last = (len(rates) - 1 - full) / len(rates), rates[-1] / top
    return share >= 0.08 and last <= 0.01 + 1e-6, f"{len(rates)} steps, decay {share:.0%}, last rate {last:.1%}"


def _written(path: str) -> float:
    return Path(path).stat().st_mtime if path and Path(path).exists() else 0.0


def schedules(book: Book, workspace: Workspace, *, steps: int, seeds: Sequence[int] = (0, 1, 2)) -> None:
    """Dev loss at equal steps: the planned schedule, a cosine that knew the end, and a cut one."""
    from pipeline_lib.config.model import ModelConfig, TrainConfig
    from pipeline_lib.packing.reader import PackedDataset
    from pipeline_lib.training.data import spread
    from pipeline_lib.training.evaluate import DEV_SEQUENCES, mean_loss
    from pipeline_lib.training.loop import Session, fit
    from pipeline_lib.training.model import build_model
    from pipeline_lib.training.plan import TrainingPlan
    from pipeline_lib.tuning.course import Course

    ref = RunBook(workspace.runs_folder).load("latest").ref("fill_gaps")
    assert ref is not None
    cache = workspace.store.artifact(ref.key)
    train, dev = (PackedDataset.of(workspace, cache, side) for side in ("train", "dev"))
    model = ModelConfig(width=64, depth=2, heads=4, ffn_width=128)

    length = int(cache.details["sequence_length"])
    dev_batches = spread(dev, DEV_SEQUENCES, 16)

    def loss(schedule: Any, seed: int, planned: int) -> float:
        """Dev loss after `steps` of a schedule that was planned for `planned`."""
        net = build_model(model, vocabulary_size=int(cache.details["vocabulary_size"]), sequence_length=length, seed=seed)
        plan = TrainingPlan(
            steps=planned, warmup_steps=planned // 10, decay_steps=planned // 5, schedule=schedule, learning_rate=4e-3,
            weight_decay=0.1, batch_sequences=16, micro_batch=16, precision="fp32", evaluate_every=0, save_every=0,
        )  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="millrace-schedule-") as folder:
            session = Session(net, plan, TrainConfig(schedule=schedule), train, seed, Path(folder))
            over = Course(
                session, dev_batches, every=0, hold=0, save=lambda *a, **k: None, should_stop=lambda: session.step >= steps
            )  # fmt: skip
            fit(session, [over])
            assert session.step == steps
            return float(mean_loss(session.model, session.objective, dev_batches))

    found: dict[str, list[float]] = {"planned": [], "known": [], "cut": []}
    for seed in seeds:
        found["planned"].append(loss("wsd", seed, steps))
        found["known"].append(loss("cosine", seed, steps))
        found["cut"].append(loss("cosine", seed, steps * 3 // 2))
    setup = f"{steps} steps, {len(seeds)} seeds, paired; interval of the mean over seeds"
    for other, words in (("known", "a cosine that knew its steps"), ("cut", "a cosine cut by the clock")):
        gains = [100 * (b / a - 1) for a, b in zip(found["planned"], found[other], strict=True)]
        half = 4.303 * statistics.stdev(gains) / len(gains) ** 0.5  # Student's t, 2 degrees of freedom, 95 %
        name = f"planned schedule against {words}: lower dev loss"
        book.add(name, statistics.mean(gains), "%", least=0, setup=f"± {half:.2f}; {setup}")


def _set(*overrides: str) -> list[str]:
    return [text for override in overrides for text in ("--set", override)]


def _millrace(home: Path, *words: str, trouble: dict[str, Any] | None = None, must: bool = True) -> int:
    """Run the command; its exit code, negative for a signal. One that must work ends the benchmark when it does not."""
    command = [sys.executable, "-m", "flows.cli.main", *words]
    environment = {**os.environ, "MILLRACE_HOME": str(home), "MILLRACE_BENCH_TROUBLE": json.dumps(trouble or {})}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    if done.returncode and must:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.returncode
