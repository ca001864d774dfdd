"""How a training learned: convergence, plateau, overfitting, what the learning rate did, the health of gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline_lib.planning import laws
from pipeline_lib.reporting.evidence import Event, Evidence, Floats, finite, percent, usual
from pipeline_lib.reporting.findings import Finding, Numbers, sentence
from pipeline_lib.training.signals import DIVERGENCE_SHARE, DIVERGENCE_SIGMA, noise_of

BLOCKS = 16  # means of so many blocks of steps; their spread around a line is the noise of a slope
LEAST_STEPS = 96  # fewer say nothing about a course
FLAT_SHARE = 0.004  # of the loss: a fall in half of the constant part that is surely smaller is a plateau
LEARNED_SHARE = 0.05  # of the first loss: less was not learned at all
RISE_SHARE = 0.01  # of the best dev loss: a rise above it by more is overfitting, when the training loss fell meanwhile
CLIPPED_SHARE = 0.9
LEAST_SPIKES, SPIKES_A_STEP = 3, 1 / 500  # a long training has a spike now and then
# Norm of a step's change ÷ norm of the weights: a rule of thumb asks for 1e-3 (A. Karpathy, "makemore" part 3). Healthy trainings
# of 0.1 M parameters over 300 steps begin at 7e-2 and have 1e-2 in their middle, since weights grow from almost nothing.
UPDATE_LEAST, UPDATE_MOST = 2e-4, 3e-2
OFF_THE_LAW = 10.0  # times: a search goes to a third and to three times of it
STEADY_SHARE = 0.35  # a fall in the second half of the constant part of so much of that in the first has not bent yet
EXPONENTS = np.linspace(0.05, 2.0, 79)


@dataclass(frozen=True)
class Fit:
    """L(s) = floor + scale · s^-exponent through the training loss at the constant learning rate, s in optimizer steps."""

    floor: float
    scale: float
    exponent: float
    explained: float  # R²

    def at(self, step: float) -> float:
        """The loss that the fit expects at a step."""
        return self.floor + self.scale / math.pow(step, self.exponent)


def blocks(values: Floats, count: int = BLOCKS) -> Floats:
    """Means of blocks of the same length, in order."""
    return np.array([np.nanmean(block) for block in np.array_split(values, count) if np.isfinite(block).any()])


def fit(steps: Floats, loss: Floats) -> Fit | None:
    """The power law of `Fit` by least squares over blocks of steps: the exponent by a grid, the rest exactly. None: too few."""
    kept = np.isfinite(loss) & (steps > 0)
    if kept.sum() < LEAST_STEPS:
        return None
    edges = np.unique(np.geomspace(1, kept.sum(), 40).astype(int))
    x = np.array([block.mean() for block in np.split(steps[kept], edges[:-1]) if len(block)])
    y = np.array([block.mean() for block in np.split(loss[kept], edges[:-1]) if len(block)])
    best: Fit | None = None
    for exponent in EXPONENTS:
        shape = x**-exponent
        slope = float(np.cov(shape, y, bias=True)[0, 1] / max(np.var(shape), 1e-30))
        floor = float(y.mean() - slope * shape.mean())
        if floor < 0:  # no loss is below 0
            floor, slope = 0.0, float(shape @ y / (shape @ shape))
        explained = 1 - float(np.sum((y - floor - slope * shape) ** 2) / max(np.sum((y - y.mean()) ** 2), 1e-30))
        if best is None or explained > best.explained:
            best = Fit(floor, slope, float(exponent), explained)
    return best


def trend(values: Floats) -> tuple[float, float]:
    """The change from the first to the last value by a line through block means, and its standard error."""
    means = blocks(values)
    x = np.linspace(-0.5, 0.5, len(means))
    slope = float(x @ means / (x @ x))
    left = means - means.mean() - slope * x
    return slope, float(np.sqrt(np.sum(left**2) / max(len(means) - 2, 1) / (x @ x)))


def halves(evidence: Evidence) -> tuple[float, float, float] | None:
    """(fall in the first half, fall in the second half, its standard error) at the constant rate, nats; None: too short."""
    loss = finite(evidence.loss[evidence.constant])
    if len(loss) < LEAST_STEPS:
        return None
    (first, _), (second, error) = trend(loss[: len(loss) // 2]), trend(loss[len(loss) // 2 :])
    return -first, -second, error


def convergence(evidence: Evidence) -> Numbers:
    """Numbers about how far the training came."""
    constant = evidence.constant
    found = fit(evidence.steps[constant], evidence.loss[constant])
    numbers: Numbers = []
    if evidence.dev:
        numbers += [
            ("dev loss at the start", evidence.dev[0][1], "nats/token"),
            ("dev loss at the end", evidence.dev[-1][1], "nats/token"),
        ]
    if found:
        last = float(evidence.steps[-1])
        numbers += [
            ("floor of the fitted training loss", found.floor, "nats/token"),
            ("exponent of the fit", found.exponent, ""),
            ("share of the course that the fit explains", found.explained, "R²"),
            ("what twice the steps would gain, by the fit", found.at(last) - found.at(2 * last), "nats/token"),
        ]
    if (fall := halves(evidence)) is not None:
        numbers += [
            ("fall in the last half at constant rate", fall[1], "nats/token"),
            ("its standard error", fall[2], "nats/token"),
        ]
    if (decay := _decay_gain(evidence)) is not None:
        numbers.append(("fall in the final decay", decay, "nats/token"))
    return numbers


def _decay_gain(evidence: Evidence) -> float | None:
    before, after = evidence.loss[evidence.constant][-32:], evidence.loss[-32:]
    if evidence.schedule.kind != "wsd" or len(before) < 32 or evidence.steps[-1] <= evidence.schedule.decay_start:
        return None
    return usual(before) - usual(after)


def plateau(evidence: Evidence) -> Iterator[Finding]:
    """The loss stood still while the learning rate was at its top."""
    fall = halves(evidence)
    if fall is None or _learned(evidence) < LEARNED_SHARE or any(True for _ in overfitting(evidence)):
        return
    loss = usual(evidence.loss[evidence.constant][-64:])
    if fall[1] + 2 * fall[2] < FLAT_SHARE * loss and fall[1] > -FLAT_SHARE * loss:  # what rises is no plateau
        seen = evidence.said("plateau")
        yield Finding(
            "plateau", "trouble", "The loss stood still for half of the training.",
            f"In the last half at constant learning rate the training loss fell by "
            f"{fall[1]:.4f} ± {2 * fall[2]:.4f} nats per token of {loss:.3f}"
            + (f"; the monitor saw it from step {seen[0].detail.get('since_step', seen[0].step)} on" if seen else "") + ".",
            "model.width, model.depth",
            "A larger model, or more varied text; or stop earlier: train.early_stopping.patience = 3.",
        )  # fmt: skip


def _learned(evidence: Evidence) -> float:
    """Fall of the training loss from its first steps to its last, as a share of the first."""
    loss = finite(evidence.loss)
    first = float(loss[0]) if len(loss) else 0.0
    return 1 - usual(loss[-32:]) / first if first else 0.0


def overfitting(evidence: Evidence) -> Iterator[Finding]:
    """Dev loss rose above its best while the training loss went on falling."""
    if len(evidence.dev) < 3 or not len(evidence.loss):
        return
    for last in (len(evidence.dev) - 1, _last_before_decay(evidence)):
        points = evidence.dev[: last + 1]
        if len(points) < 3:
            continue
        best_step, best = min(points, key=lambda point: point[1])
        step, value = points[-1]
        span = max(len(evidence.steps) // 20, 8)
        then = usual(evidence.loss[np.abs(evidence.steps - best_step) <= span])
        now = usual(evidence.loss[(evidence.steps <= step) & (evidence.steps > step - 2 * span)])
        if best_step and value > best * (1 + RISE_SHARE) and now < then:
            epochs = evidence.metric("train", "epochs")
            yield Finding(
                "overfitting", "trouble", "The model learned its training text by heart.",
                f"Dev loss was best at step {best_step:,} ({best:.3f}) and {percent(value / best - 1)} higher at step "
                f"{step:,} ({value:.3f}), while the training loss fell from {then:.3f} to {now:.3f}; "
                f"{epochs:.1f} passes over the data.",
                "train.max_epochs",
                f"Fewer passes (about {max(epochs * best_step / max(step, 1), 0.1):.1f}), more text, or model.dropout = 0.1.",
            )  # fmt: skip
            return


def _last_before_decay(evidence: Evidence) -> int:
    if evidence.schedule.kind != "wsd":
        return len(evidence.dev) - 1
    return max((i for i, (step, _) in enumerate(evidence.dev) if step <= evidence.schedule.decay_start), default=0)


def divergence(evidence: Evidence) -> Iterator[Finding]:
    """The loss went up for good, or was not a number."""
    harmless = {event.step for event in evidence.said("divergence_not_confirmed")}
    seen = [event for event in evidence.said("divergence", "non_finite") if event.step not in harmless]
    before = evidence.loss[evidence.steps <= evidence.schedule.decay_start] if evidence.schedule.kind == "wsd" else evidence.loss
    rise, where = _rise(finite(evidence.loss)), ""
    if rise is None:  # a decay heals a part of it
        rise, where = _rise(finite(before)), " before the decay"
    if not seen and rise is None:
        return
    parts = []
    if seen:
        kinds = sorted({event.kind.replace("_", " ") for event in seen})
        parts.append(f"{' and '.join(kinds)} seen {len(seen)} times, first at step {seen[0].step:,} ({_told(seen[0])})")
    if rise is not None:
        parts.append(f"the median loss of the last 32 steps{where} is {rise[1]:.3f}, the lowest such median was {rise[0]:.3f}")
    yield Finding(
        "divergence", "trouble", "The training lost what it had learned.", sentence(parts),
        "train.learning_rate",
        f"{_lower(evidence)}, or a stricter train.max_grad_norm (now {evidence.config.train.max_grad_norm:g}).",
    )  # fmt: skip


def _told(event: Event) -> str:
    names = ("median", "lowest_median", "loss", "grad_norm")
    shown = [
        f"{name.replace('_', ' ')} {event.detail[name]:.4g}" for name in names if isinstance(event.detail.get(name), int | float)
    ]
    shown += [f"{name.replace('_', ' ')} {event.detail[name]}" for name in names if isinstance(event.detail.get(name), str)]
    return ", ".join(shown) or "without numbers"


def _rise(loss: Floats) -> tuple[float, float] | None:
    """(lowest, last) median of 32 losses, when the last one is higher beyond noise; measured on whole blocks."""
    if len(loss) < LEAST_STEPS:
        return None
    cut = loss[len(loss) % 32 :].reshape(-1, 32)
    medians = np.median(cut, axis=1)
    lowest = int(np.argmin(medians))
    error = noise_of(cut[lowest]) / math.sqrt(32)
    limit = medians[lowest] + max(DIVERGENCE_SHARE * medians[lowest], DIVERGENCE_SIGMA * error)
    return (float(medians[lowest]), float(medians[-1])) if medians[-1] > limit else None


def _peak(evidence: Evidence) -> float:
    return float(np.nanmax(evidence.rate)) if len(evidence.rate) else 0.0


def _lower(evidence: Evidence) -> str:
    peak = _peak(evidence)
    return f"{peak / 3:.2g} instead of {peak:.2g}" if peak else "A lower one"


def update_ratio(evidence: Evidence) -> float:
    """Median update-to-weight ratio of the whole model at the top of the schedule; 0: not measured."""
    kept = [row for row in evidence.layers if row["group"] == "all" and row["step"] > evidence.schedule.warmup]
    if evidence.schedule.kind == "wsd":
        kept = [row for row in kept if row["step"] <= evidence.schedule.decay_start] or kept
    return usual(np.array([row["update_ratio"] for row in kept], np.float64))


def learning_rate(evidence: Evidence) -> Numbers:
    """Numbers about what the learning rate did."""
    numbers: Numbers = [("peak learning rate", _peak(evidence), "")] if len(evidence.rate) else []
    if ratio := update_ratio(evidence):
        numbers.append(("change of the weights a step, at the top of the schedule", ratio, "of their norm"))
    if len(evidence.loss):
        numbers.append(("loss spikes", float(len(evidence.said("loss_spike"))), ""))
    return numbers


def _law(evidence: Evidence) -> float:
    """The peak learning rate that the scaling law would choose for this model and these tokens; 0: unknown."""
    model, train = evidence.config.model, evidence.details.get("train", {})
    vocabulary = float(train.get("vocabulary_size", 0))
    inner = float(train.get("parameters", 0)) - vocabulary * model.width
    tokens = float(train.get("tokens_seen", 0))
    if inner <= 0 or not tokens or evidence.config.train.optimizer not in ("adamw", "adamw_8bit"):
        return 0.0
    return laws.learning_rate(inner, tokens, start=model.start, lora=evidence.config.train.lora.rank > 0).value


def rate_too_high(evidence: Evidence) -> Iterator[Finding]:
    """Steps too large: recoveries that lowered the rate, spikes, large updates, far above the law while little is gained."""
    ratio, fall, law, peak = update_ratio(evidence), halves(evidence), _law(evidence), _peak(evidence)
    lowered = [event for event in evidence.said("recovery") if event.detail.get("action") == "roll_back"]
    reasons = []
    if lowered:
        reasons.append(f"recovery went back {len(lowered)} times with a lower rate, first at step {lowered[0].step:,}")
    if len(spikes := evidence.said("loss_spike")) >= max(LEAST_SPIKES, SPIKES_A_STEP * len(evidence.steps)):
        reasons.append(f"{len(spikes)} loss spikes, first at step {spikes[0].step:,}")
    if ratio > UPDATE_MOST and fall is not None:
        reasons.append(f"a step changes the weights by {percent(ratio)} of their norm (usual: 0.1 %)")
    if law and peak > OFF_THE_LAW * law and fall is not None:
        reasons.append(f"it was {peak:.2g}, {peak / law:.0f} times what the scaling law gives ({law:.2g})")
    if reasons:
        yield Finding(
            "rate_too_high", "trouble", "The learning rate is too high.", sentence(reasons),
            "train.learning_rate", f"{_lower(evidence)}, or 0: the scaling law decides.",
        )  # fmt: skip


def rate_too_low(evidence: Evidence) -> Iterator[Finding]:
    """Steps so small, by their size or by the law, that the loss has hardly bent."""
    ratio, fall, law, peak = update_ratio(evidence), halves(evidence), _law(evidence), _peak(evidence)
    small_steps, below_law = 0 < ratio < UPDATE_LEAST, law > OFF_THE_LAW * peak > 0
    if fall is None or not (small_steps or below_law):
        return
    first, second, error = fall
    if second > 2 * error and second >= STEADY_SHARE * first:
        parts = [f"a step changes the weights by {percent(ratio)} of their norm (usual: 0.1 %)"] if small_steps else []
        if below_law:
            parts.append(f"it was {peak:.2g}, a {law / peak:.0f}th of what the scaling law gives ({law:.2g})")
        parts.append(
            f"in the second half at constant rate the loss still fell by {second:.3f} nats per token, "
            f"after {first:.3f} in the first"
        )
        better = f"{law:.2g}" if below_law else f"{3 * peak:.2g} to {10 * peak:.2g}"
        yield Finding(
            "rate_too_low", "trouble", "The learning rate is too low.", sentence(parts),
            "train.learning_rate", f"{better} instead of {peak:.2g}, or 0: the scaling law decides.",
        )  # fmt: skip


def gradients(evidence: Evidence) -> Numbers:
    """Numbers about gradients."""
    norms = finite(evidence.norm)
    if not len(norms):
        return []
    limit = evidence.config.train.max_grad_norm
    by_group: dict[str, list[float]] = {}
    for row in evidence.layers:
        by_group.setdefault(row["group"], []).append(row["grad_norm"])
    by_group.pop("all", None)
    usual_norms = {group: usual(np.array(values)) for group, values in by_group.items()}
    numbers: Numbers = [
        ("median gradient norm", usual(norms), ""),
        ("99th percentile of gradient norms", float(np.quantile(norms, 0.99)), ""),
        ("steps whose gradient was clipped", float(np.mean(norms > limit)), "share"),
        ("steps that were not numbers", float(len(evidence.said("non_finite"))), ""),
    ]
    if usual_norms and min(usual_norms.values()) > 0:
        numbers.append(
            ("largest ÷ smallest median norm of a group of layers", max(usual_norms.values()) / min(usual_norms.values()), "")
        )
    return numbers


def clipping(evidence: Evidence) -> Iterator[Finding]:
    """Clipping that acts on nearly every step is a learning rate in disguise."""
    norms = finite(evidence.norm[evidence.constant]) if len(evidence.norm) else evidence.norm
    limit = evidence.config.train.max_grad_norm
    if len(norms) >= LEAST_STEPS and (share := float(np.mean(norms > limit))) > CLIPPED_SHARE:
        yield Finding(
            "clipping", "advice", "Nearly every gradient is clipped.",
            f"{percent(share)} of the steps after the warm-up had a norm above {limit:g}; the median is {usual(norms):.3g}.",
            "train.max_grad_norm", f"About {2 * usual(norms):.2g}, or train.clipping = adaptive.",
        )  # fmt: skip
