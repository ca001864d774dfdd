"""The run record (`runs/<run_id>.json`): the truth about a run."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline_lib.errors import ConfigError, DamagedError, MillraceError, NotFoundError
from pipeline_lib.workspace.artifact import ArtifactRef
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.lease import is_free, lock_of
from pipeline_lib.workspace.process import born, host, is_alive

RECORD_FORMAT = 2
OUTCOMES = ("running", "completed", "nothing_new", "failed", "cancelled", "killed")


def new_run_id() -> str:
    """Sortable by time to the microsecond, unique: `20261120-054512-9f3ac1d2` (5 hex digits of microseconds, 3 random)."""
    now = datetime.now(UTC)
    return f"{now:%Y%m%d-%H%M%S}-{now.microsecond:05x}{secrets.randbits(12):03x}"


@dataclass
class StageRecord:
    """What happened to one stage in this run."""

    state: str = "pending"  # pending | running | made | reused | supplied | failed | cancelled | killed | skipped
    ref: dict[str, Any] | None = None  # ArtifactRef as JSON
    seconds: float = 0.0
    error: str = ""
    attempt: int = 0


@dataclass
class Attempt:
    """One life of the run's process."""

    started: str
    host: str
    pid: int
    ended: str = ""
    state: str = "running"
    born: float = 0.0  # when the process started: ids are reused, this is not


@dataclass
class RunRecord:
    """See the module. Mutable while the run lives; every change is saved at once, atomically."""

    run_id: str
    pipeline: str
    goal: str = ""
    config: dict[str, Any] = field(default_factory=dict)  # resolved: mutable names replaced by digests
    config_digest: str = ""
    resolved: dict[str, str] = field(default_factory=dict)  # mutable name -> what it stood for at the start
    parent: str = ""
    started: str = ""
    window_from: str = ""  # where the window begins: the start, or the retry that opened a new one
    deadline: str = ""
    ended: str = ""
    outcome: str = "running"
    error: str = ""
    attempts: list[Attempt] = field(default_factory=list)
    stages: dict[str, StageRecord] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    follows: list[dict[str, Any]] | None = None  # `--recorded`: the changes of the schedule to make at their steps
    prefect: dict[str, str] = field(default_factory=dict)  # {"flow_run_id", "url"}
    mlflow: dict[str, str] = field(default_factory=dict)  # {"run_id", "experiment_id", "url"}
    machine: dict[str, Any] = field(default_factory=dict)
    # what memory recalls runs by: tokens, parameters, tokens/s, losses, seconds …
    features: dict[str, float | str] = field(default_factory=dict)
    graded: dict[str, Any] = field(default_factory=dict)  # the plan's promises beside what came of them
    verdict: dict[str, Any] = field(default_factory=dict)  # the gate's, and what was decided by whom
    report: str = ""  # path of the rendered report
    pinned: bool = False  # as of loading; a file beside the record is the truth, so that a live run cannot overwrite it
    format: int = RECORD_FORMAT

    @property
    def decided(self) -> str:
        """What another than the gate made of its verdict ("promoted by anna", "kept back by the time limit"), or ""."""
        decision, by = self.verdict.get("decision"), self.verdict.get("decided_by", "gate")
        return f"{'promoted' if decision == 'promote' else 'kept back'} by {by}" if decision and by != "gate" else ""

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunRecord:
        """From `to_json`'s output.

        Raises:
            ConfigError: a newer version of millrace wrote it.
        """
        fields = dict(value)
        if fields["format"] > RECORD_FORMAT:
            raise ConfigError(
                f"run {fields['run_id']} has record format {fields['format']}, this version knows up to {RECORD_FORMAT}",
                fix="install the version of millrace that wrote it, or newer",
            )
        fields["attempts"] = [Attempt(**a) for a in fields.get("attempts", [])]
        fields["stages"] = {name: StageRecord(**s) for name, s in fields.get("stages", {}).items()}
        return cls(**fields)

    def stage(self, name: str) -> StageRecord:
        """The record of a stage, made when missing."""
        return self.stages.setdefault(name, StageRecord())

    def ref(self, name: str) -> ArtifactRef | None:
        """The artifact a stage ended with, or None."""
        record = self.stages.get(name)
        return ArtifactRef.from_json(record.ref) if record and record.ref else None


_held: dict[tuple[str, int], FileLock] = {}  # by lock file and process: a forked child holds none of its parent's


class RunBook:
    """The folder of run records.

    Beside the record of a run that goes on lies `<run_id>.lock`, locked by the run's process for as long as it lives: names of
    machines and process ids change their meaning (containers), a lock of the operating system does not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, run_id: str) -> Path:
        """Where a record lies; refuses names that are not run ids."""
        if not run_id or not all(c.isalnum() or c == "-" for c in run_id):
            raise NotFoundError(f"{run_id!r} is not a run id", fix="`millrace runs` lists them")
        return self.folder / f"{run_id}.json"

    def _pin(self, run_id: str) -> Path:
        return self.path(run_id).with_suffix(".pinned")

    def _lock(self, run_id: str) -> Path:
        return self.path(run_id).with_suffix(".lock")

    def hold(self, run_id: str) -> None:
        """Say that this process works on a run, until it ends or lets go; nothing where it does already."""
        path = self._lock(run_id)
        if (str(path), os.getpid()) not in _held:
            lock = lock_of(path)
            lock.acquire()
            _held[str(path), os.getpid()] = lock

    def let_go(self, run_id: str) -> None:
        """The run is over for this process."""
        path = self._lock(run_id)
        if lock := _held.pop((str(path), os.getpid()), None):
            path.unlink(missing_ok=True)  # while held: whoever waits for it opens a new file
            lock.release()

    def clear(self, run_id: str) -> None:
        """Take away the lock file that a dead process left."""
        self._lock(run_id).unlink(missing_ok=True)

    def held_here(self, run_id: str) -> bool:
        """Whether this very process works on a run."""
        return (str(self._lock(run_id)), os.getpid()) in _held

    def alive(self, record: RunRecord) -> bool:
        """Whether the process that works on a run lives. Records of before the locks: by process id."""
        path = self._lock(record.run_id)
        if path.exists():
            return not is_free(path)
        last = record.attempts[-1] if record.attempts else None
        return last is not None and is_alive(last.pid, last.born, last.host)

    def save(self, record: RunRecord) -> None:
        """Write a record atomically."""
        fault_point("record.before_save")
        write_json(self.path(record.run_id), record.to_json())

    def load(self, run_id: str) -> RunRecord:
        """Read a record; `latest` is the newest; a unique beginning is enough.

        Raises:
            NotFoundError: there is no such run.
            DamagedError: its record cannot be read.
        """
        names = self.ids()
        if run_id == "latest":
            if not names:
                raise NotFoundError("no runs yet", where=str(self.folder), fix="start one: `millrace run`")
            run_id = names[-1]
        matches = [name for name in names if name.startswith(run_id)]
        if run_id not in names and len(matches) != 1:
            what = f"{len(matches)} runs begin with {run_id!r}" if matches else f"no run {run_id!r}"
            raise NotFoundError(what, where=str(self.folder), fix="`millrace runs` lists them")
        return self._read(run_id if run_id in names else matches[0])

    def _read(self, run_id: str) -> RunRecord:
        path = self.path(run_id)
        try:
            record = RunRecord.from_json(read_json(path))
        except (ValueError, TypeError, KeyError) as error:
            what = f"the run's record cannot be read ({type(error).__name__}: {error})"
            raise DamagedError(what, where=str(path), fix="restore it from a backup, or remove it") from None
        record.pinned = self._pin(run_id).exists()
        return record

    def ids(self) -> list[str]:
        """All run ids, oldest first."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def all(self) -> Iterator[RunRecord]:
        """All readable records, oldest first; one that cannot be read is passed over (verify reports it)."""
        for name in self.ids():
            try:
                yield self._read(name)
            except (OSError, MillraceError):
                continue

    def pin(self, run_id: str, *, pinned: bool = True) -> RunRecord:
        """Keep a run and everything it needs from garbage collection, or no longer."""
        record = self.load(run_id)
        mark = self._pin(record.run_id)
        if pinned:
            mark.touch()
        else:
            mark.unlink(missing_ok=True)
        record.pinned = pinned
        return record

    def unpin(self, run_id: str) -> RunRecord:
        """Leave a run to garbage collection again."""
        return self.pin(run_id, pinned=False)


def this_attempt() -> Attempt:
    """An attempt of this process, from now."""
    return Attempt(started=datetime.now(UTC).isoformat(), host=host(), pid=os.getpid(), born=born())
