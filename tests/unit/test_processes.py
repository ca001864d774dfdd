"""What a run started is ended with it, and Python's own helpers are left to the next search of this process."""

import multiprocessing
import subprocess
import sys
import time

from flows.processes import no_children_left


def test_children_are_ended_and_helpers_serve_the_next_search():
    context = multiprocessing.get_context("forkserver")
    for _ in range(2):
        begin = time.monotonic()
        with no_children_left():
            sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            worker = context.Process(target=time.sleep, args=(0.01,))
            worker.start()
            worker.join()
            assert worker.exitcode == 0
        sleeper.wait(1.0)  # raises where it goes on
        assert time.monotonic() - begin < 8, "nobody waits for a helper that listens to no signal"
