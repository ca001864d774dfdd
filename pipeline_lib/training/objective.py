"""Next-token loss of a causal language model on packed sequences, by the fastest way that gives the model's own numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipeline_lib.errors import ConfigError
from pipeline_lib.hardware.machine import has_compiler
from pipeline_lib.training.loss import IGNORED, chunked_cross_entropy, counted_tokens, shifted
from pipeline_lib.training.rows import take_apart

AGREEMENT = 1e-4  # relative; what separates rounding from a head that does more than a matrix product
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}  # weights stay fp32
LARGE_LOGIT = 100.0  # the size at which the two are compared: a cap at 30 does nothing to the small logits of a fresh model


class Objective:
    """Sum of next-token cross-entropies of a batch.

    Packing isolation needs `position_ids` that begin anew with every document, no attention mask at all, and no cache: an
    all-ones mask, or the default cache, lets documents attend to each other.

    Args:
        model: the causal language model; compiled in place with `compile`.
        precision: fp32, or the type of autocast.
        apart: take the packs apart, a document a row: the model would look over a document's beginning.
        compile: compile the backbone (its first passes take seconds to minutes).

    Raises:
        ConfigError: `compile` is asked for, and there is no compiler.

    Attributes:
        losses: of the latest call, fp32[batch, length] in nats, without gradient, at the position that predicts; 0 where none is.
        hits: likewise bool[batch, length], whether the likeliest entry was right; where no gradient is wanted.
        balance: of the latest call in training, what a mixture of experts adds to the loss so that its experts are used evenly,
            scaled like the sum; 0 for other models.
        watch: called after every forward pass of training with the batch and its `losses`.
        restart: called when the passes of a step are done again from its first: what was watched of them does not count.
    """

    def __init__(self, model: Any, precision: str, *, apart: bool = False, compile: bool = False) -> None:
        self.model, self.precision, self.apart = model, precision, apart
        self.losses: Tensor
        self.hits: Tensor
        self.balance = torch.zeros((), device=model.device)
        self.watch: Callable[[Mapping[str, Tensor], Tensor], None] | None = None
        self.restart: Callable[[], None] = lambda: None
        self._balancing = _balancing(model)
        self.chunked = _plain_head(model) and self._agrees()
        if compile:
            require_compiler(model.device)
            (model.base_model if self.chunked else model).compile()

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Loss sum in nats, fp32 scalar. `batch` has input_ids, labels (not shifted) and position_ids, each [batch, length]."""
        device = batch["input_ids"].device
        self.balance = torch.zeros((), device=device)
        with torch.autocast(device.type, dtype=AUTOCAST.get(self.precision), enabled=self.precision in AUTOCAST):
            if self.apart:
                total = self._apart(batch)
            else:
                total, self.losses, self.hits = self._sum(batch)
        if self.watch is not None and torch.is_grad_enabled():
            self.watch(batch, self.losses)
        return total

    def _apart(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Document by document; losses and hits are put back where the packs have their tokens."""
        shape = batch["input_ids"].shape
        losses = torch.zeros(shape.numel(), device=self.balance.device)
        hits = torch.zeros(shape.numel(), dtype=torch.bool, device=losses.device)
        total = torch.zeros((), device=losses.device)
        for rows in take_apart(batch):
            part, own_losses, own_hits = self._sum(rows.batch)
            total = total + part
            losses[rows.places[rows.real]] = own_losses[rows.real]
            hits[rows.places[rows.real]] = own_hits[rows.real]
        self.losses, self.hits = losses.view(shape), hits.view(shape)
        return total

    def _sum(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Sum, each loss, and hits of sequences that may be read as they are."""
        routed = {"output_router_logits": True} if self._balancing and torch.is_grad_enabled() else {}
        inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
        reader = self.model.base_model if self.chunked else self.model
        output = reader(**inputs, attention_mask=None, use_cache=False, **routed)
        if self._balancing and routed:
            self.balance = self.balance + self._balancing(output.router_logits) * counted_tokens(batch["labels"])
        if self.chunked:
            head = self.model.get_output_embeddings()
            return chunked_cross_entropy(output.last_hidden_state, head.weight, head.bias, batch["labels"])
        labels = shifted(batch["labels"])
        logits = output.logits.flatten(0, 1).float()
        losses = functional.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none")
        hits = torch.zeros_like(labels, dtype=torch.bool)
        if not torch.is_grad_enabled():
            hits = (logits.argmax(dim=1) == labels.flatten()).view_as(labels)
        return losses.sum(), losses.detach().view_as(labels), hits

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
        sums = []
        self.model.eval()
        try:
            logits = self.model(input_ids=tokens, use_cache=False).logits
            head.mul_(LARGE_LOGIT / logits.abs().max().clamp(min=1e-6))
            for self.chunked in (False, True):
                sums.append(float(self._sum(batch)[0]))
        finally:
            head.copy_(kept)
            self.model.train(training)
        return abs(sums[0] - sums[1]) <= AGREEMENT * abs(sums[0])


def require_compiler(device: torch.device) -> None:
    """Refuse to compile where nothing can.

    Raises:
        ConfigError: a processor's compiler is missing.
    """
    if device.type == "cpu" and not has_compiler():
        raise ConfigError(
            "torch.compile needs a C++ compiler for processors, and neither g++ nor clang++ is here", where="train.compile",
            fix="install one, or set train.compile to false",
        )  # fmt: skip


def _plain_head(model: Any) -> bool:
    """Whether the model is a backbone with one plain matrix on top."""
    head = model.get_output_embeddings()
    return type(head) is torch.nn.Linear and getattr(model, "base_model", model) is not model


def _balancing(model: Any) -> Callable[[Any], Tensor] | None:
    """The load-balancing loss of a mixture of experts as its family computes it, weighted as its configuration says, or None."""
    measure = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    weight = getattr(model.config, "router_aux_loss_coef", 0.0)
    if measure is None or not weight:
        return None
    experts, chosen = model.num_experts, model.num_experts_per_tok
    return lambda router_logits: weight * measure(router_logits, experts, chosen)
