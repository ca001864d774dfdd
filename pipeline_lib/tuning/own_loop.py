"""Ask and tell: the search's samplers and its storage for a loop of one's own, in one process or in several.

```python
from pipeline_lib import tuning

search = tuning.open_search(Path("here"), "widths", {"rate": tuning.Range(1e-4, 1e-2), "width": [64, 96, 128]})
for _ in range(20):
    asked = tuning.ask(search)
    tuning.tell(search, asked, loss_of(**asked.values))
```
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pipeline_lib.config.model import TuneConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.tuning.space import Dimension, Value
from pipeline_lib.tuning.study import Study


@dataclass(frozen=True)
class Range:
    """Positive numbers from low to high, searched on a log scale."""

    low: float
    high: float


@dataclass(frozen=True)
class Asked:
    """A trial to be made."""

    number: int
    values: dict[str, Value]


def open_search(
    folder: Path,
    name: str,
    space: Mapping[str, Range | Sequence[Value]],
    *,
    sampler: str = "quick_gp",
    seed: int = 0,
    storage: str = "journal",
) -> Study:
    """Begin a search, or go on with it; several processes may.

    Args:
        folder: of its file ($MILLRACE_OPTUNA_URL names a database instead).
        name: the same name goes on.
        space: name -> range, or values to choose among.
        sampler: as `tune.sampler`.
        seed: of the sampler.
        storage: `journal` or `sqlite`.

    Raises:
        ConfigError: nothing can be searched; an unknown sampler or storage.
        RefusedError: a search of this name has another space.
    """
    for asked, field in ((sampler, "sampler"), (storage, "storage")):
        known = get_args(TuneConfig.model_fields[field].annotation)
        if asked not in known:
            raise ConfigError(f"{asked!r} is no {field}", where=name, fix=f"one of {', '.join(known)}")
    found = {}
    for key, one in space.items():
        if isinstance(one, Range):
            if not 0 < one.low < one.high < math.inf:
                raise ConfigError(
                    f"the range {one.low:g}…{one.high:g} holds nothing", where=key, fix="low must be above 0, high above low"
                )
            found[key] = Dimension(key, one.low, one.high, start=math.sqrt(one.low * one.high))
        elif len(one) > 1:
            found[key] = Dimension(key, options=tuple(one), start=one[0])
        else:
            raise ConfigError("fewer than two values are no choice", where=key, fix="name more, or leave it out")
    if not found:
        raise ConfigError("the space is empty: nothing would be searched", where=name)
    folder.mkdir(parents=True, exist_ok=True)
    return Study(folder, name, found, sampler=sampler, seed=seed, storage=storage, shared=True)


def ask(search: Study) -> Asked:
    """The next trial."""
    one = search.ask()
    return Asked(one["number"], dict(one["point"]))


def tell(search: Study, asked: Asked, loss: float | None, *, error: str = "") -> None:
    """How it went: a loss, less is better; None, or one that is no number: it failed."""
    if loss is None or not math.isfinite(loss):
        search.end(asked.number, "failed", error=error or "the loss is not finite", dev_loss=None)
    else:
        search.end(asked.number, "complete", [float(loss)], error="", dev_loss=float(loss))
