"""The mapper of sharded stages: Prefect's task runner, one mapped task a batch of some seconds of work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from pipeline_lib.config.resources import ExecutionConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.extensions import active_extensions, load_extensions
from pipeline_lib.workspace.services import Mapper, thread_mapper

T = TypeVar("T")
R = TypeVar("R")

BATCH_SECONDS = 5.0  # a mapped task costs Prefect 10-40 ms (SQLite), a process 2.4 s to start: batches must dwarf that


class Batch:
    """Work for one mapped task. A plain object: Prefect, Dask and Ray look for futures in collections and dataclasses, item by
    item, and Dask takes them apart."""

    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any], modules: tuple[str, ...]) -> None:
        self.function, self.items, self.modules = function, items, modules

    def done(self) -> list[Any]:
        """Apply the function; what is returned is small (shards lie in files)."""
        load_extensions(self.modules)
        return [self.function(item) for item in self.items]


@task(name="shards", task_run_name="shards {first}-{last}", cache_policy=NO_CACHE, persist_result=False)
def run_batch(batch: Batch, first: int, last: int) -> list[Any]:
    """Do a batch, perhaps in another process."""
    return batch.done()


def workers_of(execution: ExecutionConfig) -> int:
    """How many workers data stages have."""
    return execution.workers or len(os.sched_getaffinity(0))


@contextmanager
def task_runner(execution: ExecutionConfig) -> Iterator[TaskRunner[Any]]:
    """The configured Prefect task runner, started.

    Raises:
        ConfigError: the runner needs an extra that is not installed.
    """
    workers = workers_of(execution)
    runner: TaskRunner[Any]
    if execution.task_runner == "threads":
        runner = ThreadPoolTaskRunner(max_workers=workers)
    elif execution.task_runner == "processes":
        runner = ProcessPoolTaskRunner(max_workers=workers)
    else:
        runner = _cluster_runner(execution)
    with runner as started:
        yield started


def _cluster_runner(execution: ExecutionConfig) -> TaskRunner[Any]:
    try:
        if execution.task_runner == "dask":
            from prefect_dask import DaskTaskRunner

            return DaskTaskRunner(address=execution.address or None)  # type: ignore[no-any-return]
        from prefect_ray import RayTaskRunner

        return RayTaskRunner(address=execution.address or None)  # type: ignore[no-any-return]
    except ImportError as error:
        raise ConfigError(
            f"the task runner {execution.task_runner!r} is not installed",
            where="execution.task_runner",
            fix=f"pip install 'millrace[{execution.task_runner}]', or use threads",
        ) from error


def task_mapper(execution: ExecutionConfig) -> Mapper:
    """A mapper over the configured task runner.

    The first items, one a worker, are done in plain threads of this process (kernels release the GIL); they show how long an
    item takes. The rest goes out as Prefect tasks where that is more than a batch of work, and is done here where it is not.
    """
    workers = workers_of(execution)
    here = thread_mapper(workers)

    def apply(function: Callable[[T], R], items: Sequence[T], /) -> list[R]:
        begin = time.monotonic()
        done = here(function, items[:workers])
        item_seconds = max(time.monotonic() - begin, 1e-6)
        rest = items[len(done) :]
        share = -(-len(rest) // workers)
        if item_seconds * share < BATCH_SECONDS:
            return done + here(function, rest)
        size = max(1, min(round(BATCH_SECONDS / item_seconds), share))
        with task_runner(execution) as runner:
            futures = [
                runner.submit(
                    run_batch,
                    parameters={
                        "batch": Batch(function, rest[start : start + size], active_extensions()),
                        "first": len(done) + start,
                        "last": len(done) + min(start + size, len(rest)) - 1,
                    },
                )
                for start in range(0, len(rest), size)
            ]
            return done + [result for future in futures for result in future.result()]

    return apply
