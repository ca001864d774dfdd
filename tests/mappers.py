"""A mapper over processes without Prefect: stages must give the same bytes through it, too."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from pipeline_lib.workspace.services import Mapper

T = TypeVar("T")
R = TypeVar("R")


def process_mapper(workers: int) -> Mapper:
    """A mapper over `workers` fresh processes, for work that does not release the GIL; function and items must be picklable."""

    def apply(function: Callable[[T], R], items: Sequence[T], /) -> list[R]:
        if workers <= 1 or len(items) <= 1:
            return [function(item) for item in items]
        with ProcessPoolExecutor(min(workers, len(items)), mp_context=multiprocessing.get_context("spawn")) as pool:
            return list(pool.map(function, items))

    return apply
