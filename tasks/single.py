"""One long piece of work inside a stage as a Prefect task of its own, so that people see it go: a trial of a search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

T = TypeVar("T")


class Work:
    """What is to be done, and what came of it. A plain object: Prefect walks through dataclasses and collections."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.result: Any = None

    def do(self) -> None:
        """Keep the result here: Prefect has no use for it."""
        self.result = self.function()


@task(cache_policy=NO_CACHE, persist_result=False)
def run_work(work: Work) -> None:
    """Do it."""
    work.do()


def prefect_task(name: str, work: Callable[[], T], /) -> T:
    """Do `work` in this thread, as a task of this name in the flow run that this thread belongs to.

    Args:
        name: of the task run.
        work: what is to be done.
    """
    held = Work(work)
    run_work.with_options(task_run_name=name.replace("{", "(").replace("}", ")"))(held)
    result: T = held.result
    return result
