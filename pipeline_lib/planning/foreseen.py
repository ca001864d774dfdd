"""What a run will have spent before it plans: the seconds of the stages that read and pack data, foreseen from earlier runs."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pipeline_lib.workspace.runs import RunRecord

REMEMBERED_RUNS = 5
BYTES_PER_TOKEN = 4.0  # of English text; only for the first run on a machine
FIRST_BYTES_PER_SECOND = 2e6  # from files to packed tokens on two cores, judged on the slow side
FIRST_SECONDS = 10.0  # items of validation, imports, tokenizer


@dataclass(frozen=True)
class Foreseen:
    """Seconds, and where they are from, in words."""

    seconds: float
    basis: str


def data_seconds(
    stages: Collection[str], records: Iterable[RunRecord], *, cpu: str, documents: float | None, tokens: float
) -> Foreseen:
    """Seconds of these stages: the median of what the newest runs on this processor took, by document where these are counted.

    The first run on a machine is judged by the size of the text.

    Args:
        stages: that would do work.
        records: of earlier runs.
        cpu: this machine's.
        documents: of this run; None: as many as they had.
        tokens: of this run.
    """
    if not stages:
        return Foreseen(0.0, "reused")
    told = []
    for record in records:
        found, counted = record.features, record.features.get("documents")
        if found.get("cpu") != cpu or not isinstance(counted, int | float) or counted <= 0:
            continue
        seconds = [found.get(f"{stage}_seconds") for stage in stages]
        if all(isinstance(second, int | float) for second in seconds):
            share = 1.0 if documents is None else documents / counted
            told.append(sum(float(second or 0.0) for second in seconds) * share)
    if told:
        newest = told[-REMEMBERED_RUNS:]
        return Foreseen(statistics.median(newest), f"as {len(newest)} earlier runs took")
    return Foreseen(FIRST_SECONDS + tokens * BYTES_PER_TOKEN / FIRST_BYTES_PER_SECOND, "judged: no run here has read data yet")
