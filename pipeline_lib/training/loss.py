"""Cross-entropy without the logits of the whole batch: head and loss over some rows at a time, gradients made on the way.

A batch of 16 × 1,024 tokens over 50,000 entries needs 3.3 GB of logits in fp32, and again as much for their gradient. Over 1,024
rows at a time it needs 0.2 GB, and small machines get faster because the chunk stays near the cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100  # label of a position that is not predicted (padding, first token of a document)
CHUNK_ROWS = 1024


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies; the gradients of hidden states, weight and bias are computed in the forward pass."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, dtype: torch.dtype
    ) -> Tensor:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        cast_weight = weight.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None
        for start in range(0, hidden.shape[0], CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            states = hidden[rows].to(dtype)
            logits = (states @ cast_weight.T).float()
            if bias is not None:
                logits += bias.float()
            counted = (labels[rows] != IGNORED).unsqueeze(1)
            target = labels[rows].clamp(min=0).unsqueeze(1)
            normaliser = torch.logsumexp(logits, dim=1, keepdim=True)
            total += ((normaliser - logits.gather(1, target)) * counted).sum()
            if not (wants_hidden or wants_weight or wants_bias):
                continue
            grad_logits = logits.sub_(normaliser).exp_()  # softmax − one-hot, in place of the logits
            grad_logits.scatter_add_(1, target, torch.full_like(normaliser, -1.0))
            grad_logits.mul_(counted)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(dim=0)
            small = grad_logits.to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = small @ cast_weight
            if grad_weight is not None:
                grad_weight += small.T @ states
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype),
            None if grad_bias is None else (grad_bias * scale).to(ctx.weight_dtype),
            None,
            None,
        )


def shifted(labels: Tensor) -> Tensor:
    """Labels for the position that predicts them: [batch, length] → the next position's label, `IGNORED` at the end."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """Sum of next-token cross-entropies in nats.

    Args:
        hidden: [batch, length, features] from the backbone.
        weight: [vocabulary, features] of the head.
        bias: [vocabulary] or None.
        labels: [batch, length], not shifted, `IGNORED` where nothing is predicted.

    Returns:
        A scalar in fp32. Under autocast the products are made in autocast's type, sums and softmax in fp32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        result: Tensor = _ChunkedCrossEntropy.apply(hidden.flatten(0, 1), weight, bias, shifted(labels).flatten(), dtype)  # type: ignore[no-untyped-call]
    return result


def counted_tokens(labels: Tensor) -> Tensor:
    """How many positions are predicted in [batch, length] labels."""
    return (labels[:, 1:] != IGNORED).sum()
