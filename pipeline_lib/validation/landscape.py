"""Sections of the loss landscape: the loss on test text on the way from a model's weights in random directions.

Directions are filter-normalised (Li et al. 2018, "Visualizing the loss landscape of neural nets", section 4): each row of a
matrix has the length of the weights' own row, so that a distance means the same for models of any scale; vectors stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline_lib.validation.language import language
from pipeline_lib.validation.scorer import Scorer


def sections(
    scorer: Scorer, texts: pa.Table, *, directions: int, distances: Sequence[float], tokens: int, seed: int
) -> list[dict[str, Any]]:
    """The loss along random directions; the model is as before afterwards.

    Args:
        scorer: of the model.
        texts: of `test_texts`.
        directions: how many.
        distances: in lengths of the weights, 0 being the model itself.
        tokens: of test text, at most.
        seed: of the directions.

    Returns:
        Rows of direction, distance and bits_per_byte; not a number where the loss has none.
    """
    import torch

    weights = [(value, value.detach().clone()) for value in scorer.model.parameters() if value.dim() > 1]
    found = []
    try:
        for direction in range(directions):
            draw = torch.Generator().manual_seed(1_000_003 * (seed % 1_000_003) + direction)
            steps = [_filter_normalised(torch.randn(kept.shape, generator=draw).to(kept.device), kept) for _, kept in weights]
            for distance in distances:
                with torch.no_grad():
                    for (value, kept), step in zip(weights, steps, strict=True):
                        value.copy_(kept + distance * step)
                rows = language(texts, scorer, tokens)[0]
                bits = float(np.sum(rows["score"].to_numpy()) / np.sum(rows["weight"].to_numpy()))
                found.append({"direction": direction, "distance": distance, "bits_per_byte": bits})
    finally:
        with torch.no_grad():
            for value, kept in weights:
                value.copy_(kept)
    return found


def _filter_normalised(step: Any, weights: Any) -> Any:
    length = step.flatten(1).norm(dim=1).clamp(min=1e-12)
    return step * (weights.flatten(1).norm(dim=1) / length).view(-1, *[1] * (weights.dim() - 1))
