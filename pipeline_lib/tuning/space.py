"""What is searched: factors around the scaling law's or the configured value, on a log scale, and choices among named values."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline_lib.config.choice import taken
from pipeline_lib.config.model import ModelConfig, PlanConfig, TrainConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.planning.laws import learning_rate, step_law_batch_tokens

FACTORS = {
    "learning_rate": "train.learning_rate",
    "weight_decay": "train.weight_decay",
    "batch_tokens": "train.batch_tokens",
    "warmup_share": "plan.warmup_share",
    "max_grad_norm": "train.max_grad_norm",
    "lora_alpha": "train.lora.alpha",
    "lora_dropout": "train.lora.dropout",
}
"""What a factor multiplies, by its name."""
CHOICES = {
    "optimizer": "train.optimizer",
    "schedule": "train.schedule",
    "clipping": "train.clipping",
    "lora_rank": "train.lora.rank",
    "depth": "model.depth",
    "width": "model.width",
    "heads": "model.heads",
}
ARCHITECTURE = ("depth", "width", "heads")
MOST = {"weight_decay": 1.0, "warmup_share": 0.5, "lora_dropout": 0.9}  # a factor leads no further
TRIAL_WARMUP = 0.1  # of a trial's steps; what a factor on `warmup_share` multiplies there
Value = float | int | str
Point = Mapping[str, Value]  # name -> factor or chosen value; what is missing is as configured


@dataclass(frozen=True)
class Dimension:
    """One thing that is searched: a range of factors around 1, or some values of which one is configured."""

    name: str
    low: float = 1.0
    high: float = 1.0
    options: tuple[Value, ...] = ()
    start: Value = 1.0

    def holds(self, value: object) -> bool:
        """Whether a value lies in it."""
        if self.options:
            return value in self.options
        return isinstance(value, int | float) and self.low <= value <= self.high

    def to_json(self) -> list[Value]:
        """Low and high, or the options."""
        return list(self.options) or [self.low, self.high]


Space = dict[str, Dimension]


def checked_space(
    space: Mapping[str, tuple[float, float]],
    train: TrainConfig,
    *,
    choices: Mapping[str, Sequence[Value]] | None = None,
    model: ModelConfig | None = None,
) -> Space:
    """The space to search, in a fixed order. A configured learning rate, and a weight decay of 0, are kept as they are.

    Args:
        space: factor ranges, `tune.space`.
        train: configured values.
        choices: values to choose among, `tune.choices`.
        model: configured numbers.

    Raises:
        ConfigError: nothing is named; an unknown name; a range that is not 0 < low ≤ 1 ≤ high; options without the configured
            one; LoRA's settings without LoRA, or an architecture for a model that exists.
    """
    choices, model = choices or {}, model or ModelConfig()
    if not space and not choices:
        raise ConfigError(
            "the space is empty: nothing would be searched", where="tune.space",
            fix="name a range, such as {learning_rate: [0.5, 2.0]}, or set tune.trials to 0",
        )  # fmt: skip
    for names, known, where in ((space, FACTORS, "tune.space"), (choices, CHOICES, "tune.choices")):
        for name in names:
            if name == "sequence_length":
                raise ConfigError(
                    "sequence_length cannot be searched: the cache that trials and the training read has one length",
                    where=f"{where}.sequence_length",
                    fix="take it out; run `--until tune` once with each pack.sequence_length and compare",
                )
            if name not in known:
                raise ConfigError(f"{name!r} cannot be searched; {_meant(name, known)}", where=where)
    for name in (*space, *choices):
        _check_sense(name, train, model)
    for name, (low, high) in space.items():
        if not (0 < low <= 1 <= high and math.isfinite(high)):
            raise ConfigError(
                f"the range {low:g}…{high:g} does not contain 1, the starting point",
                where=f"tune.space.{name}",
                fix="these are factors around the law's or the configured value: [0.5, 2.0] is half to twice",
            )
    sections = {"train": train, "model": model, "plan": PlanConfig()}
    found = {name: Dimension(name, *space[name]) for name in FACTORS if name in space and not _fixed(name, train)}
    for name, path in CHOICES.items():
        if name in choices:
            start = _configured(sections, path)
            if start not in choices[name]:
                raise ConfigError(
                    f"the options {', '.join(map(str, choices[name])) or '(none)'} leave out {start}, which is configured: the "
                    "default that every other is measured against",
                    where=f"tune.choices.{name}", fix=f"add {start}",
                )  # fmt: skip
            found[name] = Dimension(name, options=tuple(dict.fromkeys(choices[name])), start=start)
            for option in found[name].options:
                taken({path: option}, **({} if name in ARCHITECTURE else sections))
    return {name: one for name, one in found.items() if one.low < one.high or len(one.options) > 1}


def default_point(space: Space) -> dict[str, Value]:
    """Everything as the law or the configuration has it."""
    return {name: one.start for name, one in space.items()}


def applied(point: Point, train: TrainConfig, model: ModelConfig) -> dict[str, Any]:
    """The settings of training and model that a point stands for, by dotted name; without learning rate, weight decay
    (`values_at`) and warm-up (a share of the plan's or the trial's own).

    Args:
        point: factors and chosen values.
        train, model: configured.
    """
    sections = {"train": train, "model": model}
    found: dict[str, Any] = {}
    for name, value in point.items():
        path = FACTORS.get(name) or CHOICES[name]
        if name in CHOICES:
            found[path] = value
        elif name not in ("learning_rate", "weight_decay", "warmup_share"):
            scaled = min(float(_configured(sections, path)) * float(value), MOST.get(name, math.inf))
            found[path] = max(round(scaled), 16) if name == "batch_tokens" else scaled
    if "width" in point:  # the feed-forward block keeps its proportion
        found["model.ffn_width"] = max(round(model.ffn_width * int(point["width"]) / model.width), 16)
    return found


def values_at(factors: Point, *, model: ModelConfig, train: TrainConfig, parameters: int, tokens: int) -> dict[str, float]:
    """Learning rate and weight decay that factors stand for in a training of `tokens`; a missing factor is 1.

    Because the law knows parameters and tokens, a factor that was best in a short trial, or in a smaller model, carries over. A
    batch that is searched takes the rate with its square root (Malladi et al. 2022, Adam's scaling rule).

    Args:
        factors: name -> factor.
        model: what is trained.
        train: configured values.
        parameters: non-embedding parameters.
        tokens: of the training that the values are for.
    """
    law = learning_rate(parameters, tokens, start=model.start, lora=train.lora.rank > 0).value
    batch = 1.0 if train.learning_rate else math.sqrt(float(factors.get("batch_tokens", 1.0)))
    return {
        "learning_rate": (train.learning_rate or law) * float(factors.get("learning_rate", 1.0)) * batch,
        "weight_decay": min(train.weight_decay * float(factors.get("weight_decay", 1.0)), 1.0),
    }


def described(
    space: Space, *, model: ModelConfig, train: TrainConfig, plan: PlanConfig, parameters: int, tokens: int
) -> list[dict[str, Any]]:
    """The space in values of a training of `tokens`: {"name", "setting", "low", "centre", "high", "options", "why"}.

    Args:
        space: a checked one.
        model, train, plan: configured.
        parameters: non-embedding parameters.
        tokens: of the training.
    """
    law = learning_rate(parameters, tokens, start=model.start, lora=train.lora.rank > 0)
    rows = []
    for name, one in space.items():
        row: dict[str, Any] = {"name": name, "setting": FACTORS.get(name) or CHOICES[name], "options": list(one.options)}
        if one.options:
            rows.append({**row, "low": None, "centre": one.start, "high": None, "why": "configured, among those named"})
            continue
        row["why"] = "configured"
        if name == "learning_rate":
            centre, row["why"] = law.value, law.why
        else:
            centre = float(_configured({"train": train, "model": model, "plan": plan}, FACTORS[name]))
        if name == "batch_tokens":
            row["why"] = f"configured; Step Law's batch for {tokens:,} tokens is {step_law_batch_tokens(max(tokens, 1)):,.0f}"
        most = MOST.get(name, math.inf)
        rows.append({**row, "low": min(centre * one.low, most), "centre": centre, "high": min(centre * one.high, most)})
    return rows


def _configured(sections: Mapping[str, Any], path: str) -> Any:
    value: Any = sections
    for part in path.split("."):
        value = value[part] if isinstance(value, Mapping) else getattr(value, part)
    return value


def _fixed(name: str, train: TrainConfig) -> bool:
    return (name == "learning_rate" and train.learning_rate > 0) or (name == "weight_decay" and train.weight_decay == 0)


def _check_sense(name: str, train: TrainConfig, model: ModelConfig) -> None:
    if name.startswith("lora_") and not train.lora.rank:
        raise ConfigError(
            f"{name} is searched, but train.lora.rank is 0: every parameter is trained", where="tune",
            fix="set train.lora.rank, or take it out of the space",
        )  # fmt: skip
    if name in ARCHITECTURE and model.start != "scratch":
        raise ConfigError(
            f"{name} is searched, but the model exists: model.start is {model.start}", where="tune.choices",
            fix="set model.start to scratch, or take it out of the space",
        )  # fmt: skip


def _meant(name: str, known: Mapping[str, str]) -> str:
    if name in FACTORS or name in CHOICES:
        return f"it belongs into {'tune.space' if name in FACTORS else 'tune.choices'}"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]}?" if near else f"searchable are {', '.join(known)}"
