"""How domains share a token budget."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.config.data import SelectConfig


def domain_budgets(available: NDArray[np.int64], target: int, config: SelectConfig) -> NDArray[np.int64]:
    """Tokens that each domain may contribute.

    Weights are the domains' sizes (none), sizes to the power `temperature` (Conneau et al. 2020), or equal (UniMax, Chung
    et al. 2023). No domain gets more than `max_repeats` times what it has; what it cannot use goes to the others by the same
    weights.

    Args:
        available: tokens of each domain.
        target: budget; 0: everything once.
        config: balance, temperature, max_repeats.

    Returns:
        Budget of each domain; their sum is at most `target`.
    """
    if not target:
        return available.copy()
    exponent = {"none": 1.0, "temperature": config.temperature, "unimax": 0.0}[config.domain_balance]
    weights = np.where(available > 0, np.maximum(available, 1).astype(np.float64) ** exponent, 0.0)
    cap = (available * config.max_repeats).astype(np.float64)
    budget = np.zeros(len(available), dtype=np.float64)
    open_ = weights > 0
    rest = float(target)
    while open_.any():
        share = rest * weights / weights[open_].sum()
        full = open_ & (share >= cap)
        if not full.any():
            budget[open_] = share[open_]
            break
        budget[full] = cap[full]
        rest -= float(cap[full].sum())
        open_ &= ~full
    return np.floor(budget + 1e-9).astype(np.int64)
