"""Runs that the Python API starts: the command line's, each in a process of its own.

So a notebook keeps its event loop and its memory, and a killed kernel costs nothing. A job is a folder `jobs/<id>/` in the
workspace: what was asked, and what it said.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from flows import processes
from flows.cli.command import TITLES
from pipeline_lib.config.explain import nearest
from pipeline_lib.errors import (
    BusyError,
    ConfigError,
    DamagedError,
    MillraceError,
    NotFoundError,
    RefusedError,
    ServiceError,
    StageFailedError,
    StoppedError,
)
from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.runs import RunBook, RunRecord, new_run_id
from pipeline_lib.workspace.workspace import Workspace

ERRORS: dict[int, type[MillraceError]] = {
    error.exit_code: error
    for error in (StageFailedError, ConfigError, BusyError, DamagedError, RefusedError, NotFoundError, ServiceError, StoppedError)
}
LOOK_SECONDS = 0.1  # between two looks whether a child has ended
STOP_SECONDS = 60.0  # that a run has for saving what it learned and closing its record: saving may take 20 of them
END_SECONDS = 25.0  # that one has which did not: 20 to save, where SIGINT was ignored (a script in the background of a shell)
FINE = ("completed", "nothing_new")


@dataclass(frozen=True)
class Job:
    """A started process and its folder."""

    id: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        return int(read_json(self.folder / "job.json")["pid"])

    def alive(self) -> bool:
        """Whether the process still works."""
        if self.process is not None:
            return self.process.poll() is None
        told = read_json(self.folder / "job.json")
        try:
            process = psutil.Process(int(told["pid"]))
            return abs(process.create_time() - float(told["born"])) < 2.0 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def said(self) -> str:
        """The end of what it wrote beside its result."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "log.txt").read_text("utf-8", "replace")[-4000:].strip()
        return ""

    def record(self, workspace: Workspace) -> RunRecord | None:
        """The run that it opened; None before that."""
        pid, book = self.pid, RunBook(workspace.runs_folder)
        for run_id in reversed(
            [run for run in book.ids() if run >= self.id] + [run for run in book.ids() if run < self.id][-20:]
        ):
            with contextlib.suppress(MillraceError, OSError):
                record = book.load(run_id)
                if any(attempt.pid == pid and attempt.started >= self._started for attempt in record.attempts):
                    return record
        return None

    @property
    def _started(self) -> str:
        return str(read_json(self.folder / "job.json")["started"])

    def failure(self, outcome: str = "failed") -> MillraceError:
        """What went wrong, as the command line would have ended; `outcome` (of its run) counts where its exit code is unknown."""
        code = self.process.returncode if self.process else StoppedError.exit_code if outcome == "cancelled" else 1
        said = [line for line in self.said().splitlines() if line.strip()]
        what = next((i for i, line in enumerate(said) if line.split(":")[0] in TITLES.values()), len(said) - 1)
        text = "\n".join(said[what:]) if said else f"it ended with code {code}"
        return ERRORS.get(code, StageFailedError)(text, where=f"job {self.id}")


def start(workspace: Workspace, words: Sequence[str], *, files: Sequence[Path] = (), config: str = "") -> Job:
    """Start `millrace WORDS --json` on a workspace.

    Args:
        workspace: where.
        words: command and options; `CONFIG` stands for the file that `config` is written to.
        files: what a person named: their folders are allowed to the run.
        config: a pipeline as YAML.
    """
    job = new_run_id()
    folder = workspace.root / "jobs" / job
    folder.mkdir(parents=True)
    if config:
        (folder / "pipeline.yaml").write_text(config, "utf-8")
    named = [str(folder / "pipeline.yaml") if word == "CONFIG" else word for word in words]
    roots = [str((file if file.is_dir() else file.parent).resolve()) for file in files]
    roots = [root for root in [*roots, os.environ.get("MILLRACE_ALLOWED_ROOTS", "")] if root]
    environment = {**os.environ, "MILLRACE_HOME": str(workspace.root), "MILLRACE_ALLOWED_ROOTS": os.pathsep.join(roots)}
    started = datetime.now(UTC).isoformat()
    with (folder / "out.json").open("wb") as out, (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.cli.main", *named, "--json"],
            stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip
    born = 0.0
    with contextlib.suppress(psutil.Error):
        born = psutil.Process(process.pid).create_time()
    write_json(folder / "job.json", {"pid": process.pid, "born": born, "words": named, "started": started})
    return Job(job, folder, process)


def find(workspace: Workspace, job: str) -> Job:
    """A job that was started before, by this process or another.

    Raises:
        NotFoundError: there is none; names the nearest.
    """
    folder = workspace.root / "jobs"
    known = sorted(path.parent.name for path in folder.glob("*/job.json"))
    if job not in known:
        near = nearest(job, known) or (known[-1] if known else "")
        raise NotFoundError(f"there is no training {job!r}", fix=f"did you mean {near}?" if near else "start one: `train()`")
    return Job(job, folder / job)


async def ended(job: Job) -> None:
    """Wait for the end. Where the waiting is cancelled, the run is stopped as by Ctrl-C: closed and resumable."""
    try:
        while job.alive():
            await asyncio.sleep(LOOK_SECONDS)
    except asyncio.CancelledError:
        await asyncio.shield(asyncio.to_thread(stop, job))  # the loop goes on meanwhile
        raise


def stop(job: Job, *, seconds: float = STOP_SECONDS, end_seconds: float = END_SECONDS) -> tuple[str, ...]:
    """Ask a job to stop (SIGINT, as Ctrl-C) and wait until it has closed its record; where it does not listen, end it and
    everything that it started (SIGTERM, then SIGKILL).

    Args:
        job: the job.
        seconds: that it has to close its record.
        end_seconds: that it has after SIGTERM.

    Returns:
        What must be said about it: empty when it stopped as it was asked.
    """
    if not job.alive():
        return ("it had ended already",)
    with contextlib.suppress(ProcessLookupError):
        os.kill(job.pid, signal.SIGINT)
    if _ends(job, seconds):
        return ()
    processes.stop([job.pid], seconds=end_seconds)
    return (f"it did not stop within {seconds:g} s and was ended by force: what it learned since its last checkpoint is lost",)


def _ends(job: Job, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while job.alive():
        if time.monotonic() > end:
            return False
        time.sleep(LOOK_SECONDS)
    return True


async def result_of(workspace: Workspace, job: Job) -> RunRecord:
    """The run of a job, once it has ended.

    Raises:
        StoppedError: it was stopped.
        MillraceError: what the run had to tell, with the class of its exit code.
    """
    await ended(job)
    record = job.record(workspace)
    if record is None or record.outcome not in FINE or (job.process is not None and job.process.returncode):
        raise job.failure(record.outcome if record else "failed")
    return record
