"""Attention document by document: what a packed row holds of other documents is not even looked at.

A mask that keeps documents apart still has every pair of a row computed, and its cost grows with the row; here it grows with the
documents. On a GPU torch's `varlen_attn` does all documents in one kernel, in bf16 and fp16; everywhere else (processors, fp32,
dropout: it knows none of them) each document goes through SDPA's causal kernel. Documents begin where `position_ids` are 0.

It is registered with transformers as `varlen`; families that hand positions to their attention can use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

NAME = "varlen"
UNKNOWN = ("sliding_window", "softcap", "s_aux", "position_bias", "cache")  # what some families ask of their attention


@dataclass(frozen=True)
class _Documents:
    """Of a batch of packs, laid end to end."""

    starts: Tensor  # int32[documents + 1]: where each begins, and the end

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each; a GPU is waited for."""
        sizes: list[int] = self.starts.diff().tolist()
        return sizes


def register() -> None:
    """Make it known to transformers."""
    AttentionInterface.register(NAME, attend)


def attend(  # noqa: PLR0917 - transformers' interface
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_ids: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each document; transformers' interface.

    Args:
        module: the layer.
        query: [batch, heads, length, width].
        key: [batch, heads of keys, length, width].
        value: likewise.
        attention_mask: None; positions say where documents begin.
        dropout: of the weights.
        scaling: of the products.
        position_ids: [batch, length], or [1, length] for all.
        others: what this attention does not know, and which must be absent: a window, a cap, sinks.

    Returns:
        [batch, length, heads, width], and no weights.

    Raises:
        ValueError: the family asks for what this attention does not do.
    """
    if position_ids is None or attention_mask is not None or any(others.get(name) is not None for name in UNKNOWN):
        raise ValueError(f"{NAME} attention needs position_ids, and knows no mask, {', '.join(UNKNOWN)}")
    batch, heads, length, _ = query.shape
    grouped = key.shape[1] != heads
    made: Any
    if key.shape[2] != length:  # a token that is generated, after all others
        if length > 1:
            raise ValueError(f"{NAME} attention reads documents whole")
        made = functional.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=grouped)
        return made.transpose(1, 2), None
    documents = _documents(position_ids, batch)
    queries, keys, values = (part.transpose(1, 2).flatten(0, 1) for part in (query, key, value))  # [tokens, heads, width] each
    kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    if query.is_cuda and kind in {torch.bfloat16, torch.float16} and not dropout:
        from torch.nn.attention.varlen import varlen_attn

        starts, causal = documents.starts, (-1, 0)
        made = varlen_attn(
            queries.to(kind), keys.to(kind), values.to(kind), starts, starts, length, length, scale=scaling, window_size=causal,
            enable_gqa=grouped,
        )  # fmt: skip
    else:
        rows = [part.transpose(0, 1).unsqueeze(0) for part in (queries, keys, values)]  # [1, heads, tokens, width] each
        each = [
            functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped)
            for q, k, v in zip(*(row.split_with_sizes(documents.sizes, dim=2) for row in rows), strict=True)
        ]
        made = torch.cat(each, dim=2)[0].transpose(0, 1)
    return made.reshape(batch, length, heads, -1), None


def _documents(position_ids: Tensor, batch: int) -> _Documents:
    """Where documents begin; found once for all layers of a pass."""
    known: _Documents | None = getattr(position_ids, "_documents", None)
    if known is None:
        first = position_ids.expand(batch, -1) == 0
        first[:, 0] = True
        ends = torch.tensor([first.numel()], device=first.device)
        starts = torch.cat([first.flatten().nonzero().squeeze(1), ends])
        known = _Documents(starts.int())
        position_ids._documents = known  # type: ignore[attr-defined] # gone with the batch
    return known
