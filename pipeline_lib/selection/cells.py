"""Cells of domain × length × quality × date: what each has, what it should have, and what it still lacks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.selection.pool import Pool
from pipeline_lib.tables.schemas import CELLS

LENGTHS = (128, 512, 2048, 8192)  # estimated tokens
LENGTH_NAMES = ("under 128 tokens", "128 to 511", "512 to 2047", "2048 to 8191", "from 8192")
QUALITIES = (0.25, 0.5, 0.75)
QUALITY_NAMES = ("under 0.25", "0.25 to 0.5", "0.5 to 0.75", "from 0.75")
AGES = (0.0, 365.25, 3 * 365.25, 10 * 365.25)  # days before the newest document; -1: unknown
AGE_NAMES = ("unknown", "under 1 year", "1 to 3 years", "3 to 10 years", "from 10 years")


def age_codes(pool: Pool) -> NDArray[np.int64]:
    """Index into `AGE_NAMES` of each document."""
    return np.searchsorted(AGES, pool.age_days, side="right")


@dataclass(frozen=True)
class Grid:
    """The cells of some documents. `cell` is each document's cell, `code` each cell's place in the whole grid."""

    cell: NDArray[np.int64]
    code: NDArray[np.int64]

    @classmethod
    def of(cls, pool: Pool, documents: NDArray[np.int64]) -> Grid:
        """The cells that these documents lie in."""
        places = pool.domain.codes[documents]
        for names, codes in (
            (LENGTH_NAMES, np.searchsorted(LENGTHS, pool.tokens[documents], side="right")),
            (QUALITY_NAMES, np.searchsorted(QUALITIES, pool.quality[documents], side="right")),
            (AGE_NAMES, age_codes(pool)[documents]),
        ):
            places = places * len(names) + codes
        code, cell = np.unique(places, return_inverse=True)
        return cls(cell.astype(np.int64), code)

    @property
    def domain(self) -> NDArray[np.int64]:
        """Domain of each cell."""
        return self.code // (len(LENGTH_NAMES) * len(QUALITY_NAMES) * len(AGE_NAMES))

    def sums(self, amounts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Amounts of the documents, added up by cell."""
        return np.asarray(np.bincount(self.cell, weights=amounts, minlength=len(self.code)), dtype=np.int64)  # exact below 2^53


def fill(grid: Grid, costs: NDArray[np.int64], order: NDArray[np.int64], wanted: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The best documents of each cell, as many as fit into what the cell wants.

    Args:
        grid: cells of the documents.
        costs: of each document.
        order: documents, best first.
        wanted: amount by cell.

    Returns:
        A mask over the documents.
    """
    by_cell = order[np.argsort(grid.cell[order], kind="stable")]
    cell = grid.cell[by_cell]
    spent = np.cumsum(costs[by_cell])
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    before = np.repeat(spent[first] - costs[by_cell][first], np.diff(first, append=len(cell)))
    taken = np.zeros(len(order), dtype=bool)
    taken[by_cell] = spent - before <= wanted[cell]
    return taken


def cells_table(
    pool: Pool,
    grid: Grid,
    *,
    available: NDArray[np.int64],
    wanted: NDArray[np.float64],
    before: NDArray[np.int64],
    after: NDArray[np.int64],
) -> pa.Table:
    """Rows of the table `cells` for some documents."""
    code = grid.code
    age, rest = code % len(AGE_NAMES), code // len(AGE_NAMES)
    quality, rest = rest % len(QUALITY_NAMES), rest // len(QUALITY_NAMES)
    wants = np.floor(wanted + 1e-9).astype(np.int64)
    columns = {
        "domain": pa.array(pool.domain.names, pa.string()).take(pa.array(grid.domain)),
        "length": pa.array(LENGTH_NAMES).take(pa.array(rest % len(LENGTH_NAMES))),
        "quality": pa.array(QUALITY_NAMES).take(pa.array(quality)),
        "age": pa.array(AGE_NAMES).take(pa.array(age)),
        "documents": np.bincount(grid.cell, minlength=len(code)),
        "available": available,
        "wanted": wants,
        "without_refill": before,
        "chosen": after,
        "lacking": np.where(after < available, 0, np.maximum(0, wants - after)),
    }
    return pa.table(columns, schema=CELLS)


def merged(tables: list[pa.Table]) -> pa.Table:
    """The table `cells`: a row a cell, those that lack most first."""
    if not tables:
        return CELLS.empty_table()
    names, amounts = CELLS.names[:4], CELLS.names[4:]
    table = pa.concat_tables(tables).group_by(names, use_threads=False).aggregate([(name, "sum") for name in amounts])
    table = table.rename_columns([name.removesuffix("_sum") for name in table.column_names]).select(CELLS.names).cast(CELLS)
    return table.sort_by([("lacking", "descending"), ("wanted", "descending"), *((name, "ascending") for name in names)])
