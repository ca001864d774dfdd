"""The gate: whether scores are good enough to become the champion. Pure arithmetic over two models' scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.config.model import GateRule
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import NotFoundError
from pipeline_lib.tables.duck import connect
from pipeline_lib.tables.schemas import OVERLAP, SELECTION
from pipeline_lib.validation.intervals import LEVEL, Estimate, detectable, estimate, paired_change, relative_difference
from pipeline_lib.workspace.artifact import Artifact

GATE_VERSION = 8  # of the rules in this module: a verdict by other rules is no verdict
CHANCE_ITEMS = 30  # a suite with fewer is no evidence: with several small suites one is easily lucky
PAIRED_ITEMS = 20  # with fewer pairs the percentile bootstrap's interval is too narrow to be called 95 %


def level_of(attempt: int) -> float:
    """Of the interval by which the so manieth candidate is judged that is tried against one champion, counted from 1.

    Night after night of candidates that are no better, one would pass by luck. So the k-th spends 1 / (k (k + 1)) of the error
    rate `1 - LEVEL`. These shares sum to 1: by Bonferroni's inequality all candidates that are ever tried against one champion
    err together as rarely as one comparison (alpha spending: Foster and Stine 2008, "α-investing: a procedure for sequential
    control of expected false discoveries", JRSS B 70:429-444, section 2).
    """
    return 1 - (1 - LEVEL) / (attempt * (attempt + 1))


def against_chance(candidate: Artifact, config: PipelineConfig, *, attempt: int = 1) -> dict[str, Any]:
    """The first model's verdict: it must beat a random guess in bits per byte, and chance and majority surely on a suite.

    A suite counts from `CHANCE_ITEMS` items on. One is enough, so the level is shared by all that count (Bonferroni), and by the
    nights on which a first model is looked for (`attempt`, see `level_of`).
    """
    scores = candidate.details["scores"]
    counting = [name for name, score in scores.items() if _may_beat_chance(name, score) and score["n"] >= CHANCE_ITEMS]
    level = 1 - (1 - level_of(attempt)) / max(len(counting), 1)
    wider = NormalDist().inv_cdf((1 + level) / 2) / NormalDist().inv_cdf((1 + LEVEL) / 2)
    beaten, above, reasons = config.gate.metric in scores, False, []
    if not beaten:
        reasons.append(f"{config.gate.metric} was not scored: without it nothing is promoted (is the test side empty?)")
    for name, score in scores.items():
        if "/" in name:
            continue
        if score["lower_is_better"]:
            ok = score["high"] < score["chance"]
            reasons.append(
                f"{name} {score['value']:.3f} {'beats' if ok else 'does not beat'} a random guess ({score['chance']:.3f})"
            )
            beaten &= ok
        elif not _may_beat_chance(name, score):
            continue
        elif score["n"] < CHANCE_ITEMS:
            reasons.append(f"{name} has {score['n']} items, fewer than the {CHANCE_ITEMS} that tell anything about chance")
        else:
            guess = max(score["chance"], score.get("majority", 0.0))
            ok = score["value"] - wider * (score["value"] - score["low"]) > guess
            above |= ok
            reasons.append(
                f"{name} {score['value']:.3f} {'is above' if ok else 'is not surely above'} chance and majority ({guess:.3f})"
            )
    deciding = scores.get(config.gate.metric, {})
    if deciding.get("contaminated_items", 0) > config.gate.most_contaminated * deciding.get("n", 0):
        beaten = False
        reasons.append(f"more than {config.gate.most_contaminated:.0%} of what decides is in the model's training text")
    rules = [keeps(rule, candidate, None, config) for rule in config.gate.rules if rule.at_least is not None]
    kept = all(rule["outcome"] != "fail" for rule in rules)
    reasons += [rule["reason"] for rule in rules]
    return {
        "outcome": "pass" if beaten and above and kept else "fail",
        "metric": config.gate.metric,
        "candidate": scores.get(config.gate.metric, {}),
        "rules": rules,
        "reasons": [
            "there is no champion yet: the first model must beat random guesses in bits per byte and on at least one suite",
            *reasons,
        ],
    }


def _may_beat_chance(name: str, score: dict[str, Any]) -> bool:
    """Whether a score is of a whole suite with right answers: a preference has none."""
    return "/" not in name and not score["lower_is_better"] and bool(score.get("judged", True))


def _suite_of(metric: str) -> str:
    suite = metric.partition("/")[0]
    return "language" if suite == "bits_per_byte" else suite


def _why_not(model: Artifact, metric: str) -> str:
    """Why a model has no score, as the end of a sentence."""
    why = [lost["reason"] for lost in model.details.get("not_scored", []) if lost["suite"] == _suite_of(metric)]
    return f": {why[0]}" if why else ""


def _paired(candidate: Artifact, champion: Artifact, metric: str, learned: Sequence[Path]) -> pa.Table:
    """Scores of both models side by side, the wordings of a fact together; `learned`: the champion was trained on the text;
    `given_away`: the candidate's training text contains one of them (overlap.py).
    """
    suite, task = _suite_of(metric), metric.partition("/")[2]
    leftover = candidate.files("overlap") if "overlap" in candidate.manifest.tables else []
    tables = {"a": candidate.files("scores"), "b": champion.files("scores"), "chosen": learned, "leftover": leftover}
    empty = {"chosen": SELECTION.empty_table(), "leftover": OVERLAP.empty_table()}
    with connect(tables, loaded={name: table for name, table in empty.items() if not tables[name]}) as db:
        return db.sql(
            """
            SELECT sum(a.score) AS candidate, sum(b.score) AS champion, sum(a.weight) AS weight,
              bool_or(suite = 'language' AND item IN (SELECT lower(hex(doc_id)) FROM chosen WHERE side = 'train')) AS learned,
              bool_or(coalesce(o.contaminated, false)) AS given_away
            FROM a JOIN b USING (suite, task, item, variant) LEFT JOIN leftover o USING (suite, item)
            WHERE variant = '' AND suite = ? AND (? = '' OR task = ? OR starts_with(task, ? || '/'))
            GROUP BY task, coalesce(nullif(a.fact, ''), item) ORDER BY task, min(item)
            """,
            params=[suite, task, task, task],
        ).to_arrow_table()


def against_champion(
    candidate: Artifact, champion: Artifact, config: PipelineConfig, *, selection: Sequence[Path] = (), attempt: int = 1
) -> dict[str, Any]:
    """The verdict over two models' scores on the same items.

    It is a pass when the gain's interval at `level_of(attempt)` is above `gate.min_gain`, a fail when the 95 % interval is below
    it, else there is not enough evidence.

    Args:
        candidate: of `validate`.
        champion: of `validate`, over the same items.
        config: metric, gain asked for, resamples, seed.
        selection: what the champion was trained on. Another seed or other shares put documents on the test side that it has
            learned; they are left out.
        attempt: the so manieth candidate that is tried against this champion, from 1.

    Raises:
        NotFoundError: the metric was scored of neither, or only of the candidate.
    """
    metric = config.gate.metric
    scores, others = candidate.details["scores"], champion.details["scores"]
    if metric in others and metric not in scores:
        reason = f"{metric} was not scored{_why_not(candidate, metric)}; without it nothing is promoted"
        return {"outcome": "fail", "metric": metric, "champion": others[metric], "reasons": [reason]}
    if metric not in others:
        raise NotFoundError(
            f"gate.metric {metric!r} was not scored", where="gate.metric", fix=f"one of: {', '.join(sorted(scores))}"
        )
    pairs = _paired(candidate, champion, metric, selection)
    fair = _fair(pairs)
    told = []
    if learned := int(pc.sum(pairs["learned"], min_count=0).as_py()):
        told.append(f"{learned} test documents are left out: the champion was trained on them")
    if given_away := int(pc.sum(pairs["given_away"], min_count=0).as_py()):
        told.append(f"{given_away} of {pairs.num_rows} items are left out: the candidate's training text contains them")
    both = {"metric": metric, "candidate": scores[metric], "champion": others[metric]}
    if given_away > config.gate.most_contaminated * pairs.num_rows:
        reason = f"more than {config.gate.most_contaminated:.0%} of what decides is in the candidate's training text"
        return {"outcome": "fail", **both, "reasons": [reason, *told]}
    if fair.num_rows < PAIRED_ITEMS:
        reason = (
            f"{fair.num_rows} items are left that both models can be judged by, fewer than the {PAIRED_ITEMS} that are needed"
        )
        return {"outcome": "not_enough_evidence", **both, "reasons": [reason, *told]}
    level, lower_is_better = level_of(attempt), scores[metric]["lower_is_better"]
    gain, usual = (_change(fair, lower_is_better, config, one, relative=True) for one in (level, LEVEL))
    if gain is None or usual is None:
        reason = f"the champion's {metric} is 0, or nearly: a relative gain over it means nothing"
        return {"outcome": "not_enough_evidence", **both, "reasons": [reason, *told]}
    outcome, reason = judge(gain, usual, level=level, min_gain=config.gate.min_gain)
    if attempt > 1:
        told.append(f"more evidence is asked for: {attempt - 1} others were tried against this champion before")
    rules = [keeps(rule, candidate, champion, config, selection) for rule in config.gate.rules]
    if any(rule["outcome"] == "fail" for rule in rules):
        outcome = "fail"
    return {
        "outcome": outcome,
        **both,
        "difference": {  # with its 95 % interval; a pass is decided at `level`
            **(_negative(usual) if lower_is_better else usual).to_json(),
            "level": round(level, 6),
            "detectable": round(detectable(gain, level=level), 6),
            "attempt": attempt,
        },
        "rules": rules,
        "reasons": [reason, *told, *(rule["reason"] for rule in rules)],
    }


def against_earlier(
    candidate: Artifact, earlier: Artifact, config: PipelineConfig, *, selection: Sequence[Path] = ()
) -> list[dict[str, Any]]:
    """Whether a model lost to a former champion: what decides, and what the rules hold, must not have fallen surely.

    Args:
        candidate: of `validate`.
        earlier: of `validate`, over the same items: the former champion.
        config: metric and rules. No gain is asked for.
        selection: what the former champion was trained on.

    Returns:
        Of the metric and of each rule on a fall what `keeps` says, at a level that all of them share.
    """
    falls = [rule.model_copy(update={"at_least": None}) for rule in config.gate.rules if rule.most_fall is not None]
    rules = [GateRule(score=config.gate.metric, most_fall=0.0), *falls]
    shared = config.model_copy(update={"gate": config.gate.model_copy(update={"rules": rules})})
    return [keeps(rule, candidate, earlier, shared, selection) for rule in rules]


def keeps(
    rule: GateRule, candidate: Artifact, champion: Artifact | None, config: PipelineConfig, selection: Sequence[Path] = ()
) -> dict[str, Any]:
    """Whether a model keeps a rule: `fail` when it surely does not, at a level shared by all rules (Bonferroni), else `pass`.

    Refusals are corrected over the rules, not over nights: each night's candidate is another one, and a false refusal (at most in
    2.5 of 100 nights, all rules together) costs that night and no more, while an interval that widened from night to night would
    let ever larger harm pass. What no single night shows adds up to `against_earlier`.

    Without a champion only `at_least` can be asked. What was scored of neither is `not_scored`, and told: it holds nobody up. A
    model that gives no number where the champion does has lost what it knew. Of preferences, where no answer is right, the score
    is the share of stereotyped ones: a fall is a rise of it, `at_least` a limit from above.
    """
    score = candidate.details["scores"].get(rule.score)
    if score is None:
        broken = champion is not None and rule.score in champion.details["scores"]
        told = f"rule on {rule.score}: not scored{_why_not(candidate, rule.score)}" + "; the champion was" * broken
        return {"score": rule.score, "outcome": "fail" if broken else "not_scored", "reason": told}
    level = 1 - (1 - LEVEL) / sum((one.most_fall is not None) + (one.at_least is not None) for one in config.gate.rules)
    lower_is_better = score["lower_is_better"] or not score.get("judged", True)
    sign = -1.0 if lower_is_better else 1.0
    failed, limits = False, []
    if rule.at_least is not None:
        own = _own(candidate, rule.score, config, level)
        failed |= sign * (own.low if lower_is_better else own.high) < sign * rule.at_least
        limit = f"asked for {'at most' if lower_is_better else 'at least'} {rule.at_least:g}"
        limits.append(f"{own.value:.4g} ({own.low:.4g} to {own.high:.4g}), {limit}")
    if rule.most_fall is not None and champion is not None:
        pairs = _paired(candidate, champion, rule.score, selection)
        pairs = _fair(pairs)
        relative = score["lower_is_better"]
        enough = pairs.num_rows >= PAIRED_ITEMS
        change = _change(pairs, lower_is_better, config, level, relative=relative) if enough else None
        if change is None:
            limits.append(f"{pairs.num_rows} items are too few to compare")
        else:
            failed |= change.high < -rule.most_fall
            interval = f"{change.low:+z.2%} to {change.high:+z.2%}"
            smallest = detectable(change, level=level)
            limits.append(
                f"changed by {change.value:+z.2%} ({interval}; detectable {smallest:.2%}), may fall by {rule.most_fall:.2%}"
            )
    return {"score": rule.score, "outcome": "fail" if failed else "pass", "reason": f"rule on {rule.score}: " + "; ".join(limits)}


def _columns(table: pa.Table) -> list[NDArray[np.float64]]:
    return [np.asarray(table[name].to_numpy(), np.float64) for name in ("candidate", "champion", "weight")]


def _fair(pairs: pa.Table) -> pa.Table:
    """The pairs by which both models can be judged."""
    return pairs.filter(pc.invert(pc.or_(pairs["learned"], pairs["given_away"]))).drop_columns(["learned", "given_away"])


def _change(pairs: pa.Table, lower_is_better: bool, config: PipelineConfig, level: float, *, relative: bool) -> Estimate | None:
    """How much better the candidate is: points of a share, or (`relative`) a share of the champion's bits per byte."""
    candidate, champion, weight = _columns(pairs)
    options: Any = {"n_resamples": config.validation.bootstrap, "seed": config.seed, "level": level}
    if relative:
        found = relative_difference(candidate, champion, weight, **options)
    else:
        found = paired_change(candidate - champion, weight, **options)
    if found is None or not lower_is_better:
        return found
    return _negative(found)


def _negative(found: Estimate) -> Estimate:
    return replace(found, value=-found.value, low=-found.high, high=-found.low)


def _own(candidate: Artifact, metric: str, config: PipelineConfig, level: float) -> Estimate:
    """The model's own score at the level that the rules share."""
    scores, _, weight = _columns(_paired(candidate, candidate, metric, ()))
    return estimate(scores, weight, n_resamples=config.validation.bootstrap, seed=config.seed, level=level)


def judge(gain: Estimate, usual: Estimate, *, level: float, min_gain: float) -> tuple[str, str]:
    """Pass when the gain's whole interval is above `min_gain`, fail when the usual one (95 %) is wholly below, else not enough
    evidence; and the reason, with the gain that such a comparison finds in 80 of 100 cases (`intervals.detectable`).
    """
    told = (
        f"gain {gain.value:+z.2%} ({100 * level:.4g} % interval {gain.low:+z.2%} to {gain.high:+z.2%}) over {gain.n} items, "
        f"asked for {min_gain:+.2%}; detectable is {min_gain + detectable(gain, level=level):+.2%}"
    )
    if gain.low > min_gain:
        return "pass", told
    return ("fail" if usual.high < min_gain else "not_enough_evidence"), told
