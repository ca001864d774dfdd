"""How kinds of records and domains share a budget. Amounts are tokens or documents, whatever the budget is counted in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.config.data import SelectConfig

Amounts = NDArray[np.int64]


def shared(weights: NDArray[np.float64], least: Amounts, most: Amounts, target: int) -> Amounts:
    """Amounts in proportion to weights, but at least `least` and at most `most` each; what one cannot take the others get.

    That is clip(λ · weight, least, most) with the λ at which the sum is the target: the sum grows with λ along straight lines
    between the values of λ at which an amount starts or stops to grow.

    Returns:
        Whole amounts. Their sum is the target, less what rounding down costs, or all that is there; `least` is kept even where
        its sum is more than the target.
    """
    grows = weights > 1e-12 * weights.max(initial=0.0)
    low, high, weight = least[grows].astype(np.float64), most[grows].astype(np.float64), weights[grows]
    high = np.maximum(low, high)
    result = least.astype(np.float64)
    if grows.any():
        bends = np.unique(np.concatenate([low / weight, high / weight]))
        room = target - float(least[~grows].sum())

        def at(level: float) -> NDArray[np.float64]:
            return np.asarray(np.clip(level * weight, low, high), dtype=np.float64)

        first, last = 0, len(bends) - 1  # between two bends the sum is a straight line
        if float(at(bends[last]).sum()) <= room:
            result[grows] = high
        else:
            while last - first > 1:
                middle = (first + last) // 2
                first, last = (middle, last) if float(at(bends[middle]).sum()) <= room else (first, middle)
            start, end = float(at(bends[first]).sum()), float(at(bends[last]).sum())
            part = min(1.0, max(0.0, (room - start) / (end - start))) if end > start else 0.0
            result[grows] = at(bends[first] + part * (bends[last] - bends[first]))
    whole: Amounts = np.maximum(np.floor(result + 1e-9).astype(np.int64), least)
    return whole


def most_of(available: Amounts, config: SelectConfig) -> Amounts:
    """The largest amount that each may give: its size, repeated as often as the settings allow."""
    most: Amounts = np.floor(available * min(config.epoch_cap, float(config.max_repeats))).astype(np.int64)
    return most


def kind_budgets(names: Sequence[str], available: Amounts, target: int, config: SelectConfig) -> list[tuple[list[int], int]]:
    """Kinds that share a budget, and the budget.

    Without `kind_shares` all kinds are one group. With them each named kind has its share of the target, and no more: what it
    cannot use stays unused, so that no kind gets more than its share; the others are one group with the rest.
    """
    if not config.kind_shares:
        return [(list(range(len(names))), target)]
    named = {kind: config.kind_shares[name] for kind, name in enumerate(names) if name in config.kind_shares}
    others = [kind for kind in range(len(names)) if kind not in named]
    budgets = [([kind], int(share * target)) for kind, share in named.items()]
    if others:
        budgets.append((others, int(max(0.0, 1.0 - sum(config.kind_shares.values())) * target)))
    return budgets


def domain_weights(names: Sequence[str], available: Amounts, config: SelectConfig) -> NDArray[np.float64]:
    """Relative weight of each domain; 0 for one without documents.

    Weights are the domains' sizes (none), sizes to the power `temperature` (Conneau et al. 2020), equal (UniMax, Chung et al.
    2023; the cap that makes it so is `epoch_cap`), or given.
    """
    if config.domain_balance == "weights":
        other = config.domain_weights.get("*", 0.0)
        given = np.array([config.domain_weights.get(name, other) for name in names], dtype=np.float64)
    else:
        exponent = {"none": 1.0, "temperature": config.temperature, "unimax": 0.0}[config.domain_balance]
        given = np.maximum(available, 1).astype(np.float64) ** exponent
    return np.where(available > 0, given, 0.0)


def domain_budgets(
    names: Sequence[str], available: Amounts, least: Amounts, target: int, config: SelectConfig
) -> tuple[Amounts, NDArray[np.float64]]:
    """What each domain may give, and what it would give if it were large enough.

    Args:
        names: of the domains.
        available: size of each domain.
        least: what each domain gives in any case; the sum is at most the target.
        target: the budget.
        config: balance and caps.

    Returns:
        Budgets, whose sum is at most the target; wishes: the target in proportion to the weights.
    """
    weights = domain_weights(names, available, config)
    wishes = target * weights / max(weights.sum(), 1e-300)
    return shared(weights, least, np.maximum(least, most_of(available, config)), target), wishes
