"""Asynchronous work called from where nothing can be awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, from a script or beside a running event loop (in a thread with a loop of its own).

    What interrupts the waiting (Ctrl-C, the stop button of a notebook) cancels the work.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    found: list[T] = []
    problem: list[BaseException] = []
    begun = threading.Event()
    cancel: list[Callable[[], object]] = []

    async def held() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
        begun.set()
        return await task

    def run() -> None:
        try:
            found.append(asyncio.run(held()))
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    begun.wait()
    try:
        thread.join()
    except BaseException:
        cancel[0]()
        thread.join()
        raise
    if problem:
        raise problem[0]
    return found[0]
