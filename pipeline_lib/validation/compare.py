"""Answers item by item: what a model got wrong, and what one model has forgotten of what another one knew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline_lib.errors import NotFoundError
from pipeline_lib.tables.duck import connect
from pipeline_lib.validation.intervals import estimate
from pipeline_lib.workspace.artifact import Artifact

_ANSWERS = """
SELECT s.suite, s.task, s.item, i.prompt, i.options[i.answer + 1] AS "right", i.options[s.chosen + 1] AS chosen,
  s.confidence, s.score, i.source
FROM {scores} s JOIN items i USING (suite, item) WHERE s.variant = '' AND (? = '' OR s.suite = ?)
"""


def wrong_answers(validated: Artifact, suites: Artifact, *, suite: str = "", limit: int = 20) -> list[dict[str, Any]]:
    """Items that a model answers wrongly, those it is surest of first.

    Args:
        validated: of `validate`.
        suites: of `suites`, whose items were asked.
        suite: only this one; "" for all.
        limit: rows at most.
    """
    with connect({"scores": validated.files("scores"), "items": suites.files("suite_items")}) as db:
        wrong = "s.score < 1 AND s.confidence IS NOT NULL ORDER BY s.confidence DESC, s.suite, s.item"
        query = f"{_ANSWERS.format(scores='scores')} AND {wrong} LIMIT ?"
        rows: list[dict[str, Any]] = db.sql(query, params=[suite, suite, limit]).to_arrow_table().to_pylist()
    return rows


def regressions(model: Artifact, other: Artifact, suites: Artifact, *, suite: str = "", limit: int = 20) -> list[dict[str, Any]]:
    """Items that another model answered rightly and this one does not, those it is surest of first: what it has forgotten."""
    tables = {"scores": model.files("scores"), "others": other.files("scores"), "items": suites.files("suite_items")}
    with connect(tables) as db:
        query = f"""
            WITH mine AS ({_ANSWERS.format(scores="scores")}) SELECT mine.*, i.options[o.chosen + 1] AS before
            FROM mine JOIN others o USING (suite, item) JOIN items i USING (suite, item)
            WHERE o.variant = '' AND mine.score < 1 AND o.score = 1 AND mine.confidence IS NOT NULL
            ORDER BY mine.confidence DESC, suite, item LIMIT ?
        """  # noqa: S608 - fixed texts
        rows: list[dict[str, Any]] = db.sql(query, params=[suite, suite, limit]).to_arrow_table().to_pylist()
    return rows


def forgetting(model: Artifact, other: Artifact) -> list[dict[str, Any]]:
    """Suite and task → items that only one of two models answers rightly, and the change with its 95 % interval; losses first.

    For the test side (suite `language`) the score is bits per byte of the documents that both were asked.

    Raises:
        NotFoundError: the two were asked nothing in common.
    """
    with connect({"mine": model.files("scores"), "others": other.files("scores")}) as db:
        pairs = db.sql(
            """
            SELECT suite, task, m.score AS score, o.score AS before, m.weight AS weight
            FROM mine m JOIN others o USING (suite, task, item, variant) WHERE variant = '' ORDER BY suite, task, item
            """
        ).to_arrow_table()
    if not pairs.num_rows:
        raise NotFoundError("the two models were asked nothing in common", fix="validate both with the same suites")
    found = []
    for suite, task in sorted(set(zip(pairs["suite"].to_pylist(), pairs["task"].to_pylist(), strict=True))):
        part = pairs.filter(pc.and_(pc.equal(pairs["suite"], suite), pc.equal(pairs["task"], task)))
        now, before, weight = (np.asarray(part[name].to_numpy(), np.float64) for name in ("score", "before", "weight"))
        change = estimate(now - before, weight, n_resamples=1000)
        gain = (before - now) if suite == "language" else (now - before)
        found.append(
            {
                "suite": suite, "task": task, "items": len(gain), "before": float(before.sum() / weight.sum()),
                "now": float(now.sum() / weight.sum()), "change": change.to_json(), "gain": float(gain.sum() / weight.sum()),
                "lost": int((gain < 0).sum()), "won": int((gain > 0).sum()),
            }
        )  # fmt: skip
    return sorted(found, key=lambda row: (row["gain"], row["suite"], row["task"]))
