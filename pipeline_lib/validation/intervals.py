"""Uncertainty: score intervals of shares (Wilson) and of their paired changes (Tango), bootstrap intervals of other ratios."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

LEVEL = 0.95
MANY = 2000  # items, from which on a mean is as good as normal
TAIL = 10  # resamples beyond each end of a percentile interval, at least: fewer do not tell where it ends
POWER = 0.8  # of the smallest difference that is called detectable
BLOCK = 1 << 22  # resampled items held at once; bounds memory at about 128 MiB


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, the number of items behind it, and its standard error."""

    value: float
    low: float
    high: float
    n: int
    error: float

    def to_json(self) -> dict[str, float | int]:
        """As plain JSON values."""
        return {k: round(v, 6) + 0.0 if isinstance(v, float) else v for k, v in asdict(self).items()}  # of 0 no -0


def spelled(found: Mapping[str, Any]) -> str:
    """The interval of an estimate (as JSON) for people; a single document tells nothing about others."""
    alone = found["n"] == 1 and found["low"] == found["high"]
    return "unknown" if alone else f"{found['low']:.4f} to {found['high']:.4f}"


def resampled_ratios(
    scores: NDArray[np.float64], weights: NDArray[np.float64], n_resamples: int, seed: int
) -> NDArray[np.float64]:
    """Σ score / Σ weight over bootstrap resamples of the items.

    Args:
        scores: float64 [items], or [items, models] for paired resampling.
        weights: float64 [items].
        n_resamples: resamples.
        seed: same seed and number of items, same resamples.

    Returns:
        float64 [n_resamples] or [n_resamples, models].
    """
    n = len(weights)
    draw = np.random.default_rng([seed, n])
    step = max(1, BLOCK // n)
    parts = []
    for start in range(0, n_resamples, step):
        chosen = draw.integers(0, n, (min(step, n_resamples - start), n), dtype=np.int32)
        below = weights[chosen].sum(axis=1)
        above = np.stack([column[chosen].sum(axis=1) for column in np.atleast_2d(scores.T)], axis=-1)
        parts.append(above / below[:, None])
    found = np.concatenate(parts)
    return found if scores.ndim == 2 else found[:, 0]


def estimate(
    scores: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    n_resamples: int,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """Ratio Σ score / Σ weight with its interval.

    The Wilson interval where every score is 0 or 1 with weight one: the bootstrap of 1 right of 1 would be sure of it. The
    percentile bootstrap (Efron and Tibshirani 1993, chapter 13) for all other ratios of up to `MANY` items, the normal interval
    beyond, where the two are the same and resampling takes a second, and for levels of which resamples know too little (`TAIL`).

    Args:
        scores: float64 [items].
        weights: float64 [items].
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
        groups: int64 [items], the same for related items (one fact in several wordings), which count together; None: all alone.
        level: of the interval.
    """
    together = _together(groups)
    if (weights == 1).all() and np.isin(scores, (0, 1)).all():
        share, n = float(scores.mean()), len(scores)
        effective = n if together is None else n / design_effect(scores, together)
        return replace(wilson(share * effective, effective, level=level), n=n)
    return _ratio(scores, weights, together, n_resamples=n_resamples, seed=seed, level=level)


def paired_change(
    changes: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    n_resamples: int,
    seed: int = 0,
    groups: NDArray[np.int64] | None = None,
    level: float = LEVEL,
) -> Estimate:
    """Σ change / Σ weight with its interval, of changes of items' scores from one model to another; arguments as of `estimate`.

    Of answers that were lost (−1), kept (0) and won (1) the score interval of `paired_shares`: one answer won and none lost is no
    sure gain, and no change at all in few items no proof that there is none. Other changes as `estimate` has them.
    """
    together = _together(groups)
    if together is None and (weights == 1).all() and np.isin(changes, (-1, 0, 1)).all():
        return paired_shares(int((changes > 0).sum()), int((changes < 0).sum()), len(changes), level=level)
    return _ratio(changes, weights, together, n_resamples=n_resamples, seed=seed, level=level)


def _together(groups: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Groups numbered from 0, None where every item is alone."""
    if groups is None:
        return None
    names, numbers = np.unique(groups, return_inverse=True)
    return None if len(names) == len(groups) else numbers


def _ratio(
    scores: NDArray[np.float64],
    weights: NDArray[np.float64],
    together: NDArray[np.int64] | None,
    *,
    n_resamples: int,
    seed: int,
    level: float,
) -> Estimate:
    """A ratio of sums over items, or over groups of them, by the bootstrap or its normal limit."""
    if together is not None:
        scores = np.bincount(together, weights=scores).astype(np.float64)
        weights = np.bincount(together, weights=weights).astype(np.float64)
    if len(weights) > 1 and (len(weights) > MANY or not _resamples_tell(level, n_resamples)):
        return linearised(scores, weights, level=level)
    resampled = resampled_ratios(scores, weights, n_resamples, seed)
    return _percentiles(float(scores.sum() / weights.sum()), resampled, weights, level)


def linearised(scores: NDArray[np.float64], weights: NDArray[np.float64], *, level: float = LEVEL) -> Estimate:
    """Ratio Σ score / Σ weight with the normal interval of its linearised variance (Cochran 1977, "Sampling techniques", 6.3)."""
    n, ratio = len(weights), float(scores.sum() / weights.sum())
    away = scores - ratio * weights
    error = float(np.sqrt((away**2).sum() * n / (n - 1)) / weights.sum())
    half = student(level, weights) * error
    return Estimate(ratio, ratio - half, ratio + half, n, error)


def design_effect(scores: NDArray[np.float64], groups: NDArray[np.int64]) -> float:
    """How many times the variance of a share is that of independent items (Kish 1965, "Survey Sampling", chapter 5).

    Args:
        scores: float64 [items], 0 or 1.
        groups: int64 [items], numbered from 0 without gaps.

    Returns:
        At least 1; where all scores are equal, so that nothing can be estimated, the mean size of a group.
    """
    sizes = np.bincount(groups)
    if len(sizes) == len(scores):
        return 1.0
    n, share = len(scores), float(scores.mean())
    alone = share * (1 - share) / n
    if alone == 0 or len(sizes) < 2:
        return float(n / len(sizes))
    away = np.bincount(groups, weights=scores - share)
    clustered = len(sizes) / (len(sizes) - 1) * float((away**2).sum()) / n**2
    return max(1.0, clustered / alone)


def wilson(right: float, n: float, *, level: float = LEVEL) -> Estimate:
    """Share `right` / `n` with the score interval of Wilson 1927, "Probable inference, the law of succession, and statistical
    inference" (JASA 22:209-212): it keeps its level for few items and for shares near 0 and 1. Both may be fractions.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, shrink = right / n, 1 + z**2 / n
    middle = (share + z**2 / (2 * n)) / shrink
    half = z / shrink * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    error = float(np.sqrt(share * (1 - share) / n))
    return Estimate(share, max(0.0, float(middle - half)), min(1.0, float(middle + half)), round(n), error)


def paired_shares(won: int, lost: int, n: int, *, level: float = LEVEL) -> Estimate:
    """(won − lost) / n with the score interval of Tango 1998, "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design" (Statistics in Medicine 17:891-908): it keeps its level for few changes, too.
    """
    from scipy.optimize import brentq  # half a second, which a run without a comparison need not wait

    z = NormalDist().inv_cdf((1 + level) / 2)

    def away(change: float) -> float:
        """How many standard errors what was seen lies from this change, were it the true one."""
        linear = (2 * n - won + lost) * change - won - lost
        root = max(0.0, linear**2 + 8 * n * lost * change * (1 - change))
        likeliest_lost = (root**0.5 - linear) / (4 * n)
        return float((won - lost - n * change) / max(1e-12, n * (2 * likeliest_lost + change * (1 - change))) ** 0.5)

    value = (won - lost) / n
    low = -1.0 if lost == n else brentq(lambda change: away(change) - z, -1.0, value)
    high = 1.0 if won == n else brentq(lambda change: away(change) + z, value, 1.0)
    return Estimate(value, float(low), float(high), n, float(np.sqrt((won + lost - n * value**2) / n**2)))


def relative_difference(
    candidate: NDArray[np.float64],
    champion: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    n_resamples: int,
    seed: int = 0,
    level: float = LEVEL,
) -> Estimate | None:
    """(candidate − champion) / champion of two ratios over the *same* items, resampled together.

    By the linearised variance of the one sum over the other for levels of which resamples know too little (`TAIL`). None where
    the champion's score is 0, or is 0 in a resample, or is not 0 in fewer than `TAIL` items: there is no finite relation to it.
    """
    if len(weights) > 1 and not _resamples_tell(level, n_resamples):
        if np.count_nonzero(champion) < TAIL:
            return None
        ratio = linearised(candidate, champion, level=level)
        return replace(ratio, value=ratio.value - 1, low=ratio.low - 1, high=ratio.high - 1)
    both = np.stack([candidate, champion], axis=1)
    resampled = resampled_ratios(both, weights, n_resamples, seed)
    if not (champion.sum() and resampled[:, 1].all()):
        return None
    differences = resampled[:, 0] / resampled[:, 1] - 1
    return _percentiles(float(candidate.sum() / champion.sum() - 1), differences, weights, level)


def _resamples_tell(level: float, n_resamples: int) -> bool:
    return (1 - level) / 2 * n_resamples >= TAIL


def detectable(found: Estimate, *, level: float = LEVEL) -> float:
    """The smallest true difference that a comparison like this one finds with probability `POWER`.

    (z of the level + z of the power) standard errors: Bloom 1995, "Minimum detectable effects" (Evaluation Review 19:547-556).

    Args:
        found: the difference with its interval.
        level: of the interval.
    """
    ends = NormalDist().inv_cdf((1 + level) / 2)
    return (found.high - found.low) / 2 * (1 + NormalDist().inv_cdf(POWER) / ends)


def _percentiles(value: float, resampled: NDArray[np.float64], weights: NDArray[np.float64], level: float) -> Estimate:
    upper = widened(level, weights)
    low, high = np.quantile(resampled, [1 - upper, upper])
    return Estimate(value, float(low), float(high), len(weights), float(resampled.std(ddof=1)))


def student(level: float, weights: NDArray[np.float64]) -> float:
    """How many standard errors an interval of a level reaches to each side: 1.96 for 0.95 and many equal weights.

    The variance is estimated, too: Student's quantile with n − 1 degrees of freedom, or fewer where few items weigh much:
    (Σw²)² / Σw⁴ (Satterthwaite 1946).
    """
    squares = weights**2
    freedom = max(1.0, min(len(weights) - 1.0, float(squares.sum() ** 2 / (squares**2).sum())))
    return float(stdtrit(freedom, (1 + level) / 2))


def widened(level: float, weights: NDArray[np.float64]) -> float:
    """The upper quantile of resamples for an interval of a level: 0.975 for 0.95 and many equal weights.

    As far out as Student's quantile is (the expanded percentile interval, Hesterberg 2015, "What teachers should know about the
    bootstrap", section 5).
    """
    n = len(weights)
    return (1 + level) / 2 if n < 2 else float(ndtr(student(level, weights) * np.sqrt(n / (n - 1))))
