"""The analysis of a run: numbers by subject, and findings with their evidence and the setting to change. Data, not text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline_lib.reporting import corpus, efficiency, learning
from pipeline_lib.reporting.evidence import Evidence
from pipeline_lib.reporting.findings import Finding, Numbers
from pipeline_lib.workspace.artifact import SummaryTable

# In the order in which they are told: what spoiled the run first.
CHECKS: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    learning.divergence, learning.rate_too_high, learning.rate_too_low, corpus.leaks, learning.overfitting, learning.plateau,
    efficiency.data_stall, corpus.duplicates, efficiency.promises, efficiency.beside_steps, learning.clipping, corpus.more_text,
    corpus.mixture, corpus.refused,
)  # fmt: skip
SUBJECTS: Mapping[str, Callable[[Evidence], Numbers]] = {
    "convergence": learning.convergence, "learning rate": learning.learning_rate, "gradients": learning.gradients,
    "efficiency": efficiency.efficiency, "made again": efficiency.again,
}  # fmt: skip


@dataclass(frozen=True)
class Analysis:
    """What is to be said about a run."""

    findings: tuple[Finding, ...] = ()
    numbers: Mapping[str, Numbers] | None = None  # by subject
    recoveries: tuple[tuple[int, str, str, str, str], ...] = ()

    @property
    def troubles(self) -> list[Finding]:
        """The findings that are alarms."""
        return [finding for finding in self.findings if finding.level == "trouble"]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "numbers": {subject: [list(row) for row in rows] for subject, rows in (self.numbers or {}).items()},
            "recoveries": [list(row) for row in self.recoveries],
        }


def analyse(evidence: Evidence) -> Analysis:
    """Look at everything that a run left."""
    found = itertools.chain.from_iterable(check(evidence) for check in CHECKS)
    numbers = {subject: rows for subject, read in SUBJECTS.items() if (rows := read(evidence))}
    return Analysis(tuple(found), numbers, tuple(efficiency.recoveries(evidence)))


def numbers_table(analysis: Analysis) -> SummaryTable:
    """All numbers, by subject."""
    rows: list[list[str | float | int]] = [
        [subject, name, int(value) if float(value).is_integer() else value, unit]
        for subject, numbers in (analysis.numbers or {}).items()
        for name, value, unit in numbers
    ]
    return SummaryTable(("subject", "what", "value", "unit"), rows, "The analysis in numbers")


def recoveries_table(analysis: Analysis) -> SummaryTable:
    """What went wrong in the training, what was done, and what that cost."""
    rows: list[list[str | float | int]] = [list(row) for row in analysis.recoveries[:50]]
    return SummaryTable(("step", "signal", "done", "evidence", "cost"), rows, "Recoveries and what they cost")
