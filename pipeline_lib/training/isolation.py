"""Packing isolation, tested before the first step: documents that share a sequence must not see each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline_lib.errors import StageFailedError

TOLERANCE = 1e-3  # of the largest logit; isolated packs differ by fp32 rounding (1e-6), leaking ones by 0.1 and more


def packed_difference(model: Any, length: int) -> float:
    """Largest difference between the logits of a packed pair and of the two documents alone, relative to the largest logit.

    Args:
        model: a causal language model; it is put into evaluation mode for the test.
        length: tokens of the pair.
    """
    first = max(1, length // 2 - 1)  # unequal parts: a mask that is off by one shows
    rows = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)  # its own: training's random numbers stay what they are
    tokens = torch.randint(rows, (1, length), generator=generator).to(model.device)
    positions = torch.cat([torch.arange(first), torch.arange(length - first)]).unsqueeze(0).to(model.device)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            packed = _logits(model, tokens, positions)
            alone = [_logits(model, tokens[:, part], positions[:, part]) for part in (slice(0, first), slice(first, length))]
    finally:
        model.train(training)
    together = torch.cat(alone, dim=1)
    return float((packed - together).abs().max() / together.abs().max().clamp(min=1e-12))


def check_isolation(model: Any, sequence_length: int) -> float:
    """Refuse to train a model that mixes packed documents; returns the difference that was seen.

    Raises:
        StageFailedError: documents of a pack see each other.
    """
    difference = packed_difference(model, min(sequence_length, 64))
    if not difference <= TOLERANCE:
        raise StageFailedError(
            f"packed documents influence each other: logits differ by {difference:.2g} of their size (at most {TOLERANCE:g})",
            where="packing isolation",
            fix="this model family ignores position_ids or masks; choose another model.family, or an attention that resets "
            "with the positions",
        )
    return difference


def _logits(model: Any, tokens: Tensor, positions: Tensor) -> Tensor:
    output = model(input_ids=tokens, position_ids=positions, attention_mask=None, use_cache=False)
    logits: Tensor = output.logits.float()
    return logits
