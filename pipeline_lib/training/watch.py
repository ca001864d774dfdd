"""What is written beside the steps: losses by source and domain, layers; at each evaluation samples and worst documents."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from pipeline_lib.training.evaluate import Evaluation
from pipeline_lib.training.journal import Journal, read
from pipeline_lib.training.layers import Layers
from pipeline_lib.training.loop import Session
from pipeline_lib.training.origins import Origins
from pipeline_lib.training.parts import PartLosses, Sums, by_name, worst
from pipeline_lib.training.samples import Prompts

WORST = 10  # dev documents an evaluation
CURVES = 30  # domains, at most, that have a curve of their own in the tracker
_NOT_IN_NAMES = re.compile(r"[^\w./ -]")  # MLflow refuses other characters in a metric's name


class Watch:
    """Collects and writes; it changes nothing that training sees."""

    def __init__(
        self,
        session: Session,
        origins: Origins,
        prompts: Prompts,
        journal: Journal,
        *,
        context: int,
        event: Callable[..., None],
        metrics: Callable[..., None],
    ) -> None:
        self.session, self.origins, self.prompts, self.journal = session, origins, prompts, journal
        self.context, self.event, self.metrics = context, event, metrics
        self.parts, self.layers = PartLosses(session, origins, self._parts), Layers(session, journal.add)

    @property
    def callbacks(self) -> list[TrainerCallback]:
        """Before all others, in this order."""
        return [self.parts, self.layers]

    def flush(self) -> None:
        """Before a checkpoint and at the end: everything is written, nothing has to be saved."""
        self.parts.flush()
        self.layers.flush()
        self.journal.flush()

    def evaluated(self, evaluation: Evaluation) -> None:
        """Write an evaluation's parts, worst documents and samples, and say in one event what it found."""
        step = self.session.step
        summary: dict[str, Any] = {
            "step": step, "dev_loss": evaluation.loss, "perplexity": evaluation.perplexity, "accuracy": evaluation.accuracy,
        }  # fmt: skip
        known = np.isfinite(evaluation.losses) & (evaluation.rows >= 0)
        rows, losses = evaluation.rows[known], evaluation.losses[known]
        if len(rows):
            sums = Sums.none(len(self.origins.cells))
            sums.add(self.origins.cell_of[rows], losses)
            parts = [{"side": "dev", "first_step": step, "step": step, **row} for row in sums.rows(self.origins)]
            self._parts("losses", parts)
            ranked = worst(self.origins, rows, losses, WORST)
            self.journal.add("worst", [{"step": step, **row} for row in ranked])
            domains = by_name(parts, "domain")
            summary |= {"worst_domain": max(domains, key=lambda name: domains[name])} if len(domains) > 1 else {}
        samples = self.prompts.write(self.session.model, self.context)
        self.journal.add("samples", [{"step": step, **sample} for sample in samples])
        for name in ("repetition", "distinct_2"):
            if values := [sample[name] for sample in samples if sample[name] is not None]:
                summary[name] = statistics.fmean(values)
        self.event("evaluated", **summary)
        self.metrics(
            {name: value for name, value in summary.items() if isinstance(value, float) and name != "dev_loss"}, step=step
        )

    def _parts(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Into the journal, and as curves by domain and by source to the tracker."""
        self.journal.add(table, rows)
        for name in ("domain", "source"):
            means = by_name(rows, name)
            if 1 < len(means) <= CURVES:
                side = {"train": "train_loss", "dev": "dev_loss"}[rows[0]["side"]]
                curves = {_NOT_IN_NAMES.sub("_", f"{side}/{name}/{key or 'none'}"): value for key, value in means.items()}
                self.metrics(curves, step=int(rows[0]["step"]))


def evaluations_in(folder: Path) -> dict[int, dict[str, Any]]:
    """What the event of each evaluation said, by step, over all attempts of a journal's folder."""
    events = read(folder, "events").to_pylist()
    return {int(row["step"]): json.loads(row["detail"]) for row in events if row["kind"] == "evaluated"}
