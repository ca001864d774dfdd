"""Packing isolation, tested before the first step: documents that share a sequence must not see each other.

The test decides how a model is trained: on packs where it keeps documents apart, else on packs taken apart (`rows.py`), or, where
the configuration accepts it, on packs nevertheless; the model card says so. The configuration may also ask for packs taken apart.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline_lib.config.model import Isolation as Asked

TOLERANCE = 3e-5  # of the largest logit; isolated packs differ by fp32 rounding (1e-7 … 1e-6), leaking ones by 4e-4 and more
Mode = Literal["packed", "rows", "accepted_leak"]


@dataclass(frozen=True)
class Isolation:
    """What the test saw, and what follows from it."""

    leak: float  # largest difference of logits, relative to the largest logit
    mode: Mode  # packed: packs are safe; rows: one document a row; accepted_leak: packs, though documents see each other

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def decide_isolation(model: Any, length: int, asked: Asked = "auto") -> Isolation:
    """Decide how a model may be trained.

    Args:
        model: a causal language model.
        length: tokens of a packed sequence.
        asked: `rows` or `accepted_leak` is done whatever the test says; packs that are safe are not told to leak.
    """
    leak = packed_difference(model, min(length, 64))
    if leak <= TOLERANCE and asked != "rows":
        return Isolation(leak, "packed")
    return Isolation(leak, "rows" if asked == "auto" else asked)


def packed_difference(model: Any, length: int) -> float:
    """Largest difference between the logits of a packed pair and of the two documents alone, relative to the largest logit.

    Args:
        model: a causal language model; it is put into evaluation mode for the test.
        length: tokens of the pair.
    """
    tokens, positions, first = _pair(model, length)
    packed = packed_logits(model, length)
    halves = (slice(0, first), slice(first, length))
    alone = [_logits(model, tokens[:, half], positions[:, half]) for half in halves]
    together = torch.cat(alone, dim=1)
    difference = float((packed - together).abs().max() / together.abs().max().clamp(min=1e-12))
    return math.inf if math.isnan(difference) else difference  # weights that are not numbers isolate nothing


def packed_logits(model: Any, length: int) -> Tensor:
    """Logits of a packed pair of documents, always the same one: fp32[1, length, entries]."""
    tokens, positions, _ = _pair(model, length)
    return _logits(model, tokens, positions)


def _pair(model: Any, length: int) -> tuple[Tensor, Tensor, int]:
    """Tokens and positions, int64[1, length], and the length of the first document."""
    first = max(1, length // 2 - 1)  # unequal parts: a mask that is off by one shows
    rows = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)  # its own: training's random numbers stay what they are
    tokens = torch.randint(rows, (1, length), generator=generator)
    positions = torch.cat([torch.arange(first), torch.arange(length - first)]).unsqueeze(0)
    return tokens.to(model.device), positions.to(model.device), first


@torch.no_grad()
def _logits(model: Any, tokens: Tensor, positions: Tensor) -> Tensor:
    training = model.training
    model.eval()
    try:
        output = model(input_ids=tokens, position_ids=positions, attention_mask=None, use_cache=False)
    finally:
        model.train(training)
    logits: Tensor = output.logits.float()
    return logits
