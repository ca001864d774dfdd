"""What a point would be as a training, and whether it may run: refused by arithmetic, before it costs anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline_lib.config.choice import taken
from pipeline_lib.config.model import ModelConfig, Precision, TrainConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.hardware.machine import training_device
from pipeline_lib.planning.memory import count_parameters, estimate_memory
from pipeline_lib.planning.window import split_batch
from pipeline_lib.tuning.budget import TrialPlan
from pipeline_lib.tuning.pruning import Rule
from pipeline_lib.tuning.rungs import Rung, rungs_of
from pipeline_lib.tuning.space import ARCHITECTURE, MOST, TRIAL_WARMUP, Point, applied, values_at
from pipeline_lib.tuning.trial import Job

GIB = 1 << 30
PARAMETER_SLACK = 1.1  # a searched architecture may have a tenth more than the configured one, unless a budget is named


@dataclass(frozen=True)
class Setting:
    """What all trials of a search share.

    `model` and `train` are as configured, `real` has the numbers of the model that is really trained, `rows` its embedding's.
    """

    home: Path
    folder: Path
    cache: str
    data: Mapping[str, Any]
    model: ModelConfig
    real: ModelConfig
    rows: int
    train: TrainConfig
    plan: TrialPlan
    rule: Rule
    precision: Precision
    threads: int
    seed: int
    memory_limit: int
    most_parameters: int = 0
    alone: bool = True


@dataclass(frozen=True)
class Trial:
    """A point as a training."""

    model: ModelConfig
    train: TrainConfig
    values: dict[str, float]  # learning rate and weight decay
    batch_sequences: int
    micro_batch: int
    warmup_share: float
    parameters: int
    memory_bytes: int  # estimated, at the peak
    rungs: tuple[Rung, ...]
    refusal: str = ""  # why it must not run
    chosen: dict[str, Any] = field(default_factory=dict)  # settings that differ from the configured ones, by dotted name


def trial_of(point: Point, setting: Setting) -> Trial:
    """The training that a point stands for in this search, with the reason why it must not run, or ""."""
    chosen, refusal = applied(point, setting.train, setting.model), ""
    try:
        sections = taken(chosen, train=setting.train, model=setting.model)
    except ConfigError as error:
        sections, refusal = {"train": setting.train, "model": setting.model}, error.what
    train, model = sections["train"], sections["model"]
    real = model if set(ARCHITECTURE) & point.keys() else setting.real
    count = count_parameters(real, setting.rows)
    length = int(setting.data["sequence_length"])
    wanted = setting.plan.batch_sequences * float(point.get("batch_tokens", 1.0))
    batch, micro = split_batch(round(wanted * length), sequence_length=length, micro_batch=setting.plan.micro_batch)
    memory = estimate_memory(
        real, vocabulary_size=setting.rows, sequence_length=length, micro_batch=micro, precision=setting.precision,
        optimizer=train.optimizer, lora=train.lora, accumulation=batch // micro, checkpointing=train.activation_checkpointing,
        device="cuda" if training_device().type == "cuda" else "cpu",
    ).total  # fmt: skip
    most = setting.most_parameters or round(PARAMETER_SLACK * count_parameters(setting.real, setting.rows).total)
    if not refusal and set(ARCHITECTURE) & point.keys() and count.total > most:
        refusal = f"{count.total:,} parameters, {most:,} are the budget"
    if not refusal and memory > setting.memory_limit:
        refusal = f"needs {memory / GIB:.2f} GiB by the estimate, {setting.memory_limit / GIB:.2f} GiB may be used"
    tokens = setting.plan.tokens(length)
    values = values_at(point, model=model, train=train, parameters=count.without_embeddings, tokens=tokens)
    rule, steps = setting.rule, max(round(tokens / (batch * length)), 1)
    # A schedule that decays from the start cannot be read early: such a trial has one rung.
    rungs = rungs_of(steps, rungs=rule.rungs if train.schedule == "wsd" else 1, reduction=rule.reduction)
    share = min(TRIAL_WARMUP * float(point.get("warmup_share", 1.0)), MOST["warmup_share"])
    return Trial(model, train, values, batch, micro, share, count.total, memory, rungs, refusal, chosen)


def job_of(number: int, rung: int, trial: Trial, setting: Setting, *, seed: int = 0) -> Job:
    """The work of bringing a trial to a rung. Where it has fewer rungs than the search, the last one is meant.

    Args:
        number: of the trial.
        rung: of the search.
        trial: what it is.
        setting: of the search.
        seed: added to the search's: a repeat has another one.
    """
    at = rung - (setting.rule.rungs - len(trial.rungs))
    return Job(
        number=number, rung=max(at, 0), rungs=trial.rungs, folder=setting.folder / f"trial-{number}", home=setting.home,
        cache=setting.cache, sequence_length=int(setting.data["sequence_length"]),
        vocabulary_size=int(setting.data["vocabulary_size"]), model=trial.model, train=trial.train,
        learning_rate=trial.values["learning_rate"], weight_decay=trial.values["weight_decay"],
        batch_sequences=trial.batch_sequences, micro_batch=trial.micro_batch, warmup_share=trial.warmup_share,
        precision=setting.precision, seed=setting.seed + seed, threads=setting.threads,
        memory_bytes=trial.memory_bytes, alone=setting.alone,
    )  # fmt: skip
