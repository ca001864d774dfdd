"""The choice among competing training documents: greedy by score within each domain's budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline_lib.config.data import SelectConfig
from pipeline_lib.selection import kernels
from pipeline_lib.selection.diversity import scores_of
from pipeline_lib.selection.pool import Pool
from pipeline_lib.selection.shares import domain_budgets
from pipeline_lib.tables.ids import draw


@dataclass(frozen=True)
class Choice:
    """For every document of the pool; documents that did not compete have 0."""

    score: NDArray[np.float64]  # marginal gain when the greedy choice came to it
    repeats: NDArray[np.int64]  # 0: not chosen
    budgets: NDArray[np.int64]  # tokens a domain (index into `pool.domain.names`)
    available: NDArray[np.int64]  # competing tokens a domain


def choose(
    pool: Pool,
    vectors: NDArray[np.int16],
    competing: NDArray[np.bool_],
    config: SelectConfig,
    *,
    target: int,
    seed: int,
) -> Choice:
    """Fill each domain's budget by descending score; a domain with tokens to spare repeats its documents, best first.

    Args:
        pool: all documents.
        vectors: [documents, 64] raw features.
        competing: which documents compete.
        config: weights and balance.
        target: budget in tokens; 0: everything once.
        seed: of the clusters' first centres.
    """
    tokens, draws, recency = pool.tokens, draw(pool.ids, seed), pool.recency(config.recency_half_life_days)
    available = np.zeros(len(pool.domain.names), dtype=np.int64)
    np.add.at(available, pool.domain.codes[competing], tokens[competing])
    budgets = domain_budgets(available, target, config)
    score = np.zeros(len(pool), dtype=np.float64)
    repeats = np.zeros(len(pool), dtype=np.int64)
    for domain, budget in enumerate(budgets):
        members = np.flatnonzero(competing & (pool.domain.codes == domain))
        if not len(members):
            continue
        score[members] = scores_of(
            vectors[members], draws[members], pool.quality[members], recency[members], config.quality_weight
        )
        order = members[np.lexsort((members, -score[members]))]
        passes = int(budget // available[domain]) if available[domain] else 1
        rest = int(budget - passes * available[domain])
        taken = np.zeros(len(order), dtype=bool)
        kernels.take_within(tokens[order], rest, taken)
        more = taken if passes < config.max_repeats and rest else np.zeros(len(order), dtype=bool)
        repeats[order] = passes + more
    return Choice(score, repeats, budgets, available)


def refused_by(choice: Choice, pool: Pool, target: int, domain: int) -> tuple[str, str]:
    """Rule and reason for the documents of a domain that were not chosen: the balance of domains, or the budget as a whole."""
    budget, available = int(choice.budgets[domain]), int(choice.available[domain])
    fair = target * available / max(1, int(choice.available.sum()))
    name = pool.domain.names[domain]
    if budget < int(fair):
        return "domain_cap", f"domain {name} may give {budget} of its {available} tokens: the balance of domains"
    return "over_budget", f"domain {name} may give {budget} of its {available} tokens: the budget of {target}"
