"""Toy stages, small enough to kill and repeat by the hundred. Child processes import them by name."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline_lib.workspace.artifact import ArtifactRef
from pipeline_lib.workspace.stage import Outcome, Stage, StageRun, execute
from pipeline_lib.workspace.workspace import Workspace


class Words(BaseModel):
    items: list[str] = ["ash", "birch", "cedar"]
    suffix: str = ""


class Counting(BaseModel):
    offset: int = 0


class Config(BaseModel):
    words: Words = Words()
    count: Counting = Counting()
    seed: int = 0


def config(*items: str, suffix: str = "", offset: int = 0) -> Config:
    return Config(words=Words(items=list(items or Words().items), suffix=suffix), count=Counting(offset=offset))


def spell(task: tuple[str, str], folder: Path) -> dict[str, Any]:
    """A shard: slow and noted in a diary when the environment asks for it, so that tests see what was really made."""
    item, suffix = task
    time.sleep(float(os.environ.get("TOY_PAUSE", "0")))
    if diary := os.environ.get("TOY_DIARY"):
        with Path(diary).open("a") as handle:
            handle.write(item + "\n")
    (folder / "letters.txt").write_text("\n".join(item + suffix) + "\n")
    (folder / "upper.txt").write_text((item + suffix).upper())
    return {"letters": len(item + suffix)}


def words(run: StageRun, *, words: Words) -> Outcome:
    tasks = [(item, words.suffix) for item in words.items]
    shards = run.shards(tasks, spell, key=list)
    run.path("whole", "all.json").write_text(json.dumps(words.items))
    run.observed("log.txt").write_text(f"made at {time.time_ns()}")
    letters = sum(shard.metrics["letters"] for shard in shards)
    metrics = {"letters": letters, "taken_over": sum(shard.reused for shard in shards)}
    return Outcome(metrics, counts={"in": len(tasks), "out": len(shards)}, details={"n": len(tasks)})


def count(run: StageRun, *, count: Counting) -> Outcome:
    total = sum(len(path.read_text()) for path in run.input("words").files("letters")) + count.offset
    run.path("total", "total.txt").write_text(str(total))
    return Outcome(metrics={"total": total})


def even(run: StageRun) -> Outcome:
    """Reads the details only: an equal count of words cuts off early."""
    run.path("even", "even.txt").write_text(str(run.input("words").details["n"] % 2 == 0))
    return Outcome()


def look_at_clock(run: StageRun) -> Outcome:
    return Outcome(details={"now": time.time_ns()})


def lose_one(run: StageRun) -> Outcome:
    return Outcome(counts={"in": 3, "out": 2})


def hungry(run: StageRun) -> Outcome:
    block = bytearray(os.urandom(2**20) * 96)
    time.sleep(0.2)
    return Outcome(metrics={"bytes": len(block)})


WORDS = Stage("words", 1, "pure", "workspace_toys:words", sections=("words",))
COUNT = Stage("count", 1, "pure", "workspace_toys:count", reads={"words": ("letters",)}, sections=("count",))
EVEN = Stage("even", 1, "pure", "workspace_toys:even", reads={"words": ("details",)})
CLOCK = Stage("clock", 1, "recorded", "workspace_toys:look_at_clock")
LOSING = Stage("losing", 1, "pure", "workspace_toys:lose_one")
HUNGRY = Stage("hungry", 1, "pure", "workspace_toys:hungry")


def make(
    workspace: Workspace,
    given: Config | None = None,
    stage: Stage = WORDS,
    inputs: Mapping[str, ArtifactRef] | None = None,
    **options: Any,
) -> ArtifactRef:
    return execute(workspace, stage, given or Config(), inputs or {}, **options)


def run_both(root: str, *items: str) -> None:
    """What child processes do: words, then their count."""
    workspace = Workspace.open(root)
    first = make(workspace, config(*items))
    make(workspace, config(*items), COUNT, {"words": first})


def files_of(workspace: Workspace, ref: ArtifactRef, table: str) -> list[Path]:
    return workspace.store.artifact(ref.key).files(table)
