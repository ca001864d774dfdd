"""Work that can be asked to stop: it runs in a thread, so that a signal reaches who waits for it, not the middle of a step."""

from __future__ import annotations

import contextvars
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

T = TypeVar("T")
PATIENCE_SECONDS = 20.0  # to save and leave; Prefect kills a cancelled flow run 30 s after its SIGTERM
INTERRUPT_SECONDS = 5.0  # for the interrupted work to let go of its files


def stoppable(work: Callable[[Callable[[], bool]], T], *, log: Callable[[str], None] = lambda line: None) -> T:
    """Do work and wait for it. What interrupts the waiting (Ctrl-C, SIGTERM, a cancellation, a timeout) asks it to stop first.

    No signal handler is replaced: the exception that the present one raises is what comes out in the end, when the work has
    left. A second one, or patience at its end, interrupts the work where it stands.

    Args:
        work: called with a function that says whether a stop is asked for; what it raises then is of no interest any more.
        log: told that a stop is under way.

    Raises: what the work raises, or what interrupted the waiting.
    """
    asked = threading.Event()
    future: Future[T] = Future()
    context = contextvars.copy_context()  # loggers and clients of Prefect find their run in it

    def body() -> None:
        try:
            future.set_result(context.run(work, asked.is_set))
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=body, name="stoppable", daemon=True)
    thread.start()
    try:
        return future.result()
    except BaseException:
        if future.done():
            raise
        asked.set()
        log("stopping: what is done is saved first; a second signal stops at once")
        try:
            wait([future], timeout=PATIENCE_SECONDS)
        finally:
            if not future.done():
                _interrupt(thread)
                wait([future], timeout=INTERRUPT_SECONDS)
        raise


def _interrupt(thread: threading.Thread) -> None:
    """Raise KeyboardInterrupt in a thread, at its next Python instruction."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(KeyboardInterrupt))
