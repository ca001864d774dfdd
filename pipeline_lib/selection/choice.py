"""The choice among competing training documents: floors first, then greedily by marginal gain within each domain's budget.

1. With a target sample, importance resampling draws the candidates; the other documents are the reserve behind them.
2. Every document gets its marginal gain (`diversity`): in that order documents are taken, candidates before the reserve.
3. Each source's best documents up to `source_floor` are taken first; they count against the budgets.
4. Kinds, then domains share the budget (`shares`).
5. Within a domain each cell's best documents are taken up to what the cell keeps in any case (`cells`), then the best of all.
   What greedy choice would have taken anyway costs nothing here: only cells that it would have left empty get more.
6. A domain whose budget is larger than itself repeats its documents, best first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.config.data import SelectConfig
from pipeline_lib.selection import kernels
from pipeline_lib.selection.cells import Grid, cells_table, fill, merged
from pipeline_lib.selection.diversity import Vectors, gains_of
from pipeline_lib.selection.importance import drawn
from pipeline_lib.selection.pool import Pool
from pipeline_lib.selection.shares import domain_budgets, kind_budgets
from pipeline_lib.tables.ids import draw
from pipeline_lib.tables.schemas import CELLS

Mask = NDArray[np.bool_]


@dataclass
class Choice:
    """For every document of the pool; documents that did not compete have 0."""

    gain: NDArray[np.float64]  # marginal gain when the greedy choice came to it
    repeats: NDArray[np.int64]  # 0: not chosen
    candidate: Mask  # drawn by importance; all that compete, without a target sample
    budgets: NDArray[np.int64]  # of a domain (index into `pool.domain.names`)
    available: NDArray[np.int64]  # of a domain: what competes
    last: NDArray[np.float64]  # of a domain: the lowest gain that was taken; 1 where nothing was
    cells: pa.Table
    short: dict[str, int]  # sources that did not reach their floor, with what they have


def costs_of(pool: Pool, config: SelectConfig) -> NDArray[np.int64]:
    """What a document takes of the budget: its tokens, or 1 where documents are counted."""
    return np.ones(len(pool), dtype=np.int64) if config.target_documents else pool.tokens


def choose(
    pool: Pool,
    vectors: Vectors,
    competing: Mask,
    config: SelectConfig,
    *,
    target: int,
    seed: int,
    log_importance: NDArray[np.float64] | None = None,
    already: NDArray[np.int64] | None = None,
    workers: int = 1,
) -> Choice:
    """See the module.

    Args:
        pool: all documents.
        vectors: [documents, 64] features.
        competing: which documents compete.
        config: weights, balance, floors.
        target: budget; 0: everything once.
        seed: of the clusters' first centres and of the draw by importance.
        log_importance: of all documents, where there is a target sample.
        already: documents of each source that are chosen in any case (earlier nights), counted into its floor.
        workers: threads.
    """
    costs, draws, recency = costs_of(pool, config), draw(pool.ids, seed), pool.recency(config.recency_half_life_days)
    domains, kinds = pool.domain, pool.kind
    candidate = competing.copy()
    if log_importance is not None and target:
        members = np.flatnonzero(competing)
        budget = int(config.toward_candidates * target)
        candidate[members] = drawn(pool.ids[members], log_importance[members], costs[members], budget, seed)
    gain = np.zeros(len(pool), dtype=np.float64)
    for tier in (candidate, competing & ~candidate):
        for domain in range(len(domains.names)):
            members = np.flatnonzero(tier & (domains.codes == domain))
            if len(members):
                gain[members] = gains_of(
                    vectors[members],
                    draws[members],
                    pool.quality[members],
                    recency[members],
                    diversity_weight=config.diversity_weight,
                    workers=workers,
                )
    members = np.flatnonzero(competing)
    order = members[np.lexsort((members, -gain[members], ~candidate[members]))]  # best first

    choice = Choice(
        gain=gain,
        repeats=np.zeros(len(pool), dtype=np.int64),
        candidate=candidate,
        budgets=np.zeros(len(domains.names), dtype=np.int64),
        available=_sums(domains.codes[members], costs[members], len(domains.names)),
        last=np.ones(len(domains.names)),
        cells=CELLS.empty_table(),
        short={},
    )
    cells = []
    by_kind = _sums(kinds.codes[members], costs[members], len(kinds.names))
    for group, budget in kind_budgets(kinds.names, by_kind, target, config):
        mine = order[np.isin(kinds.codes[order], group)]
        floor = _floor(pool, costs, mine, floor=config.source_floor, already=already, budget=budget if target else None)
        available = _sums(domains.codes[mine], costs[mine], len(domains.names))
        least = _sums(domains.codes[floor], costs[floor], len(domains.names))
        if target:
            budgets, wishes = domain_budgets(domains.names, available, least, budget, config)
        else:
            budgets, wishes = available.copy(), available.astype(np.float64)
        firm = np.zeros(len(pool), dtype=bool)
        firm[floor] = True
        choice.budgets += budgets
        by_domain = mine[np.argsort(domains.codes[mine], kind="stable")]
        bounds = np.searchsorted(domains.codes[by_domain], np.arange(len(domains.names) + 1))
        for domain in np.flatnonzero(available).tolist():
            ordered = by_domain[bounds[domain] : bounds[domain + 1]]
            rows = _take(
                choice, pool, costs, ordered, firm=firm, budget=int(budgets[domain]), wish=float(wishes[domain]), config=config
            )
            cells.append(rows)
    choice.cells = merged(cells)
    if config.source_floor:
        had = np.bincount(pool.source.codes[choice.repeats > 0], minlength=len(pool.source.names))
        had = had if already is None else had + already
        there = np.bincount(pool.source.codes[members], minlength=len(pool.source.names))
        choice.short = {pool.source.names[s]: int(had[s]) for s in np.flatnonzero((had < config.source_floor) & (there > 0))}
    return choice


def _sums(codes: NDArray[np.int64], amounts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    return np.asarray(np.bincount(codes, weights=amounts, minlength=count), dtype=np.int64)  # exact below 2^53


def _floor(
    pool: Pool,
    costs: NDArray[np.int64],
    order: NDArray[np.int64],
    *,
    floor: int,
    already: NDArray[np.int64] | None,
    budget: int | None,
) -> NDArray[np.int64]:
    """The best documents of each source up to its floor: all firsts, then all seconds …, as far as the budget reaches."""
    if not floor:
        return order[:0]
    source = pool.source.codes[order]
    by_source = np.argsort(source, kind="stable")
    ordered = source[by_source]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    rank = np.empty(len(order), dtype=np.int64)
    rank[by_source] = np.arange(len(order)) - np.repeat(first, np.diff(first, append=len(order)))
    wanted = np.full(len(order), floor) if already is None else floor - already[source]
    needed = np.flatnonzero(rank < wanted)
    needed = order[needed[np.argsort(rank[needed], kind="stable")]]
    if budget is None:
        return needed
    taken = np.zeros(len(needed), dtype=bool)
    kernels.take_within(costs[needed], budget, taken)
    return needed[taken]


def _take(
    choice: Choice,
    pool: Pool,
    costs: NDArray[np.int64],
    order: NDArray[np.int64],
    *,
    firm: Mask,
    budget: int,
    wish: float,
    config: SelectConfig,
) -> pa.Table:
    """Fill one domain's budget from `order` (best first) into `choice`; returns its cells."""
    cost = costs[order]
    total = int(cost.sum())
    passes = budget // total if total else 1
    rest = budget - passes * total
    plain = np.zeros(len(order), dtype=bool)
    kernels.take_within(cost, rest, plain)
    grid = Grid.of(pool, order)
    wanted = config.refill * wish * grid.sums(cost) / max(1, total)
    if passes:
        more = plain if passes < config.max_repeats and rest else np.zeros(len(order), dtype=bool)
        repeats = passes + more.astype(np.int64)
        without = repeats
    else:
        held = firm[order]
        place = np.arange(len(order))
        kept = held | fill(grid, cost, place, wanted)
        first = np.lexsort((place, ~held, ~kept))  # the floors of sources, then those of cells, then the best of all
        taken = np.zeros(len(order), dtype=bool)
        kernels.take_within(cost[first], rest, taken)
        repeats = np.zeros(len(order), dtype=np.int64)
        repeats[first[taken]] = 1
        without = plain.astype(np.int64)
    choice.repeats[order] = repeats
    if (repeats > 0).any():
        domain = pool.domain.codes[order[0]]
        choice.last[domain] = min(choice.last[domain], float(choice.gain[order[repeats > 0]].min()))
    return cells_table(
        pool,
        grid,
        available=grid.sums(cost),
        wanted=wanted,
        before=grid.sums(cost * without),
        after=grid.sums(cost * repeats),
    )


def refused_by(choice: Choice, pool: Pool, target: int, domain: int, unit: str) -> tuple[str, str]:
    """Rule and reason for the documents of a domain that were not chosen: the balance of domains, or the budget as a whole."""
    budget, available = int(choice.budgets[domain]), int(choice.available[domain])
    fair = target * available / max(1, int(choice.available.sum()))
    name = pool.domain.names[domain]
    rule, what = ("domain_cap", "the balance of domains") if budget < int(fair) else ("over_budget", f"the budget of {target}")
    lowest = f"; the lowest gain taken was {choice.last[domain]:.4f}" if choice.last[domain] < 1 else ""
    return rule, f"domain {name} may give {budget} of its {available} {unit}: {what}{lowest}"
