"""The gate: whether scores are good enough to become the champion. Pure arithmetic over two models' scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import NotFoundError
from pipeline_lib.tables.duck import connect
from pipeline_lib.validation.intervals import Estimate, relative_difference
from pipeline_lib.workspace.artifact import Artifact


def against_chance(candidate: Artifact, config: PipelineConfig) -> dict[str, Any]:
    """The first model's verdict: it must beat byte frequencies, and be surely above chance on at least one suite."""
    scores = candidate.details["scores"]
    beaten, reasons = True, []
    for name, score in scores.items():
        if "/" in name:
            continue
        if score["lower_is_better"]:
            ok = score["high"] < score["chance"]
            reasons.append(
                f"{name} {score['value']:.3f} {'beats' if ok else 'does not beat'} byte frequencies ({score['chance']:.3f})"
            )
            beaten &= ok
        else:
            ok = score["low"] > score["chance"]
            reasons.append(
                f"{name} {score['value']:.3f} {'is above' if ok else 'is not surely above'} chance ({score['chance']:.3f})"
            )
    above = any(not s["lower_is_better"] and s["low"] > s["chance"] for n, s in scores.items() if "/" not in n)
    return {
        "outcome": "pass" if beaten and above else "fail",
        "metric": config.gate.metric,
        "candidate": scores.get(config.gate.metric, {}),
        "reasons": [
            "there is no champion yet: the first model must beat byte frequencies, and chance on at least one suite",
            *reasons,
        ],
    }


def _paired(candidate: Artifact, champion: Artifact, metric: str) -> pa.Table:
    """Scores of the items that both models were asked, side by side."""
    suite, _, task = metric.partition("/")
    suite = "language" if suite == "bits_per_byte" else suite
    with connect({"a": candidate.files("scores"), "b": champion.files("scores")}) as db:
        return db.sql(
            """
            SELECT a.score AS candidate, b.score AS champion, a.weight AS weight FROM a JOIN b USING (suite, task, item)
            WHERE suite = ? AND (? = '' OR task = ?) ORDER BY task, item
            """,
            params=[suite, task, task],
        ).to_arrow_table()


def against_champion(candidate: Artifact, champion: Artifact, config: PipelineConfig) -> dict[str, Any]:
    """The verdict over two models' scores on the same items."""
    metric = config.gate.metric
    scores, others = candidate.details["scores"], champion.details["scores"]
    if metric not in scores or metric not in others:
        raise NotFoundError(
            f"gate.metric {metric!r} was not scored", where="gate.metric", fix=f"one of: {', '.join(sorted(scores))}"
        )
    pairs = _paired(candidate, champion, metric)
    columns = {name: np.asarray(pairs[name].to_numpy(), np.float64) for name in pairs.column_names}
    difference = relative_difference(
        columns["candidate"], columns["champion"], columns["weight"], n_resamples=config.validation.bootstrap, seed=config.seed
    )
    outcome, reason = judge(difference, lower_is_better=scores[metric]["lower_is_better"], min_gain=config.gate.min_gain)
    return {
        "outcome": outcome,
        "metric": metric,
        "candidate": scores[metric],
        "champion": others[metric],
        "difference": difference.to_json(),
        "reasons": [reason],
    }


def judge(difference: Estimate, *, lower_is_better: bool, min_gain: float) -> tuple[str, str]:
    """Pass when the relative gain's whole interval is above `min_gain`, fail when it is wholly below, else not enough evidence."""
    sign = -1 if lower_is_better else 1
    gain, low, high = sign * difference.value, *sorted((sign * difference.low, sign * difference.high))
    told = f"gain {gain:+.2%} (95 % interval {low:+.2%} to {high:+.2%}) over {difference.n} items, asked for {min_gain:+.2%}"
    if low > min_gain:
        return "pass", told
    return ("fail" if high < min_gain else "not_enough_evidence"), told
