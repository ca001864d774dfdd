"""Asynchronous work called from where nothing can be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
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
    interrupt: Future[Callable[[], object]] = Future()

    async def held() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
        interrupt.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        return await task

    with ThreadPoolExecutor(1) as pool:  # leaving it waits until the work has ended, cancelled or not
        working = pool.submit(asyncio.run, held())
        try:
            return working.result()
        finally:
            if not working.done():
                interrupt.result()()
