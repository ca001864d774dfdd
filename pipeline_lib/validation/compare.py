"""Answers item by item: what a model got wrong, and what one model has forgotten of what another one knew."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from pipeline_lib.errors import NotFoundError
from pipeline_lib.tables.duck import connect
from pipeline_lib.validation.intervals import LEVEL, detectable, paired_change
from pipeline_lib.workspace.artifact import Artifact

By = Literal["task", "domain", "source", "fact", "item"]
FEWEST = 20  # documents or facts of a group, of which an interval tells anything
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


def forgetting(
    model: Artifact,
    other: Artifact,
    *,
    by: By = "task",
    suites: Artifact | None = None,
    documents: Sequence[Path] = (),
    shared_level: bool = False,
) -> list[dict[str, Any]]:
    """What changed between two models on what both were asked: a row a group, with its 95 % interval; losses first.

    For the test side (suite `language`) the score is bits per byte of the documents.

    Args:
        model: of `validate`.
        other: of `validate`: the earlier model.
        by: `task` (a category; a domain of the test side), `domain` (its first part), `source` (of a document; of an item the
            table or file that it is from), `fact` (all its wordings) or `item`.
        suites: of `suites`; needed for the sources of items.
        documents: files of the documents; needed for the sources of documents.
        shared_level: widen the intervals, so that all of them together err as rarely as one (Bonferroni).

    Returns:
        Rows with suite, the group, items, before, now, change (with its interval), detectable (the change that such a comparison
        finds in 80 of 100 cases), gain (positive: better), lost and won (items), and worse (surely).

    Raises:
        NotFoundError: the two were asked nothing in common.
    """
    tables: dict[str, Sequence[Path]] = {"mine": model.files("scores"), "others": other.files("scores")}
    tables |= {"items": suites.files("suite_items")} if suites else {}
    tables |= {"documents": documents} if documents else {}
    source = ["NULL"]
    joins = ""
    if suites:
        source.append("split_part(i.source, ':', 1)")
        joins += " LEFT JOIN items i ON (i.suite, i.item) = (m.suite, m.item)"
    if documents:
        source.append("d.source")
        known = "SELECT lower(hex(doc_id)) AS id, source FROM documents"
        joins += f" LEFT JOIN ({known}) d ON m.suite = 'language' AND d.id = m.item"
    group = {
        "task": "m.task", "domain": "split_part(m.task, '/', 1)", "source": f"coalesce({', '.join(reversed(source))}, '')",
        "fact": "coalesce(nullif(m.fact, ''), m.item)", "item": "m.item",
    }[by]  # fmt: skip
    with connect(tables) as db:
        pairs = db.sql(
            f"""
            SELECT m.suite AS suite, {group} AS part, coalesce(nullif(m.fact, ''), m.item) AS fact, m.score AS score,
              o.score AS before,
              m.weight AS weight, coalesce(m.form = 'preference', false) AS preference
            FROM mine m JOIN others o ON (m.suite, m.task, m.item, m.variant) = (o.suite, o.task, o.item, o.variant){joins}
            WHERE m.variant = '' ORDER BY m.suite, part, m.item
            """  # noqa: S608 - fixed texts
        ).to_arrow_table()
    if not pairs.num_rows:
        raise NotFoundError("the two models were asked nothing in common", fix="validate both with the same suites")
    suite, part = np.array(pairs["suite"].to_pylist()), np.array(pairs["part"].to_pylist())
    begins = np.flatnonzero(np.append(True, (suite[1:] != suite[:-1]) | (part[1:] != part[:-1])))
    level = 1 - (1 - LEVEL) / len(begins) if shared_level else LEVEL
    found = []
    for begin, end in itertools.pairwise([*begins.tolist(), len(suite)]):
        row = {"suite": str(suite[begin]), by: str(part[begin])}
        found.append(row | _changed(pairs.slice(begin, end - begin), row["suite"] == "language", level))
    return sorted(found, key=lambda row: (row["gain"], row["suite"], row[by]))


def _changed(pairs: pa.Table, lower_is_better: bool, level: float) -> dict[str, Any]:
    now, before, weight = (np.asarray(pairs[name].to_numpy(), np.float64) for name in ("score", "before", "weight"))
    facts = np.unique(pairs["fact"].to_pylist(), return_inverse=True)[1]
    sums = [np.bincount(facts, weights=values).astype(np.float64) for values in (now - before, weight)]
    change = paired_change(sums[0], sums[1], n_resamples=1000, level=level)
    sign = -1.0 if lower_is_better or bool(pairs["preference"][0].as_py()) else 1.0
    gain = sign * (now - before)
    return {
        "items": len(gain), "before": float(before.sum() / weight.sum()), "now": float(now.sum() / weight.sum()),
        "change": change.to_json(), "detectable": round(detectable(change, level=level), 6),
        "gain": float(gain.sum() / weight.sum()), "lost": int((gain < 0).sum()),
        "won": int((gain > 0).sum()), "worse": max(sign * change.low, sign * change.high) < 0 and change.n >= FEWEST,
    }  # fmt: skip


def forgotten(model: Artifact, other: Artifact) -> dict[str, Any]:
    """How much of what an earlier model could is surely lost: {"share" of the tasks, "tasks", "worse": names, worst first}."""
    rows = forgetting(model, other, shared_level=True)
    rows = [row for row in rows if row["change"]["n"] >= FEWEST]
    worse = [f"{row['suite']}/{row['task']}" for row in rows if row["worse"]]
    return {"share": round(len(worse) / max(len(rows), 1), 4), "tasks": len(rows), "worse": worse}
