"""The order of training as a function: state is one integer."""

from __future__ import annotations

import numpy as np


def order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of sequences 0…n-1 in an epoch, int64[n]: a permutation that depends on nothing else (0.3 s for ten million)."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def between(n: int, seed: int, first: int, last: int) -> np.ndarray:
    """Sequences at positions first…last-1 of the endless stream of epochs, int64[last - first].

    Position p is in epoch p // n: the same for a run that started there and for one that resumed there.
    """
    if last <= first:
        return np.empty(0, np.int64)
    parts = []
    for epoch in range(first // n, (last - 1) // n + 1):
        parts.append(order(n, seed, epoch)[max(first - epoch * n, 0) : last - epoch * n])
    return np.concatenate(parts)
