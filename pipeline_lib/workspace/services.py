"""What a stage may ask of the world around it. Flows inject real ones; plain Python and tests get these quiet defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Mapper(Protocol):
    """Apply a picklable function to items, results in the items' order."""

    def __call__(self, function: Callable[[T], R], items: Sequence[T], /) -> list[R]:
        """Apply `function` to every item."""


def thread_mapper(workers: int) -> Mapper:
    """A mapper over `workers` threads (kernels release the GIL); one worker is a plain loop."""

    def apply(function: Callable[[T], R], items: Sequence[T], /) -> list[R]:
        if workers <= 1 or len(items) <= 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(function, items))

    return apply


class Task(Protocol):
    """Do one long piece of work under a name by which people see it while it goes (in Prefect: a task of its own)."""

    def __call__(self, name: str, work: Callable[[], T], /) -> T:
        """Do `work` in this thread; what it raises comes out."""


def plain_task(name: str, work: Callable[[], T], /) -> T:
    """Nobody is looking."""
    return work()


class Tracker(Protocol):
    """Where metrics, parameters and files of a run go (MLflow in production). Never raises because a server is down."""

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Log numbers at a step; batched in the background."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters once; a value that is already there stays."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""

    def child(self, name: str, *, tags: Mapping[str, str] | None = None) -> Tracker:
        """Start (or resume, by name) a nested run."""

    def end(self, status: str = "FINISHED") -> None:
        """End with the true status: FINISHED, FAILED or KILLED."""


class NullTracker:
    """Tracks nothing."""

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """Drop."""

    def params(self, values: Mapping[str, Any]) -> None:
        """Drop."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Drop."""

    def child(self, name: str, *, tags: Mapping[str, str] | None = None) -> NullTracker:
        """Itself."""
        return self

    def end(self, status: str = "FINISHED") -> None:
        """Nothing to end."""


@dataclass(frozen=True)
class Progress:
    """One line of progress: `done` of `total` `unit`s, and a note such as a rate or a loss."""

    stage: str
    done: float
    total: float
    unit: str
    note: str = ""

    def line(self) -> str:
        """For people: `Step 770/26,235 (2.9%) | loss 5.583 | …` of a training, `12 of 40 files · 3 MB/s` of others."""
        if self.unit == "steps" and self.total:
            step = f"Step {self.done:,.0f}/{self.total:,.0f} ({100 * self.done / self.total:.1f}%)"
            return f"{step} | {self.note}" if self.note else step
        of = f" of {self.total:,.6g}" if self.total else ""
        return f"{self.done:,.6g}{of} {self.unit}" + (f" · {self.note}" if self.note else "")


def now() -> datetime:
    """The wall clock, UTC; recorded stages and events only."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class Services:
    """Everything injected into a stage run."""

    mapper: Mapper = field(default_factory=lambda: thread_mapper(1))
    workers: int = 1
    task: Task = plain_task
    tracker: Tracker = field(default_factory=NullTracker)
    announce: Callable[[Progress], None] = lambda progress: None
    log: Callable[[str], None] = lambda line: None
    clock: Callable[[], datetime] = now
    started: datetime | None = None  # the flow's start; the window counts from here
    deadline: datetime | None = None  # the end of the run's window, margin not subtracted
    adaptive: bool = True  # False (`--recorded`): training follows its plan to the step, no re-planning by the clock …
    follow: tuple[Mapping[str, Any], ...] | None = None  # … but for the re-plans of the recorded run (`planning.replay`)
    should_stop: Callable[[], bool] = lambda: False  # a person or a signal asks for a clean stop
