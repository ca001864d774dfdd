"""The loss scale of fp16: gradients too small for its five exponent bits are lifted before they are made, and lowered after.

Dynamic (Micikevicius et al. 2018, section 3.2), with the numbers of `torch.amp.GradScaler`: halved when a gradient overflows,
which costs that step, doubled after 2,000 good steps. It stays on the device and is part of a checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST, GROWTH_STEPS, LARGEST = 2.0**16, 2000, 2.0**24


class LossScale:
    """Scale and the good steps since it last changed."""

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.tensor(FIRST, device=device)
        self.good = torch.zeros((), dtype=torch.int64, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """The live state."""
        return {"scale.scale": self.scale, "scale.good": self.good}

    def unscale(self, gradients: list[Tensor]) -> None:
        """Lower the gradients in place."""
        torch._foreach_mul_(gradients, 1.0 / self.scale)

    def update(self, finite: Tensor) -> Tensor:
        """After a step: whether the scale was at fault (there was something to halve), a bool on the device."""
        at_fault = ~finite & (self.scale > 1.0)
        grow = finite & (self.good + 1 >= GROWTH_STEPS)
        self.good.copy_(torch.where(finite & ~grow, self.good + 1, 0))
        factor = torch.where(finite, torch.where(grow, 2.0, 1.0), 0.5)
        self.scale.mul_(factor).clamp_(1.0, LARGEST)
        return at_fault
