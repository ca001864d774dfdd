"""Cross-entropy without the logits of the whole batch: head and loss over some rows at a time, gradients made on the way.

A batch of 16 × 1,024 tokens over 50,000 entries needs 3.3 GB of logits in fp32, and again as much for their gradient. Chunks need
a constant, and small machines get faster: what fits into the cache is worked on there. 2,048 rows of 192 features over 8,192
entries, in chunks of 256 rows, forward and backward in bf16 on one core: 90 ms, with torch's log-softmax 128 ms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100  # label of a position that is not predicted (padding, first token of a document)
CHUNK_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 26}  # logits at once: 8 MiB in fp32 stays in the cache, 32 MiB takes twice as long


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies, each of them, and whether the likeliest entry was right (only where no gradient is wanted); the
    gradients of hidden states, weight and bias are computed in the forward pass."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes by position
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        cast_weight = weight.to(dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        losses = torch.zeros(hidden.shape[0], dtype=torch.float32, device=hidden.device)
        hits = torch.zeros(hidden.shape[0], dtype=torch.bool, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias and bias is not None else None
        chunks = _chunks(hidden, weight)
        size = min(chunks[0].stop, len(hidden)) if chunks else 0  # asked for once: new pages cost as much as the work
        rooms = [torch.empty((size, weight.shape[0]), dtype=kind, device=hidden.device) for kind in (dtype, torch.float32)]
        for rows in chunks:
            counted = (labels[rows] != IGNORED).unsqueeze(1)
            target = labels[rows].clamp(min=0).unsqueeze(1)
            states = hidden[rows].to(dtype)
            logits, room = (whole[: len(states)] for whole in rooms)
            torch.mm(states, cast_weight.T, out=logits)
            if bias is not None:
                logits += bias.to(dtype)
            own, shares = _shares(logits, target, room)
            own = own * counted
            total -= own.sum()
            losses[rows] = -own.squeeze(1)
            if not (wants_hidden or wants_weight or wants_bias):
                hits[rows] = (shares.argmax(dim=1) == labels[rows]) & counted.squeeze(1)
                continue
            grad_logits = shares  # softmax − one-hot, in its place
            grad_logits.scatter_add_(1, target, torch.full_like(target, -1.0, dtype=torch.float32))
            small = logits.copy_(grad_logits)
            if grad_bias is not None:
                grad_bias += (grad_logits * counted).sum(dim=0)
            if grad_hidden is not None:
                grad_hidden[rows] = (small @ cast_weight) * counted
            if grad_weight is not None:
                grad_weight += small.T @ (states * counted)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(losses, hits)
        return total, losses, hits

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype),
            None if grad_bias is None else (grad_bias * scale).to(ctx.weight_dtype),
            None,
            None,
        )


def _shares(logits: Tensor, target: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax in fp32: the logarithm of the target's share, [rows, 1], and all shares, [rows, entries], in `room`."""
    if logits.is_cuda:
        log_shares = torch.log_softmax(logits, dim=1, dtype=torch.float32, out=room)
        return log_shares.gather(1, target), log_shares.exp_()
    # On processors torch's softmax takes three times as long as these passes: 7 ms against 2 ms for 256 × 8,192.
    shares = room.copy_(logits)
    shares.sub_(shares.amax(dim=1, keepdim=True))
    own = shares.gather(1, target)
    sums = shares.exp_().sum(dim=1, keepdim=True)
    return own - sums.log(), shares.div_(sums)


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Slices of the rows, as many in each as `CHUNK_LOGITS` allows."""
    size = max(64, CHUNK_LOGITS.get(hidden.device.type, 1 << 26) // weight.shape[0])
    return [slice(start, start + size) for start in range(0, hidden.shape[0], size)]


def shifted(labels: Tensor) -> Tensor:
    """Labels for the position that predicts them: [batch, length] → the next position's label, `IGNORED` at the end."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORED)


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Next-token cross-entropies in nats.

    Args:
        hidden: [batch, length, features] from the backbone.
        weight: [vocabulary, features] of the head.
        bias: [vocabulary] or None.
        labels: [batch, length], not shifted, `IGNORED` where nothing is predicted.

    Returns:
        Their sum (a scalar in fp32); each of them, fp32[batch, length], at the position that predicts, 0 where nothing is
        predicted; whether the likeliest entry was right, bool[batch, length], all false where a gradient is wanted. Under
        autocast the products are made in autocast's type, sums and softmax in fp32.
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if not torch.is_grad_enabled():  # which `needs_input_grad` does not know: an evaluation would make gradients for nobody
        hidden, weight, bias = hidden.detach(), weight.detach(), None if bias is None else bias.detach()
    with torch.autocast(device, enabled=False):
        total, losses, hits = _ChunkedCrossEntropy.apply(hidden.flatten(0, 1), weight, bias, shifted(labels).flatten(), dtype)  # type: ignore[no-untyped-call]
    return total, losses.view_as(labels), hits.view_as(labels)


def counted_tokens(labels: Tensor) -> Tensor:
    """How many positions are predicted in [batch, length] labels."""
    return (labels[:, 1:] != IGNORED).sum()
