"""How far estimates of memory were off in runs like this one, and what this one's is with that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline_lib.memory.store import MemoryStore

SHARE = "memory_share"  # the feature: measured / estimated
RUNS, FAR = 5, 1.0  # nearest ones at most, and how far they may be: standard deviations
# The spread of that share (of its log) that is expected before any run has told, and how many runs' worth that counts: small
# trainings here were measured between 0.9 and 1.25 of their estimate.
SPREAD, SPREAD_RUNS = 0.1, 4
BOUND = 2.0  # an estimate is corrected by this factor at most


@dataclass(frozen=True)
class Share:
    """Measured peak memory as a share of the estimate, with a 90 % interval for the next run, and whose it was."""

    value: float = 1.0
    low: float = 0.9
    high: float = 1.25
    runs: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; the numbers to four places."""
        numbers = {name: round(getattr(self, name), 4) for name in ("value", "low", "high")}
        return {**asdict(self), **numbers, "runs": list(self.runs)}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Share:
        """From `to_json`'s output; {}: nothing is known."""
        return cls(**{**told, "runs": tuple(told["runs"])}) if told else cls()

    def words(self) -> str:
        """For people."""
        if not self.runs:
            return "estimated; no run like this one has told how far that is off"
        many = f"{len(self.runs)} runs like this one" if len(self.runs) > 1 else f"run {self.runs[0]}"
        return f"estimated, × {self.value:.3g} as {many} measured"


def remembered_share(memory: MemoryStore, asked: Mapping[str, float | str]) -> Share:
    """The share that past runs like this one on this kind of machine let expect; 1 with the usual interval when none can tell.

    The interval is Student's for one more run, with the runs' spread pooled with the usual one (`SPREAD`). Value and interval
    stay within `BOUND`.

    Args:
        memory: of the workspace.
        asked: see `recalled.features_asked`.
    """
    guess = memory.guess(asked, of=SHARE, k=RUNS, far=FAR)
    if guess is None:
        return Share()
    from scipy.special import stdtrit

    logs = [math.log(value) for value in guess.values]
    n, middle = len(logs), math.fsum(logs) / len(logs)
    freedom = SPREAD_RUNS + n - 1
    spread = math.sqrt((SPREAD_RUNS * SPREAD**2 + math.fsum((log - middle) ** 2 for log in logs)) / freedom)
    half = float(stdtrit(freedom, 0.95)) * spread * math.sqrt(1 + 1 / n)
    value, low, high = (math.exp(min(max(x, -math.log(BOUND)), math.log(BOUND))) for x in (middle, middle - half, middle + half))
    return Share(value, low, high, guess.runs)
