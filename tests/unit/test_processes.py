"""What a run started is ended with it, and Python's own helpers are left to the next search of this process."""

import multiprocessing
import subprocess
import sys
import time

import psutil

from flows.processes import HELPERS, no_children_left


def helpers() -> set[int]:
    """Process ids of those that Python itself has started beside this process."""
    children = psutil.Process().children()
    return {child.pid for child in children if any(name in word for word in child.cmdline() for name in HELPERS)}


def test_children_are_ended_and_helpers_serve_the_next_search():
    context, there = multiprocessing.get_context("forkserver"), set()
    for _ in range(2):
        with no_children_left():
            sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            worker = context.Process(target=time.sleep, args=(0.01,))
            worker.start()
            worker.join()
            assert worker.exitcode == 0
            there = there or helpers()
        sleeper.wait(1.0)  # raises where it goes on
        assert len(there) == 2
        assert helpers() == there  # nobody has waited for what listens to no signal
