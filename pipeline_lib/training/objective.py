"""Next-token loss of a causal language model on packed sequences, by the fastest way that gives the model's own numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline_lib.training.loss import IGNORED, chunked_cross_entropy, shifted

AGREEMENT = 1e-4  # relative; what separates rounding from a head that does more than a matrix product
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}  # weights stay fp32
LARGE_LOGIT = 100.0  # the size at which the two are compared: a cap at 30 does nothing to the small logits of a fresh model


class Objective:
    """Sum of next-token cross-entropies of a batch.

    Packing isolation needs `position_ids` that begin anew with every document, no attention mask at all, and no cache: an
    all-ones mask, or the default cache, lets documents attend to each other.

    Attributes:
        losses: of the latest call, fp32[batch, length] in nats, without gradient, at the position that predicts; 0 where none is.
        hits: likewise bool[batch, length], whether the likeliest entry was right; where no gradient is wanted.
        watch: called after every forward pass of training with the batch and its `losses`.
    """

    def __init__(self, model: Any, precision: str) -> None:
        self.model = model
        self.precision = precision
        self.losses: Tensor
        self.hits: Tensor
        self.watch: Callable[[Mapping[str, Tensor], Tensor], None] | None = None
        self.chunked = _plain_head(model) and self._agrees()

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Loss sum in nats, fp32 scalar. `batch` has input_ids, labels (not shifted) and position_ids, each [batch, length]."""
        device = batch["input_ids"].device.type
        with torch.autocast(device, dtype=AUTOCAST.get(self.precision), enabled=self.precision in AUTOCAST):
            total = self._chunked(batch) if self.chunked else self._whole(batch)
        if self.watch is not None and torch.is_grad_enabled():
            self.watch(batch, self.losses)
        return total

    def _chunked(self, batch: Mapping[str, Tensor]) -> Tensor:
        states = self.model.base_model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=None, use_cache=False
        ).last_hidden_state
        head = self.model.get_output_embeddings()
        total, self.losses, self.hits = chunked_cross_entropy(states, head.weight, head.bias, batch["labels"])
        return total

    def _whole(self, batch: Mapping[str, Tensor]) -> Tensor:
        logits = self.model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=None, use_cache=False
        ).logits
        labels = shifted(batch["labels"]).flatten()
        flat = logits.flatten(0, 1).float()
        losses = functional.cross_entropy(flat, labels, ignore_index=IGNORED, reduction="none")
        self.losses = losses.detach().view_as(batch["labels"])
        if not torch.is_grad_enabled():
            self.hits = (flat.argmax(dim=1) == labels).view_as(batch["labels"])
        return losses.sum()

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Whether head and loss alone give what the whole model gives (false where logits are capped, scaled or gated).

        Compared with the head scaled up until its logits are large; its weights are put back as they were.
        """
        training, device = self.model.training, self.model.device
        head = self.model.get_output_embeddings().weight
        kept = head.clone()
        rows = self.model.get_input_embeddings().weight.shape[0]
        tokens = (torch.arange(32, device=device) * 7919 % rows).reshape(2, 16)
        batch = {
            "input_ids": tokens, "labels": tokens, "position_ids": torch.arange(16, device=device).expand(2, 16),
        }  # fmt: skip
        self.model.eval()
        try:
            logits = self.model(input_ids=tokens, use_cache=False).logits
            head.mul_(LARGE_LOGIT / logits.abs().max().clamp(min=1e-6))
            whole, chunked = float(self._whole(batch)), float(self._chunked(batch))
        finally:
            head.copy_(kept)
            self.model.train(training)
        return abs(whole - chunked) <= AGREEMENT * abs(whole)


def _plain_head(model: Any) -> bool:
    """Whether the model is a backbone with one plain matrix on top."""
    head = model.get_output_embeddings()
    return type(head) is torch.nn.Linear and getattr(model, "base_model", model) is not model
