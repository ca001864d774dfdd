"""What a selection is, in numbers: shares before and after, by domain, source, kind and age; and what must not go unnoticed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.config.data import SelectConfig
from pipeline_lib.selection.cells import AGE_NAMES, age_codes
from pipeline_lib.selection.choice import Choice, costs_of
from pipeline_lib.selection.pool import Labels, Pool
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.stage import StageRun

SHORT = 0.01  # of its share, which a kind may miss because documents are whole
SHOWN = 20  # names in a warning


def summary_of(pool: Pool, training: NDArray[np.bool_], weight: NDArray[np.int64]) -> SummaryTable:
    """Domains before and after: all documents, and what is trained on.

    Args:
        pool: all documents.
        training: which are trained on.
        weight: how often.
    """
    shares = _before_and_after(pool, pool.domain, weight)
    quality = [_means(pool, pool.domain, mask) for mask in (np.ones(len(pool), dtype=bool), training)]
    rows = [
        (
            name, row["documents"][0], row["documents"][1], row["tokens"][0], row["tokens"][1],
            f"{row['share'][0]:.1%}", f"{row['share'][1]:.1%}", f"{quality[0][i]:.2f}", f"{quality[1][i]:.2f}",
        )
        for i, (name, row) in enumerate(shares.items())
    ]  # fmt: skip
    columns = (
        "domain", "documents", "for training", "tokens, estimated", "with repeats, for training", "share before", "share after",
        "quality before", "quality after",
    )  # fmt: skip
    return SummaryTable(columns, rows, "Selection")


def shares_of(pool: Pool, weight: NDArray[np.int64]) -> dict[str, dict[str, Any]]:
    """By domain, source, kind and age: {name: {documents, tokens, share: [before, after]}}."""
    labels = {"domain": pool.domain, "source": pool.source, "kind": pool.kind, "age": Labels(list(AGE_NAMES), age_codes(pool))}
    return {what: _before_and_after(pool, label, weight) for what, label in labels.items()}


def cells_detail(cells: pa.Table) -> dict[str, int]:
    """How many cells there are, how many lacked something before the refill and how many still do."""
    wanted, before, lacking = cells["wanted"], cells["without_refill"], cells["lacking"]
    return {
        "cells": cells.num_rows,
        "cells_refilled": int(pc.sum(pc.greater(cells["chosen"], before)).as_py() or 0),
        "cells_short_before": int(pc.sum(pc.greater(wanted, before)).as_py() or 0),
        "cells_short": int(pc.sum(pc.greater(lacking, 0)).as_py() or 0),
    }


def warn(run: StageRun, pool: Pool, training: NDArray[np.bool_], choice: Choice, config: SelectConfig) -> None:
    """Events: a domain or source without a single training document, a floor or a kind's share that was not reached."""
    for what, labels in (("domain", pool.domain), ("source", pool.source)):
        there = np.bincount(labels.codes, minlength=len(labels.names))
        left = np.bincount(labels.codes[training], minlength=len(labels.names))
        if missing := [labels.names[i] for i in np.flatnonzero((there > 0) & (left == 0))]:
            lost = int(there[left == 0].sum())
            run.services.log(f"WARNING: no document of {what} {', '.join(missing[:SHOWN])} is trained on ({lost} are left out)")
            run.event(f"{what}_vanishes", **{f"{what}s": missing})
    if choice.short:
        run.event("floor_not_reached", floor=config.source_floor, documents=choice.short)
    if config.kind_shares:
        spent = np.bincount(pool.kind.codes, weights=costs_of(pool, config) * choice.repeats, minlength=len(pool.kind.names))
        has = dict(zip(pool.kind.names, (spent / max(1.0, spent.sum())).tolist(), strict=True))
        for kind, share in config.kind_shares.items():
            if abs(has.get(kind, 0.0) - share) > SHORT:
                run.event("kind_share_not_met", record_kind=kind, wanted=share, has=round(has.get(kind, 0.0), 4))


def _before_and_after(pool: Pool, labels: Labels, weight: NDArray[np.int64]) -> dict[str, dict[str, Any]]:
    count = len(labels.names)
    amounts = (np.ones(len(pool)), weight > 0, pool.tokens, pool.tokens * weight)
    sums = np.array([np.bincount(labels.codes, weights=a, minlength=count) for a in amounts]).astype(np.int64)  # exact below 2^53
    whole = np.maximum(1, sums[2:].sum(axis=1))
    return {
        name: {
            "documents": sums[:2, i].tolist(),
            "tokens": sums[2:, i].tolist(),
            "share": np.round(sums[2:, i] / whole, 4).tolist(),
        }
        for i, name in enumerate(labels.names)
        if sums[0, i]
    }


def _means(pool: Pool, labels: Labels, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    count = np.bincount(labels.codes[mask], minlength=len(labels.names))
    total = np.bincount(labels.codes[mask], weights=pool.quality[mask], minlength=len(labels.names))
    return total / np.maximum(count, 1)
