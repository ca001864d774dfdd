"""Peak memory of a stretch of work: this process and the children it starts meanwhile, sampled by a thread."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

import psutil

SAMPLE_SECONDS = 0.05  # 20 µs a sample: 0.04 % of a core
CHILDREN_EVERY = 20  # listing children reads all of /proc: once a second


def process_peak_bytes() -> int:
    """Largest resident memory of this process since it began."""
    info = psutil.Process().memory_info()
    if windows := getattr(info, "peak_wset", 0):
        return int(windows)
    with contextlib.suppress(OSError):  # what getrusage tells of a process on Linux includes its parent's peak
        if told := re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return 1024 * int(told[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class PeakMemory:
    """`with PeakMemory() as peak: …` then `peak.bytes`: the largest resident memory seen meanwhile."""

    def __init__(self) -> None:
        self.bytes = 0
        self._own = psutil.Process()
        self._children: list[psutil.Process] = []
        self._begun = time.time()  # older children (servers) are not part of the work
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        count = 0
        while not self._done.wait(SAMPLE_SECONDS):
            if count % CHILDREN_EVERY == 0:
                with contextlib.suppress(psutil.Error):
                    self._children = [c for c in self._own.children(recursive=True) if c.create_time() >= self._begun]
            self._sample()
            count += 1

    def _sample(self) -> None:
        total = 0
        for process in (self._own, *self._children):
            with contextlib.suppress(psutil.Error):
                total += int(process.memory_info().rss)
        self.bytes = max(self.bytes, total)
