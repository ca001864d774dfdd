"""Loss on the dev side: a bounded number of sequences, always the same ones, without a random number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from pipeline_lib.training.data import Batch
from pipeline_lib.training.loss import counted_tokens
from pipeline_lib.training.objective import Objective

DEV_SEQUENCES = 128


@torch.no_grad()
def mean_loss(model: Any, objective: Objective, batches: Sequence[Batch]) -> float:
    """Mean next-token loss in nats over all predicted tokens of the batches; NaN when they predict none."""
    training = model.training
    model.eval()
    try:
        total, tokens = torch.zeros((), device=model.device), torch.zeros((), device=model.device)
        for batch in batches:
            placed = {name: values.to(model.device) for name, values in batch.items()}
            total += objective(placed)
            tokens += counted_tokens(placed["labels"])
    finally:
        model.train(training)
    return float(total / tokens)
