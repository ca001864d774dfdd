"""Scores on the dev side: a bounded number of sequences, always the same ones, without a random number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline_lib.training.data import Batch
from pipeline_lib.training.loss import IGNORED, shifted
from pipeline_lib.training.objective import Objective
from pipeline_lib.workspace.faults import fault_point

DEV_SEQUENCES = 128
NO_ROW = -1


@dataclass(frozen=True)
class Evaluation:
    """What the model made of some batches: every predicted position."""

    rows: np.ndarray  # int64: whose document it is, row of the table `rows`; -1 where documents are not known
    losses: np.ndarray  # float64, nats
    hits: np.ndarray  # bool: the likeliest token was the right one

    @property
    def loss(self) -> float:
        """Mean in nats a token; NaN when nothing was predicted."""
        return float(self.losses.sum() / len(self.losses)) if len(self.losses) else math.nan

    @property
    def perplexity(self) -> float:
        """e to the loss; infinity where that is too large for a number."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def accuracy(self) -> float:
        """Share of the tokens that were the likeliest."""
        return float(self.hits.mean()) if len(self.hits) else math.nan


@torch.no_grad()
def evaluate(model: Any, objective: Objective, batches: Sequence[Batch]) -> Evaluation:
    """Score batches without touching a random number or the model's mode."""
    training = model.training
    model.eval()
    rows, losses, hits = [], [], []
    try:
        for batch in batches:
            placed = {name: values.to(model.device) for name, values in batch.items()}
            objective(placed)
            counted = (shifted(placed["labels"]) != IGNORED).flatten()
            losses.append(objective.losses.flatten()[counted].double().cpu())
            hits.append(objective.hits.flatten()[counted].cpu())
            known = placed.get("rows", torch.full_like(placed["labels"], NO_ROW)).flatten()
            rows.append(known[counted].long().cpu())
            fault_point("evaluation.midway")
    finally:
        model.train(training)
    whole = (torch.cat(parts).numpy() if parts else np.zeros(0) for parts in (rows, losses, hits))
    return Evaluation(*whole)


def mean_loss(model: Any, objective: Objective, batches: Sequence[Batch]) -> float:
    """Mean next-token loss in nats over all predicted tokens of the batches; NaN when they predict none."""
    return evaluate(model, objective, batches).loss
