"""Past runs as columns, so that ten thousand of them are compared at once."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.memory.possible import doubts
from pipeline_lib.memory.record import NUMBERS, WORDS, from_row
from pipeline_lib.workspace.runs import RunRecord

Features = Mapping[str, float | str]


class Frame(Protocol):
    """Past runs in the order of their ids, so by time."""

    @property
    def run_ids(self) -> list[str]:
        """Their ids."""

    @property
    def doubted(self) -> NDArray[np.bool_]:
        """Which of them hold something that cannot be true."""

    def numbers(self, name: str) -> NDArray[np.float64]:
        """A feature of all, NaN where it is missing or no number."""

    def same(self, name: str, value: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(whose feature is this word, who has it at all)."""

    def features(self, row: int) -> dict[str, float | str]:
        """Everything that is known of one."""


def believed(table: pa.Table) -> pa.ChunkedArray:
    """Which rows of the memory's table hold nothing that cannot be true."""
    return pc.equal(pc.fill_null(pc.list_value_length(table["doubts"]), 0), 0)


class RecordFrame:
    """Run records as columns; those without features are left out."""

    def __init__(self, records: Iterable[RunRecord]) -> None:
        self._rows = sorted(((r.run_id, r.features) for r in records if r.features), key=lambda row: row[0])
        self.run_ids = [run_id for run_id, _ in self._rows]
        self.doubted = np.array([bool(doubts(features)) for _, features in self._rows], bool)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """See `Frame`."""
        values = (features.get(name) for _, features in self._rows)
        return np.array([value if isinstance(value, int | float) else np.nan for value in values], np.float64)

    def same(self, name: str, value: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """See `Frame`."""
        values = [features.get(name) for _, features in self._rows]
        return np.array([v == value for v in values], bool), np.array([v is not None for v in values], bool)

    def features(self, row: int) -> dict[str, float | str]:
        """See `Frame`."""
        return dict(self._rows[row][1])


class TableFrame:
    """The table of the memory (`record.SCHEMA`), in the order of run ids."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()

    @functools.cached_property
    def run_ids(self) -> list[str]:
        """See `Frame`."""
        return self.table["run_id"].to_pylist()  # type: ignore[no-any-return]

    @functools.cached_property
    def doubted(self) -> NDArray[np.bool_]:
        """See `Frame`."""
        return ~np.asarray(believed(self.table), bool)

    def numbers(self, name: str) -> NDArray[np.float64]:
        """See `Frame`."""
        if name in NUMBERS:
            column = self.table[name]
        elif name in WORDS or not len(self.table):
            return np.full(len(self.table), np.nan)
        else:
            column = pc.map_lookup(self.table["more"], name, "first")
        return np.asarray(pc.fill_null(column, np.nan), np.float64)

    def same(self, name: str, value: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """See `Frame`."""
        if name not in WORDS:
            known = ~np.isnan(self.numbers(name))
            return np.zeros(len(known), bool), known
        column = self.table[name]
        return np.asarray(pc.fill_null(pc.equal(column, value), False), bool), np.asarray(pc.is_valid(column), bool)

    def features(self, row: int) -> dict[str, float | str]:
        """See `Frame`."""
        return from_row(self.table.slice(row, 1).to_pylist()[0]).features
