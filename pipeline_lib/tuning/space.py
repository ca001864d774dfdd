"""What is searched: factors around the scaling law's or the configured value, on a log scale."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.planning.laws import learning_rate

SEARCHABLE = ("learning_rate", "weight_decay")
Space = dict[str, tuple[float, float]]  # name -> factor range around 1


def checked_space(space: Mapping[str, tuple[float, float]], train: TrainConfig) -> Space:
    """The space to search, in a fixed order. A configured learning rate, and a weight decay of 0, are kept as they are.

    Raises:
        ConfigError: an unknown name, or a range that is not 0 < low ≤ 1 ≤ high.
    """
    for name, (low, high) in space.items():
        if name not in SEARCHABLE:
            near = difflib.get_close_matches(name, SEARCHABLE, n=1, cutoff=0.4)
            meant = f"did you mean {near[0]}?" if near else f"searchable are {', '.join(SEARCHABLE)}"
            raise ConfigError(f"{name!r} cannot be searched; {meant}", where="tune.space")
        if not 0 < low <= 1 <= high:
            raise ConfigError(
                f"the range {low:g}…{high:g} does not contain 1, the starting point",
                where=f"tune.space.{name}",
                fix="these are factors around the law's or the configured value: [0.5, 2.0] is half to twice",
            )
    fixed = {"learning_rate": train.learning_rate > 0, "weight_decay": train.weight_decay == 0}
    return {name: space[name] for name in SEARCHABLE if name in space and not fixed[name]}


def values_at(
    factors: Mapping[str, float], *, model: ModelConfig, train: TrainConfig, parameters: int, tokens: int
) -> dict[str, float]:
    """The values that factors stand for in a training of `tokens`; a missing factor is 1.

    Because the law knows the number of tokens, a factor that was best in a short trial carries over to the long training.

    Args:
        factors: name -> factor.
        model: what is trained.
        train: configured values.
        parameters: non-embedding parameters.
        tokens: of the training that the values are for.
    """
    law = learning_rate(parameters, tokens, start=model.start, lora=train.lora.rank > 0).value
    return {
        "learning_rate": (train.learning_rate or law) * factors.get("learning_rate", 1.0),
        "weight_decay": min(train.weight_decay * factors.get("weight_decay", 1.0), 1.0),
    }
