"""A toy table of stages over the real configuration: letters → clock (recorded) → sum."""

import os
import time
from pathlib import Path

from pipeline_lib import run, status
from pipeline_lib.errors import StageFailedError
from pipeline_lib.workspace.stage import Outcome, Stage


def letters(stage_run, *, dev_share):
    stage_run.path("letters", "a.txt").write_text("x" * int(dev_share * 1000))
    return Outcome(metrics={"documents": 3})


def clock(stage_run):
    stage_run.path("trials", "t.txt").write_text("seen")
    return Outcome(details={"now": time.time_ns(), "adaptive": stage_run.services.adaptive})


def total(stage_run, *, temperature):
    if mark := os.environ.get("TOY_MARK"):
        Path(mark).touch()
        time.sleep(60)
    if why := os.environ.get("TOY_FAIL"):
        try:
            raise ConnectionError(why)
        except ConnectionError as error:
            raise StageFailedError(why, where="asked to fail") from error
    stage_run.path("total", "t.txt").write_text(f"{len(stage_run.input('letters').file('letters').read_text())} {temperature}")
    return Outcome(metrics={"parameters": 12, "dev_loss": 3.5, "tokens_per_second": 100.0})


STAGES = (
    Stage("letters", 1, "pure", "run_toys:letters", sections=("split.dev_share",)),
    Stage("clock", 1, "recorded", "run_toys:clock", reads={"letters": ("letters",)}),
    Stage(
        "train",
        1,
        "pure",
        "run_toys:total",
        reads={"letters": ("letters",), "clock": ("details",)},
        sections=("select.temperature",),
    ),
)


def install():
    """Put the toy table in the place of the real one."""
    run.STAGES = status.STAGES = STAGES
    run.BY_NAME = {stage.name: stage for stage in STAGES}
    run.RECORDED = ("clock",)
