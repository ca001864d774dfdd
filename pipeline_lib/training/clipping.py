"""Gradient clipping by the total norm: at a fixed limit, or at a running quantile of the norms seen so far.

The quantile follows AutoClip (Seetharaman et al. 2020): what is large is judged by this model's own history. Everything stays on
the device; the window of norms is part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline_lib.config.model import TrainConfig
from pipeline_lib.training.parallel import local

WINDOW = 256  # norms that are remembered
LEAST_SEEN = 32  # with fewer the fixed limit alone holds


class Clipping:
    """Clips the gradients of a step; `max_grad_norm` is the limit, or with `adaptive` the most that the limit can be."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self.most, self.adaptive, self.quantile = config.max_grad_norm, config.clipping == "adaptive", config.clip_quantile
        self.norms = torch.full((WINDOW,), torch.nan, device=device)
        self.seen = torch.zeros((), dtype=torch.int64, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """The live state; nothing with a fixed limit."""
        return {"clip.norms": self.norms, "clip.seen": self.seen} if self.adaptive else {}

    def limit(self) -> Tensor:
        """What the norm may be in the coming step: a scalar on the device."""
        most = torch.tensor(self.most, device=self.norms.device)
        if not self.adaptive:
            return most
        typical = torch.nanquantile(self.norms, self.quantile)
        return torch.where(self.seen >= LEAST_SEEN, torch.minimum(typical, most), most)

    def __call__(self, parameters: Iterable[torch.nn.Parameter]) -> Tensor:
        """Clip in place and return the norm before, a scalar on the device; one that is not finite is not remembered."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # sharded weights
        limit = self.limit()
        if norm.device.type != "cpu" or norm > limit:  # on a processor looking costs nothing, multiplying by 1 does
            torch._foreach_mul_([local(gradient) for gradient in gradients], (limit / (norm + 1e-6)).clamp(max=1.0))
        if self.adaptive:
            self._remember(norm)
        return norm

    def _remember(self, norm: Tensor) -> None:
        known = torch.isfinite(norm)
        place = torch.arange(WINDOW, device=norm.device) == self.seen % WINDOW
        self.norms.copy_(torch.where(known & place, norm, self.norms))
        self.seen += known
