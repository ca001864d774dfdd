"""Carries a run's spool to MLflow in a process of its own, so that MLflow costs the run neither time, memory nor its life.

The child gets its job as a line on stdin and ends orderly, everything delivered, at a second one; when stdin just closes, the run
was killed, and it leaves at once: the next start delivers the rest. It answers on stdout, a JSON object a line.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import psutil
from filelock import FileLock, Timeout

from pipeline_lib.secrets import told
from pipeline_lib.tracking.delivery import Delivery
from pipeline_lib.tracking.spool import Spool
from pipeline_lib.workspace.workspace import Workspace

PERIOD_SECONDS = 2.0
RETRY_SECONDS = 15.0
SYSTEM_SECONDS = 10.0
NICENESS = 10  # the run's own work goes first


class Courier:
    """The parent's end.

    Attributes:
        known: MLflow's ids as far as the child has told them: {"run_id", "experiment_id"}.
    """

    def __init__(
        self, workspace: Workspace, run: str, spool: Spool, *, uri: str, experiment: str, log: Callable[[str], None]
    ) -> None:
        self.spool, self.log, self.known = spool, log, dict[str, str]()
        job = {"workspace": str(workspace.root), "run": run, "spool": str(spool.path), "uri": uri, "experiment": experiment}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline_lib.tracking.courier"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, encoding="utf-8", start_new_session=True,  # a Ctrl-C is the run's, not its
        )  # fmt: skip
        self._say(json.dumps(job))
        self.thread = threading.Thread(target=self._listen, name="millrace-tracking", daemon=True)
        self.thread.start()

    def _say(self, line: str) -> None:
        pipe = cast(IO[str], self.process.stdin)
        with contextlib.suppress(OSError):  # it has ended: `_listen` says so
            pipe.write(line + "\n")
            pipe.flush()

    def _listen(self) -> None:
        for line in cast(IO[str], self.process.stdout):
            message = json.loads(line)
            if "log" in message:
                self.log(message["log"])
            self.known |= message.get("known", {})
            if "done" in message:
                return
        self.log(f"MLflow's courier ended with code {self.process.wait()}; metrics wait in the spool")

    def stop(self, seconds: float) -> bool:
        """Deliver what is left, for at most `seconds`; whether everything arrived."""
        self._say("stop")
        self.thread.join(seconds)
        if self.thread.is_alive():
            self.process.terminate()
        self.process.wait()
        return self.spool.done()


def carry(job: dict[str, Any], stopping: threading.Event, answers: IO[str]) -> None:
    """The child's work: deliver every few seconds until told to stop, then once more; sample the system in between."""

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    run, spool = job["run"], Spool(Path(job["spool"]))
    delivery = Delivery(spool, job["uri"], job["experiment"], Workspace.open(job["workspace"]))
    lock = FileLock(spool.path.with_suffix(".lock"))
    sampled, away = -math.inf, False
    psutil.cpu_percent(interval=0.1)  # later ones tell the share since the one before
    while True:
        last = stopping.is_set()
        if time.monotonic() - sampled > SYSTEM_SECONDS:
            sampled = time.monotonic()
            spool.append("metrics", run, values=system_metrics(), step=0)
        try:
            with lock.acquire(timeout=0):
                delivery.deliver()
            away = False
        except Timeout:
            pass  # another process delivers this spool
        except Exception as error:  # whatever the client raises, the run must not suffer
            if not away:
                what = f"{type(error).__name__}: {told(error).partition(chr(10))[0][:200]}"
                answer(log=f"MLflow cannot be reached ({what}); metrics wait in the spool")
            away = True
        while delivery.refused:
            answer(log=f"MLflow refused {delivery.refused.pop(0)}")
        if run in delivery.ids:
            answer(known={"run_id": delivery.ids[run], "experiment_id": delivery.experiment_id})
        if last:
            answer(done=True)
            return
        stopping.wait(RETRY_SECONDS if away else PERIOD_SECONDS)


def system_metrics() -> dict[str, float]:
    """This machine now, under the names that MLflow's own monitor uses."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
    }


def main() -> None:
    """The child: `python -m pipeline_lib.tracking.courier`, spoken to through its pipes."""
    job, stopping, answers = json.loads(sys.stdin.readline()), threading.Event(), sys.stdout
    sys.stdout = sys.stderr  # what a library prints is no answer
    if hasattr(os, "nice"):
        os.nice(NICENESS)

    def listen() -> None:
        if not sys.stdin.readline():
            os._exit(1)  # the run is gone, and what it left in MLflow is for the next start to settle
        stopping.set()

    threading.Thread(target=listen, daemon=True).start()
    carry(job, stopping, answers)
    os._exit(0)  # nothing is left to do, and an orderly exit of all that MLflow imports takes a while


if __name__ == "__main__":
    main()
