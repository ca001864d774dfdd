"""What a validation measured, in the words that were asked."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from flows.api.results import Validated, finite
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.runs import RunRecord

# Metric of a validation → built-in suite that measures it; accuracy: the mean over the files that were named.
VALIDATION = {
    "accuracy": "", "factuality": "knowledge", "earth_grounding": "earth", "grammar": "grammar", "syntax": "syntax",
    "reasoning": "zen",
}  # fmt: skip


def validated(artifact: Artifact, record: RunRecord, files: Mapping[str, Path], wanted: Sequence[str]) -> Validated:
    """The scores of a `validate` artifact by the names of files and metrics; what was not scored is in the notes."""
    scores = artifact.details["scores"]
    own = {name: scores[path.stem] for name, path in files.items() if path.stem in scores}
    categories = {name: float(score["value"]) for name, score in own.items()}
    lost = [f"{name} was not scored: {path.name}" for name, path in files.items() if name not in own]
    lost += [f"not scored: {one['suite']}: {one['reason']}" for one in artifact.details["not_scored"]]
    found: dict[str, float | None] = {}
    for name in wanted:
        if name == "accuracy":
            found[name] = statistics.fmean(categories.values()) if categories else None
        else:
            found[name] = finite(scores.get(VALIDATION[name], {}).get("value"))
    measured = [value for value in found.values() if value is not None]
    return Validated(
        record.run_id, record.report, tuple(lost),
        overall_score=statistics.fmean(measured) if measured else None,
        category_scores=categories,
        metrics=found,
        intervals={name: (float(score["low"]), float(score["high"])) for name, score in own.items()},
    )  # fmt: skip
