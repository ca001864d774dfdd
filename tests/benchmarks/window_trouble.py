"""An extension for the benchmark `window`: half the speed for a while, stalls and a kill, at seconds after the first step.

Told by $MILLRACE_BENCH_TROUBLE: {"slow": [from, until], "stalls": [[at, seconds]], "kill": at or 0, "mark": file of what is
done}; nothing happens without a mark.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from pipeline_lib.extensions import extend

MOST_STEP_SECONDS = 5.0  # a longer pause between two steps is an evaluation or a stall: it is not doubled


@extend.callback("trouble")
def trouble() -> Trouble:
    """Made once a training."""
    return Trouble(json.loads(os.environ.get("MILLRACE_BENCH_TROUBLE", "{}")))


class Trouble(TrainerCallback):
    """Sleeps, or ends the process."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        self.mark = Path(told.get("mark", os.devnull))
        self.begin = self.step_begin = time.time()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A resumed training goes on with the clock of the first attempt."""
        if "mark" in self.told and not self.mark.exists():
            self.mark.write_text(json.dumps({"begin": time.time(), "stalled": 0, "killed": False}))
        if "mark" in self.told:
            self.begin = json.loads(self.mark.read_text())["begin"]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step's clock."""
        self.step_begin = time.time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Slow down, stall or kill where it is due."""
        if "mark" not in self.told:
            return
        now = time.time() - self.begin
        low, high = self.told.get("slow", (0, 0))
        if low <= now < high:
            time.sleep(min(time.time() - self.step_begin, MOST_STEP_SECONDS))
        done = json.loads(self.mark.read_text())
        stalls = self.told.get("stalls", [])
        if done["stalled"] < len(stalls) and now >= stalls[done["stalled"]][0]:
            time.sleep(stalls[done["stalled"]][1])
            done["stalled"] += 1
            self.mark.write_text(json.dumps(done))
        if (at := self.told.get("kill", 0)) and now >= at and not done["killed"]:
            self.mark.write_text(json.dumps({**done, "killed": True}))
            os.kill(os.getpid(), signal.SIGKILL)
