"""Failures injected into trainings (numbers, memory, disk, damage, signals, dead ranks): how many end well without a person?"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.run import run_plain
from pipeline_lib.training.checkpoints import committed
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.figures import Book
from tests.pipeline_toys import small_config, write_json

REPOSITORY = Path(__file__).parents[2]
STEPS, SAVE_EVERY, SEEDS = 240, 20, 3
EACH, QUICK_EACH = 10, 1
COMMANDS = 3  # how often the same command is given: the first, and what a scheduler's retry gives after it ended early
SPARE_MIB = 32  # what training leaves free beside a checkpoint
DISK_MIB = 160  # of the small disk
SIGMAS = 3.0  # of the undisturbed runs' dev losses, above their mean
SMALL_ALLOCATIONS = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}  # freed memory goes back, so that a limit is felt


def options(parser: argparse.ArgumentParser) -> None:
    """How many of each kind, which kinds, and which moments."""
    parser.add_argument("--each", type=int, default=0, help=f"failures of each kind (default {EACH}, quick {QUICK_EACH})")
    parser.add_argument("--kinds", nargs="*", default=[], help="only these kinds")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")


@dataclass
class Case:
    """One failure: what happens inside the training, what was done to its files, and how it is known to have happened."""

    home: Path
    chance: random.Random
    faults: list[dict[str, Any]] = field(default_factory=list)
    processes: int = 1
    env: dict[str, str] = field(default_factory=dict)
    between: Callable[[Case], None] = lambda case: None  # after the first process ended
    small_disk: bool = False
    expected: Callable[[list[Mapping[str, Any]], list[int]], bool] = lambda events, codes: True

    def moment(self, first: int = 70, last: int = STEPS - 40) -> int:
        """A step."""
        return self.chance.randint(first, last)


def _recovered(action: str, signal: str = "") -> Callable[[list[Mapping[str, Any]], list[int]], bool]:
    def look(events: list[Mapping[str, Any]], codes: list[int]) -> bool:
        told = [event["detail"] for event in events if event["kind"] == "recovery"]
        return any(detail["action"] == action and signal in {"", detail["signal"]} for detail in told)

    return look


def _said(kind: str) -> Callable[[list[Mapping[str, Any]], list[int]], bool]:
    return lambda events, codes: any(event["kind"] == kind for event in events)


def nan_loss(case: Case) -> None:
    """A forward pass gives NaN."""
    case.faults = [{"kind": "nan_loss", "steps": [case.moment()]}]
    case.expected = _recovered("skip_step", "non_finite")


def inf_gradient(case: Case) -> None:
    """A backward pass gives Inf, the loss is fine."""
    case.faults = [{"kind": "inf_gradient", "steps": [case.moment()]}]
    case.expected = _recovered("skip_step", "non_finite")


def loss_spike(case: Case) -> None:
    """One to four steps of nonsense."""
    first = case.moment()
    case.faults = [{"kind": "spike", "steps": list(range(first, first + case.chance.randint(1, 4)))}]
    case.expected = _recovered("skip_step", "loss_spike")


def divergence(case: Case) -> None:
    """Some steps whose updates are much too large, before the guard against spikes knows what is usual."""
    first = case.moment(36, 44)
    case.faults = [{"kind": "diverge", "steps": list(range(first, first + 26)), "strength": 60.0}]
    case.expected = _recovered("roll_back")


def out_of_memory(case: Case) -> None:
    """An address-space limit that a whole micro-batch does not fit into."""
    case.env = SMALL_ALLOCATIONS
    case.faults = [{"kind": "address_space", "steps": [case.moment()], "mib": 2}]
    case.expected = _recovered("halve_micro_batch")


def corrupt_checkpoint(case: Case) -> None:
    """The process is killed, and a bit of its newest checkpoint has turned meanwhile."""
    case.faults = [{"kind": "kill", "steps": [case.moment()]}]

    def flip(case: Case) -> None:
        newest = committed(next(case.home.glob("work/train-*/checkpoints")))[-1]
        path = case.chance.choice(sorted(newest.glob("*.safetensors")))
        _flip(path, case.chance)

    case.between = flip
    case.expected = lambda events, codes: codes[0] == -signal.SIGKILL and _said("checkpoint_damaged")(events, codes)


def corrupt_chunk(case: Case) -> None:
    """A bit of a packed chunk has turned."""
    path = case.chance.choice(sorted(case.home.glob("cache/*/train-*.arrow")))
    before = path.read_bytes()
    path.unlink()  # the other workspaces' link to it stays as it was
    path.write_bytes(before)
    _flip(path, case.chance)
    case.expected = lambda events, codes: path.read_bytes() == before


def disk_full(case: Case) -> None:
    """Somebody else fills the disk while the training goes on; older checkpoints are all that can go."""
    case.small_disk = True
    case.faults = [{"kind": "fill_disk", "steps": [case.moment(150)], "leave_mib": SPARE_MIB + 0.5}]
    case.expected = _recovered("prune")


def sigterm(case: Case) -> None:
    """A scheduler asks the process to leave; the next one goes on."""
    case.faults = [{"kind": "terminate", "steps": [case.moment()]}]
    case.expected = lambda events, codes: codes[0] == 130 and _said("resumed")(events, codes)


def rank_killed(case: Case) -> None:
    """One of two processes that train together is killed."""
    case.processes = 2
    case.faults = [{"kind": "kill", "steps": [case.moment()], "rank": case.chance.randint(0, 1)}]
    case.expected = _recovered("relaunch")


KINDS = (
    nan_loss, inf_gradient, loss_spike, divergence, out_of_memory, corrupt_checkpoint, corrupt_chunk, disk_full, sigterm,
    rank_killed,
)  # fmt: skip


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Undisturbed runs of three seeds, then every failure in a workspace of its own."""
    each = arguments.each or (QUICK_EACH if arguments.quick else EACH)
    kinds = [kind for kind in KINDS if not arguments.kinds or kind.__name__ in arguments.kinds]
    book.setup = f"{book.setup}; {STEPS} steps of a small model on the text of this machine; seed {arguments.seed}"
    if disk_full in kinds and not _may_mount():
        kinds.remove(disk_full)
        book.leave_out("disk_full: this account may not mount a small disk")
    folder = Path(tempfile.mkdtemp(prefix="millrace-recovery-"))
    try:
        config = _config()
        base = folder / "base"
        run_plain(Workspace.open(base), config, until="plan")
        losses = [_undisturbed(folder, base, seed) for seed in range(SEEDS)]
        limit = statistics.fmean(losses) + SIGMAS * statistics.stdev(losses)
        book.add("dev loss of undisturbed runs, mean of three seeds", statistics.fmean(losses), "nats", setup=f"{losses}")
        recovered, fired, total, found, seconds = 0, 0, 0, [], []
        for kind in kinds:
            for number in range(each):
                begin = time.monotonic()
                happened, loss, words = _one(folder, base, kind, random.Random(f"{arguments.seed} {kind.__name__} {number}"))
                total, fired, recovered = total + 1, fired + happened, recovered + (happened and loss is not None)
                seconds.append(time.monotonic() - begin)
                found += [] if loss is None else [loss]
                print(f"  {kind.__name__:<20} {words}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    book.add("failures injected", total, "failures")
    book.add("failures that happened as planned", fired, "failures", least=total)
    book.add("recovered without a person", recovered, "failures", least=0.99 * total)
    within = sum(loss <= limit for loss in found)
    book.add(
        "dev loss within the band of undisturbed runs", within, "failures", least=len(found),
        setup=f"at most mean + {SIGMAS:g} standard deviations of three seeds = {limit:.4f}",
    )  # fmt: skip
    if found:
        book.add("dev loss after a recovery, median", statistics.median(found), "nats", setup=f"highest {max(found):.4f}")
        book.add("seconds a failure, start to end", statistics.median(seconds), "s", setup="imports of every process included")
    if arguments.quick:
        book.leave_out(f"{EACH} failures of each kind (`--each N`)")


def _config(**changes: Any) -> PipelineConfig:
    train = {
        "max_steps": STEPS, "save_every": SAVE_EVERY, "batch_tokens": 1024, "learning_rate": 0.005, "precision": "fp32",
        "evaluate_every": STEPS, "keep_checkpoints": 6, **changes.pop("train", {}),
    }  # fmt: skip
    model = {"width": 64, "depth": 2, "heads": 2, "ffn_width": 192}
    return small_config(
        model=model, train=train, tune={"trials": 0}, calibrate={"seconds": 1.0, "micro_batches": [16]},
        execution={"workers": 1, "extensions": ["tests.training_faults"]}, **changes,
    )  # fmt: skip


def _undisturbed(folder: Path, base: Path, seed: int) -> float:
    home = folder / f"seed-{seed}"
    _copy(base, home)
    code, told = _process(home, write_json(folder / f"seed-{seed}.json", _config(seed=seed).model_dump(mode="json")), {})
    assert code == 0, told
    shutil.rmtree(home)
    return float(told["dev_loss"])


def _one(folder: Path, base: Path, kind: Callable[[Case], None], chance: random.Random) -> tuple[bool, float | None, str]:
    """(it happened, dev loss afterwards or None, in words)."""
    home = folder / "case"
    marks = folder / "marks"
    _copy(base, home)
    marks.mkdir()
    case = Case(home, chance)
    kind(case)
    described = write_json(folder / "case.json", _config(train={"processes": case.processes}).model_dump(mode="json"))
    env = {
        **case.env,
        "MILLRACE_TEST_FAULTS": json.dumps(case.faults),
        "MILLRACE_TEST_MARKS": str(marks),
        "MILLRACE_TEST_HOME": str(home),
    }
    codes: list[int] = []
    try:
        while len(codes) < COMMANDS:
            code, told = _process(home, described, env, small_disk=case.small_disk)
            codes.append(code)
            if code == 0:
                break
            if len(codes) == 1:
                case.between(case)
        where = ", ".join(f"{fault['kind']} at {fault['steps'][0]}" for fault in case.faults) or "before the start"
        if code != 0:
            return True, None, f"{where}: NOT recovered, exit codes {codes}: {str(told)[-600:]}"
        fault_happened = len(list(marks.iterdir())) > 0 if case.faults else True
        happened = fault_happened and case.expected(told["events"], codes) and told["steps"] == STEPS
        actions = [_words(event["detail"]) for event in told["events"] if event["kind"] == "recovery"]
        return (
            happened,
            float(told["dev_loss"]),
            f"{where}: {', '.join(actions) or codes}; dev loss {told['dev_loss']:.4f}"
            + ("" if happened else " (did NOT happen as planned)"),
        )
    finally:
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(marks)


def _words(recovery: Mapping[str, Any]) -> str:
    """`divergence at 71 → 20, rate × 0.5`."""
    cost = recovery["cost"]
    back = f" → {cost['to_step']}, rate × {cost['rate']:.2g}" if "to_step" in cost else ""
    return f"{recovery['policy']} at {recovery['step']}{back}"


def _process(home: Path, described: Path, env: Mapping[str, str], *, small_disk: bool = False) -> tuple[int, Any]:
    """(exit code, what it told; the end of its standard error when it failed)."""
    command = [sys.executable, "-m", "tests.benchmarks.recovery_child", str(home), str(described)]
    if small_disk:
        words = [_ON_A_SMALL_DISK, "bash", str(home), str(DISK_MIB), *command]
        command = ["unshare", "--map-root-user", "--mount", "bash", "-c", *words]
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONPATH": path, **env}, capture_output=True,
        text=True, check=False, timeout=300,
    )  # fmt: skip
    if done.returncode:
        return done.returncode, done.stderr
    return 0, json.loads(done.stdout.strip().splitlines()[-1])


# The workspace is moved to a disk of its own for the process's life: a tmpfs that only this mount namespace sees.
_ON_A_SMALL_DISK = """
set -e
home=$1; size=$2; shift 2
mkdir "$home.disk"; mount -t tmpfs -o "size=${size}m" small "$home.disk"
cp -a "$home/." "$home.disk/"; mount --bind "$home.disk" "$home"
exec "$@"
"""


def _may_mount() -> bool:
    probe = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "probe", "/mnt"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _copy(base: Path, home: Path) -> None:
    """A workspace of its own, its files linked; nothing of ours changes a file in place."""
    shutil.copytree(base, home, copy_function=_link)


def _link(source: str, target: str) -> str:
    if "artifacts" in Path(source).parts or "cache" in Path(source).parts:
        os.link(source, target)
    else:
        shutil.copy2(source, target)
    return target


def _flip(path: Path, chance: random.Random) -> None:
    """Turn one bit."""
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data))
    data[place] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
