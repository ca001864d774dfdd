"""Tables of the validation: scores beside guesses, calibration, bias, robustness, and what was not scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_lib.reporting.gather import Facts
from pipeline_lib.validation.intervals import spelled
from pipeline_lib.workspace.artifact import SummaryTable

Rows = list[list[str | float | int]]


def scores_table(facts: Facts, *, tasks: bool) -> SummaryTable:
    """Scores with their intervals beside the champion's and what guesses would give: the suites, or their single tasks."""
    shown = {name: score for name, score in facts.scores.items() if ("/" in name) == tasks}
    theirs = [_interval(facts.champion.get(name)) for name in shown]
    rows: Rows = [
        [name, round(s["value"], 4), spelled(s), *([other] if any(theirs) else []), s["chance"],
         s.get("majority", ""), s["n"]]
        for (name, s), other in zip(shown.items(), theirs, strict=True)
    ]  # fmt: skip
    champion = ("the champion's",) if any(theirs) else ()
    title = "Single tasks" if tasks else "Scores on the test side"
    return SummaryTable(("score", "value", "95 % interval", *champion, "chance", "majority", "items"), rows, title)


def certainty_table(facts: Facts) -> SummaryTable:
    """How far a model's certainty can be trusted, and whether it says the same in other words."""
    names = ("calibration_error", "brier", "hallucination", "consistency", "stable_wrong")
    rows: Rows = [
        [name, *(s.get(measure, "") for measure in names)]
        for name, s in facts.scores.items()
        if "brier" in s and ("/" not in name or (name.startswith("earth/") and name.count("/") == 1))
    ]
    rows += [
        [f"{suite}, {region}", *(s.get(measure, "") for measure in names)]
        for suite, regions in facts.validation.get("regions", {}).items()
        for region, s in regions.items()
    ]
    columns = ("suite", "calibration error", "Brier score", "wrong and sure", "same answer in other words", "same and wrong")
    return SummaryTable(columns, rows, "Certainty (shares)")


def bias_table(facts: Facts) -> SummaryTable:
    """Which way the model leans; an asterisk where that is no accident at 5 % over all rows."""
    rows: Rows = [
        [f"{row['suite']}/{row['category']}", f"{row['value']:.3f}{' *' if row['significant'] else ''}",
         f"{row['low']:.3f} to {row['high']:.3f}", row["unbiased"], "" if row["effect"] is None else row["effect"], row["n"]]
        for row in facts.validation.get("bias", [])
    ]  # fmt: skip
    columns = ("questions", "toward the stereotype", "95 % interval", "unbiased", "effect size", "items")
    return SummaryTable(columns, rows, "Bias")


def robustness_table(facts: Facts) -> SummaryTable:
    """What small changes of the wording do."""
    rows: Rows = [
        [suite, variant, round(flips["value"], 4), f"{flips['low']:.3f} to {flips['high']:.3f}", round(drop["value"], 4),
         f"{drop['low']:+z.3f} to {drop['high']:+z.3f}", flips["n"]]
        for suite, variant, flips, drop in (
            (row["suite"], row["variant"], row["flips"], row["drop"]) for row in facts.validation.get("robustness", [])
        )
    ]  # fmt: skip
    columns = ("suite", "changed", "answers that change", "95 % interval", "fall of the score", "95 % interval", "items")
    return SummaryTable(columns, rows, "Robustness")


def contamination_table(facts: Facts) -> SummaryTable:
    """Suites and domains of which the training text gives something away: the score with and without it."""
    rows: Rows = [
        [name, score["contaminated_items"], score["n"], *(_interval(score.get(part)) for part in ("clean", "contaminated"))]
        for name, score in facts.scores.items()
        if score.get("contaminated_items") and ("/" not in name or name.startswith("bits_per_byte/"))
    ]
    return SummaryTable(("score", "found in training text", "items", "clean items", "contaminated items"), rows, "Contamination")


def _interval(score: Mapping[str, Any] | None) -> str:
    return f"{score['value']:.4f} ({spelled(score)})" if score else ""


def years_table(facts: Facts) -> SummaryTable:
    """Bits per byte of test documents by their year."""
    rows: Rows = [[year, _interval(score), score["n"]] for year, score in facts.validation.get("years", {}).items()]
    return SummaryTable(("year", "bits per byte", "documents"), rows, "Test text by year")


def written_table(facts: Facts) -> SummaryTable:
    """What the model writes."""
    rows: Rows = [[sample["prompt"], sample["text"]] for sample in facts.validation.get("samples", [])]
    return SummaryTable(("beginning", "what the model writes"), rows, "Samples")


def not_scored_table(facts: Facts) -> SummaryTable:
    """What is missing from the scores, and why."""
    rows: Rows = [[row["suite"], row.get("items", ""), row["reason"]] for row in facts.validation.get("not_scored", [])]
    return SummaryTable(("suite", "items", "reason"), rows, "Not scored")
