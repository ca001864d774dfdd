"""Uncertainty: bootstrap intervals of ratios (means are ratios with weight one), alone and paired."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
BLOCK = 1 << 24  # resampled counts held at once; bounds memory at 128 MiB


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % percentile interval and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        """As plain JSON values."""
        return {k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(self).items()}


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
        counts = draw.multinomial(n, np.full(n, 1 / n), size=min(step, n_resamples - start)).astype(np.float64)
        below = counts @ weights
        above = counts @ scores
        parts.append(above / (below[:, None] if above.ndim == 2 else below))
    return np.concatenate(parts)


def estimate(scores: NDArray[np.float64], weights: NDArray[np.float64], *, n_resamples: int, seed: int = 0) -> Estimate:
    """Ratio Σ score / Σ weight with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13)."""
    resampled = resampled_ratios(scores, weights, n_resamples, seed)
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(scores.sum() / weights.sum()), float(low), float(high), len(weights))


def relative_difference(
    candidate: NDArray[np.float64],
    champion: NDArray[np.float64],
    weights: NDArray[np.float64],
    *,
    n_resamples: int,
    seed: int = 0,
) -> Estimate:
    """(candidate − champion) / champion of two ratios over the *same* items, resampled together."""
    both = np.stack([candidate, champion], axis=1)
    resampled = resampled_ratios(both, weights, n_resamples, seed)
    differences = resampled[:, 0] / resampled[:, 1] - 1
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(candidate.sum() / champion.sum() - 1), float(low), float(high), len(weights))
