"""Fit a training into a window: pure arithmetic, no clock. Every second of the window belongs to one named part."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline_lib.planning.controller import LEAST_DECAY

# What comes after training beside the scoring itself, seconds: loading model and tokenizer again, writing scores, gate,
# registration, report, the server's bookkeeping: 1.5 s on a quiet core. Past runs correct it (`graded.after_factors`), and the
# margin covers what a first run on a busy machine misses.
AFTER_TRAINING_SECONDS = 4.0
SUITE_TOKENS = {"smoke": 100_000, "standard": 1_000_000}  # of the items of a level, rounded up
VALIDATION_SLOWNESS = 1.2  # judged: scoring sorts, pads and batches short items: slower than an evaluation of full sequences
LEAST_VALIDATION_SECONDS = 4.0
MOST_EVALUATIONS = 20  # more points on a curve than this tell a person nothing new
SAVE_SHARE = 0.02  # share of training spent on checkpoints, as far as the two bounds below allow
SAVES = 10  # in a run, at least, where they cost no more than SAVE_MOST_SHARE: one that is killed in its decay must still anneal
SAVE_MOST_SHARE = 0.1
SAVE_SECONDS_BETWEEN = (30.0, 900.0)  # a kill costs at most a quarter of an hour; a short run still has a checkpoint to return to
EVALUATE_SHARE = {"speed": 0.02, "balanced": 0.05, "quality": 0.10}  # of the training time, by `plan.priority`
WANTED_STEPS = 100  # below this AdamW's second moment (beta2 = .95: 20 steps) and the warm-up take too much of the run


def validation_seconds(tokens: int, evaluate_tokens_per_second: float, *, models: int = 1) -> float:
    """What validation will take at the calibrated evaluation speed.

    Args:
        tokens: of test text and suite items.
        evaluate_tokens_per_second: as calibrated.
        models: how many are scored: the gate scores a champion on the same items.
    """
    return models * max(VALIDATION_SLOWNESS * tokens / evaluate_tokens_per_second, LEAST_VALIDATION_SECONDS)


@dataclass(frozen=True)
class After:
    """What comes after training, seconds: kept free for it, probably taken by it, and the estimate that both come from, before
    what past runs tell of such estimates."""

    reserved: float
    expected: float
    estimated: float


@dataclass(frozen=True)
class Window:
    """The run's window when planning, seconds. `total` counts from the run's start."""

    total: float
    spent: float
    margin: float
    after: After
    start_up: float

    @property
    def training(self) -> float:
        """What is left for training, its evaluations and its checkpoints."""
        return self.total - self.spent - self.margin - self.after.reserved - self.start_up


@dataclass(frozen=True)
class Load:
    """What training costs here: seconds a step, an evaluation, a checkpoint."""

    step: float
    evaluate: float
    save: float

    @property
    def closing(self) -> float:
        """The last evaluation and the last checkpoint, after the last step."""
        return self.evaluate + self.save

    @property
    def least(self) -> float:
        """A training of one step: an evaluation before, the step, what closes it."""
        return self.evaluate + self.step + self.closing


@dataclass(frozen=True)
class Fit:
    """Steps and cadence that fit, and which limit decided."""

    steps: int
    evaluate_every: int
    save_every: int
    limit: str  # window | max_steps | epochs

    def seconds(self, load: Load) -> dict[str, float]:
        """Training seconds by part."""
        return {
            "first evaluation": load.evaluate,
            "training steps": self.steps * load.step,
            "evaluations": max(self.steps - 1, 0) // self.evaluate_every * load.evaluate,
            "checkpoints": max(self.steps - 1, 0) // self.save_every * load.save,
            "last evaluation and checkpoint": load.closing,
        }

    def overhead_per_step(self, load: Load) -> float:
        """Evaluations and checkpoints spread over the steps, seconds."""
        return load.evaluate / self.evaluate_every + load.save / self.save_every


def fit(
    load: Load,
    *,
    seconds: float | None,
    max_steps: int,
    epoch_steps: int,
    priority: str,
    evaluate_every: int = 0,
    save_every: int = 0,
) -> Fit:
    """The most steps within `seconds` (None: no window), `max_steps` (0: none) and `epoch_steps`, with their cadence.

    Args:
        load: costs.
        seconds: time for training, its evaluations and checkpoints, or None.
        max_steps: configured limit, 0 for none.
        epoch_steps: steps of the largest allowed number of passes over the data.
        priority: how much of the time evaluations may take (`EVALUATE_SHARE`).
        evaluate_every: configured steps between evaluations, 0 to plan them.
        save_every: configured steps between checkpoints, 0 to plan them.
    """
    limits = {"epochs": max(epoch_steps, 1)}
    if max_steps:
        limits["max_steps"] = max_steps
    steps, fixed = min(limits.values()), load.evaluate + load.closing
    if seconds is not None:
        steps = min(steps, math.floor(max(seconds - fixed, 0.0) / load.step))
    cadence = _cadence(load, steps, priority, evaluate_every, save_every)
    if seconds is not None:
        # Fewer steps leave room for the evaluations and checkpoints between them: exact by counting down from the closed form.
        steps = min(steps, math.floor(max(seconds - fixed, 0.0) / (load.step + cadence.overhead_per_step(load))) + 2)
        cadence = _cadence(load, steps, priority, evaluate_every, save_every)
        while steps > 0 and sum(cadence.seconds(load).values()) > seconds:
            steps -= 1
            cadence = Fit(steps, cadence.evaluate_every, cadence.save_every, "")
    limit = next((name for name in ("max_steps", "epochs") if limits.get(name) == steps), "window")
    return Fit(steps, cadence.evaluate_every, cadence.save_every, limit)


def _cadence(load: Load, steps: int, priority: str, evaluate_every: int, save_every: int) -> Fit:
    training = max(steps * load.step, load.step)
    affordable = math.floor(EVALUATE_SHARE[priority] * training / load.evaluate) if load.evaluate > 0 else MOST_EVALUATIONS
    evaluations = min(max(affordable, 1), MOST_EVALUATIONS)
    low, high = SAVE_SECONDS_BETWEEN
    between = max(min(max(load.save / SAVE_SHARE, low), high, training / SAVES), load.save / SAVE_MOST_SHARE)
    return Fit(
        steps,
        evaluate_every or max(math.ceil(steps / evaluations), 1),
        save_every or max(round(between / load.step), 1),
        "",
    )


def split_batch(batch_tokens: int, *, sequence_length: int, micro_batch: int, most: float = math.inf) -> tuple[int, int]:
    """Sequences in a step, and in a forward pass, which divides them: as near to `batch_tokens` as whole sequences come.

    Args:
        batch_tokens: wanted tokens in a step.
        sequence_length: tokens in a sequence.
        micro_batch: sequences in a forward pass, at most.
        most: sequences in a step, at most: what the allowed passes over the data hold.
    """
    wanted = max(math.floor(min(round(batch_tokens / sequence_length), most)), 1)
    accumulation = math.ceil(wanted / micro_batch)
    micro = wanted // accumulation
    return micro * accumulation, micro


@dataclass(frozen=True)
class Course:
    """The shape of the learning rate over the steps."""

    warmup_steps: int
    decay_steps: int


WARMUP_MOST = 0.1  # of the planned steps, however many the full data would make


def warmup(steps: int, full_steps: int, share: float) -> tuple[int, str]:
    """Warm-up steps of a run of `steps`, when the allowed passes over the full data make `full_steps`; and a warning, or "".

    Args:
        steps: planned.
        full_steps: of all allowed passes over the data, whatever the window.
        share: of `full_steps`.
    """
    wanted, most = math.ceil(share * full_steps), math.floor(WARMUP_MOST * steps)
    if wanted <= most:
        return wanted, ""
    return (
        most,
        f"warm-up: {most:,} of {wanted:,} steps, which are {share:.2%} of the {full_steps:,} that the full data makes: "
        f"only {steps:,} are planned; raise resources.max_hours or lower train.learning_rate if the loss is unstable",
    )


def course(steps: int, *, schedule: str, warmup_steps: int, decay_share: float) -> Course:
    """Warm-up and decay of a run of `steps`; `linear` and `cosine` decay from the end of the warm-up on."""
    warm = min(warmup_steps, max(steps - 1, 0))
    if schedule != "wsd":
        return Course(warm, steps - warm)
    decay = max(math.ceil(max(decay_share, LEAST_DECAY) * steps), 1)
    return Course(min(warm, steps - decay), decay)
