"""Interrupting who waits lets the work save first; a second time ends it where it stands."""

import os
import signal
import threading
import time

import pytest

from pipeline_lib.workspace.stoppable import stoppable


def interrupt_after(seconds, times=1):
    def body():
        for _ in range(times):
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=body, daemon=True).start()


def test_results_and_errors_pass_through():
    assert stoppable(lambda asked: 7) == 7
    with pytest.raises(ValueError, match="mine"):
        stoppable(lambda asked: int("mine"))


def test_the_first_interrupt_asks():
    said, saved = [], []

    def work(asked):
        interrupt_after(0.05)
        while not asked():
            time.sleep(0.01)
        saved.append("checkpoint")
        raise ValueError("of no interest any more")

    with pytest.raises(KeyboardInterrupt):
        stoppable(work, log=said.append)
    assert saved == ["checkpoint"]
    assert "second signal" in said[0]


def test_the_second_interrupt_does_not_wait():
    ended = threading.Event()

    def work(asked):
        interrupt_after(0.1, times=2)
        try:
            while True:
                time.sleep(0.01)
        finally:
            ended.set()

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        stoppable(work)
    assert time.monotonic() - begin < 3
    assert ended.is_set()
