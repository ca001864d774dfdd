"""How much a search may cost and what a trial gets of it. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline_lib.config.model import TrainConfig, TuneConfig
from pipeline_lib.planning.laws import step_law_batch_tokens
from pipeline_lib.planning.profiles import at_batch
from pipeline_lib.planning.window import split_batch
from pipeline_lib.tuning.rungs import FEWEST_STEPS, mean_share

WANTED_STEPS = 40  # fewer tell warm-up from warm-up only: the batch of trials shrinks towards the law's first
WINDOWLESS_STEPS = 50  # at most, without a window and without `tune.steps`
WINDOWLESS_SHARE = 0.2  # of `train.max_steps`
REPORTS = 4  # dev evaluations of a trial without rungs: its curve
DEV_SEQUENCES = 32
# Of the calibrated speed: the Trainer's start, the study's database, drift; and small steps pay the optimizer more often
# (measured: trials of 1,536 tokens a step run at 0.75 of the speed of the profile with their micro-batch).
SAFETY = 0.75


@dataclass(frozen=True)
class TrialPlan:
    """What every trial of a study does; fixed at the study's beginning, so that trials before and after a kill compare."""

    trials: int
    steps: int
    batch_sequences: int
    micro_batch: int
    seconds: float  # for the whole search; 0: no limit
    repeats: int = 0  # further seeds of the best point and of the default

    def tokens(self, sequence_length: int) -> int:
        """Training tokens of a trial."""
        return self.steps * self.batch_sequences * sequence_length


def plan_trials(
    tune: TuneConfig,
    train: TrainConfig,
    *,
    calibrated: Mapping[str, Any],
    profile: Mapping[str, Any],
    sequence_length: int,
    seconds: float | None,
) -> TrialPlan:
    """Steps and batch of a trial, and how many trials are possible (0: not even two); repeats go before trials do.

    Args:
        tune: wanted trials and steps.
        train: the batch of the training that is searched for.
        calibrated: details of `calibrate`.
        profile: the profile trials run with.
        sequence_length: tokens in a sequence.
        seconds: the search's share of the window, None without a window.
    """
    rate = _rate(calibrated, profile, int(profile["micro_batch"]))
    batch, micro = split_batch(train.batch_tokens, sequence_length=sequence_length, micro_batch=int(profile["micro_batch"]))
    if seconds is None:
        share = math.ceil(train.max_steps * WINDOWLESS_SHARE) if train.max_steps else WINDOWLESS_STEPS
        steps = tune.steps or max(min(share, WINDOWLESS_STEPS), FEWEST_STEPS)
        return TrialPlan(tune.trials, steps, batch, micro, 0.0, tune.repeats)
    extra = calibrated["build_seconds"] + REPORTS * DEV_SEQUENCES * sequence_length / calibrated["evaluate_tokens_per_second"]
    counts = [(n, repeats) for repeats in dict.fromkeys((tune.repeats, 0)) for n in range(tune.trials, 1, -1)]
    if tune.steps:
        cost = tune.steps * batch * sequence_length / rate + extra
        fitting = (pair for pair in counts if cost * full_trials(tune, *pair, steps=tune.steps) <= seconds)
        trials, repeats = next(fitting, (0, 0))
        return TrialPlan(trials, tune.steps, batch, micro, seconds, repeats)
    for trials, repeats in counts:
        tokens = max(seconds / full_trials(tune, trials, repeats, steps=WANTED_STEPS) - extra, 0.0) * rate
        sequences, passes = _batch(tokens, train, sequence_length, int(profile["micro_batch"]))
        steps = int(tokens / rate * _rate(calibrated, profile, passes) / (sequences * sequence_length))
        if steps >= FEWEST_STEPS:
            return TrialPlan(trials, steps, sequences, passes, seconds, repeats)
    return TrialPlan(0, 0, batch, micro, seconds)


def full_trials(tune: TuneConfig, trials: int, repeats: int, *, steps: int) -> float:
    """What a search costs, in trials of full length: the default, the others as far as they get, and the repeats.

    Side by side, processes share the machine: nothing is gained or lost here.
    """
    pruner = "none" if len(tune.objectives) > 1 else tune.pruner
    share = mean_share(steps, rungs=tune.rungs, reduction=tune.reduction, pruner=pruner)
    return 1.0 + (trials - 1) * share + 2 * repeats


def _rate(calibrated: Mapping[str, Any], profile: Mapping[str, Any], micro_batch: int) -> float:
    """Tokens/s that a trial with passes of so many sequences may count on."""
    return SAFETY * float(at_batch(profile, calibrated, micro_batch)["tokens_per_second"])


def _batch(tokens: float, train: TrainConfig, sequence_length: int, micro_batch: int) -> tuple[int, int]:
    """Sequences in a step and in a forward pass: the training's, fewer where that leaves too few steps, never under the law's."""
    enough = max(step_law_batch_tokens(max(tokens, 1.0)), tokens / WANTED_STEPS)
    return split_batch(min(train.batch_tokens, int(enough)), sequence_length=sequence_length, micro_batch=micro_batch)
