"""Made-up memories of runs, and a process that adds or moves them."""

import sys
from pathlib import Path

from pipeline_lib.memory.record import Remembered
from pipeline_lib.memory.store import Config, MemoryStore

GOALS = ("overnight fine-tune of mails", "a first model of poems", "licences, quickly")


def memory(index: int, **features: float | str) -> Remembered:
    """The index-th run of a year: a month has a twelfth of them."""
    month, parameters = index % 12 + 1, 1e6 * (1 + index % 7)
    told = {"family": "llama", "cpu": "EPYC", "gpu": "", "parameters": parameters, "tokens_per_second": 2e10 / parameters}
    return Remembered(
        run_id=f"2025{month:02d}01-{index:06d}-aa",
        goal=GOALS[index % 3],
        started=f"2025-{month:02d}-01T00:00:00+00:00",
        ended=f"2025-{month:02d}-01T{index % 24:02d}:00:00+00:00",
        outcome="completed",
        features={**told, **features},
        scores={"earth": 0.4},
    )


def store(folder: Path, **sizes: float) -> MemoryStore:
    """A store; everything stays warm unless told otherwise."""
    return MemoryStore(Config(folder, **{"warm_days": 1e5, **sizes}))


if __name__ == "__main__":  # FOLDER add FIRST COUNT | FOLDER tidy WARM
    folder, what, *numbers = sys.argv[1:]
    if what == "add":
        for index in range(int(numbers[0]), int(numbers[0]) + int(numbers[1])):
            store(Path(folder)).add(memory(index))
    else:
        store(Path(folder), warm_memory_size=int(numbers[0])).tidy()
