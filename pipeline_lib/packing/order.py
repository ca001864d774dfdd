"""The order of training as a function: state is one integer."""

from __future__ import annotations

import numpy as np


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of sequences 0…n-1 in an epoch, int64[n]: a permutation that depends on nothing else (0.3 s for ten million)."""
    return np.random.default_rng([seed, epoch]).permutation(n)
