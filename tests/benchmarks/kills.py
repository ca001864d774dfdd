"""SIGKILL along the pipeline, at commit points and at random moments: does every run go on, and end with the same bytes?"""

from __future__ import annotations

import argparse
import math
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.verify import verify_all
from pipeline_lib.workspace.workspace import Workspace
from tests.benchmarks.figures import Book
from tests.kills import ALONG_THE_LINE, Life, Plan, live, undisturbed
from tests.pipeline_toys import PURE, small_config

KILLS, QUICK_KILLS = 200, 10
SHARE_AT_POINTS = 5 / 8  # of all kills; the rest comes at random moments
BRIEFLY = (  # a choice for few kills, each of another kind and further along
    "record.before_save",
    "publish.before_manifest",
    "shard.before_commit",
    "cache.after_commit",
    "checkpoint.before_commit",
    "promote.before_champion",
)


def options(parser: argparse.ArgumentParser) -> None:
    """How many kills, and which random moments."""
    parser.add_argument("--kills", type=int, default=0, help=f"number of kills (default {KILLS}, quick {QUICK_KILLS})")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")


@dataclass
class Tally:
    """What the kills did."""

    kills: int = 0
    at_points: int = 0
    at_random: int = 0
    resumed: int = 0
    damaged: int = 0  # things that verification found after a kill
    repeated: int = 0  # artifacts that were made a second time, over all workspaces
    pure: int = 0
    equal: int = 0
    workspaces: int = 0
    champions: int = 0
    failed: int = 0  # processes that ended by themselves with an error: the campaign stops
    seconds: list[float] = field(default_factory=list)


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Kills at commit points, then at random moments, in as many workspaces as it takes."""
    wanted = arguments.kills or (QUICK_KILLS if arguments.quick else KILLS)
    book.setup = f"{book.setup}; a small pipeline (30 steps) on the text of this machine, --recorded; seed {arguments.seed}"
    folder = Path(tempfile.mkdtemp(prefix="millrace-kills-"))
    tally = Tally()
    try:
        begin = time.monotonic()
        plan = undisturbed(folder / "reference", small_config())
        home = folder / "measured"
        alone = live(home, plan).seconds  # with compiled kernels in their caches, as every killed process has them
        print(
            f"undisturbed: {alone:.1f} s a process; planning and the reference took {time.monotonic() - begin:.0f} s", flush=True
        )
        at_points = round(wanted * SHARE_AT_POINTS)
        while tally.at_points < at_points and not tally.failed:
            faults = _spread(at_points - tally.at_points)
            tally.at_points += _one_workspace(folder / f"w{tally.workspaces}", plan, tally, [(fault, 0.0) for fault in faults])
        chance = random.Random(arguments.seed)
        while tally.at_random < wanted - at_points and not tally.failed:
            moments = [("", chance.uniform(0.05, alone)) for _ in range(wanted - at_points - tally.at_random)]
            tally.at_random += _one_workspace(folder / f"w{tally.workspaces}", plan, tally, moments)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    book.add(
        "kills", tally.kills, "kills", least=wanted, setup=f"{tally.at_points} at commit points, {tally.at_random} at random"
    )
    book.add("kills after which the next run went on", tally.resumed, "kills", least=tally.kills)
    book.add("damaged artifacts or chunks after a kill", tally.damaged, "things", most=0)
    book.add("workspaces brought to their end", tally.workspaces, "workspaces")
    book.add(
        "pure stages equal to the undisturbed run's", tally.equal, "stages", least=tally.pure, setup="fingerprint and digest"
    )
    book.add("finished artifacts made again", tally.repeated, "artifacts", most=0)
    book.add("champions promoted once, the right model", tally.champions, "workspaces", least=tally.workspaces)
    if tally.seconds:
        middle, most = statistics.median(tally.seconds), max(tally.seconds)
        book.add("median seconds from start to the interrupted stage", middle, "s", setup=f"imports included; at most {most:.1f}")
    if arguments.quick:
        book.leave_out(f"{KILLS} kills and more (`--kills N`); a quick run takes six of the 28 places at commit points")


def _spread(number: int) -> list[str]:
    """At most `number` of the commit points, evenly, in their order."""
    points = ALONG_THE_LINE if number > len(BRIEFLY) else BRIEFLY
    if number >= len(points):
        return list(points)
    return [points[(2 * place + 1) * len(points) // (2 * number)] for place in range(number)]


def _one_workspace(home: Path, plan: Plan, tally: Tally, kills: list[tuple[str, float]]) -> int:
    """Kill and continue until the work is done or the kills are used up, then finish and compare; the number of kills."""
    done = 0
    before: Life | None = None
    for life in _lives(home, plan, kills):
        _look(before, life, tally)
        before = life
        if life.code != -signal.SIGKILL:
            break
        done += 1
        tally.damaged += len(verify_all(Workspace.open(home), full=True)) if (home / "workspace.json").exists() else 0
    tally.kills += done
    tally.workspaces += 1
    tally.pure += len(PURE)
    tally.equal += len(plan.matches(home))
    workspace = Workspace.open(home)
    tally.repeated += len(set(workspace.store.keys()) - set(plan.keys))
    state = read_champion(workspace)
    tally.champions += state.get("champion", {}).get("digest") == plan.champion and not state["previous"]
    shutil.rmtree(home)
    return done


def _lives(home: Path, plan: Plan, kills: list[tuple[str, float]]) -> Iterator[Life]:
    interrupted = ""
    for fault, seconds in [*kills, ("", 0.0)]:
        life = live(home, plan, fault=fault, seconds=seconds, interrupted=interrupted)
        where = life.stage or "between stages"
        print(f"  {fault or f'{seconds:.2f} s' if seconds or fault else 'no kill':<28} {life.code:>4}  {where}", flush=True)
        yield life
        interrupted = life.stage


def _look(before: Life | None, life: Life, tally: Tally) -> None:
    """Whether a process failed by itself; after a kill: whether it went on, and how soon it got where the killed one was."""
    if life.code not in {0, -signal.SIGKILL}:
        tally.failed += 1
        print(life.said, flush=True)
    elif before is not None:
        tally.resumed += 1
    if before is not None and before.stage and not math.isnan(life.resumed_after):
        tally.seconds.append(life.resumed_after)
