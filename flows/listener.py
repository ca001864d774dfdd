"""Who listens to a run in this process: the command line's display. Without one, Prefect's log is all there is to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.services import Progress


@dataclass(frozen=True)
class Listener:
    """What is told, as it happens, in the thread of the work."""

    opened: Callable[[RunRecord], None] = lambda record: None
    progress: Callable[[Progress], None] = lambda progress: None


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def listener() -> Listener:
    """Who listens now."""
    return _listener.get() or Listener()


@contextmanager
def listening(to: Listener | None) -> Iterator[None]:
    """Tell `to` while inside."""
    token = _listener.set(to)
    try:
        yield
    finally:
        _listener.reset(token)
