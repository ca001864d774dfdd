"""Frozen linear layers in four bits (NF4), for adapters on top of them: QLoRA (Dettmers et al. 2023).

64 weights share a scale, their largest absolute value; each is the nearest of 16 values, the quantiles of a normal distribution
(appendix E there). That is 4.5 bits a weight; the scales stay fp32 (no second quantisation). In plain torch, so it works on every
device; a layer's weights are made whole in the forward and in the backward pass, for as long as they are multiplied.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor, nn

BLOCK = 64  # weights that share a scale
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def pack(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weights in four bits.

    Args:
        weights: floats, a multiple of `BLOCK` of them.

    Returns:
        uint8[rows, columns / 2], the first of two in the upper half; scales fp32[weights / BLOCK].
    """
    blocks = weights.detach().float().reshape(-1, BLOCK)
    scales = blocks.abs().amax(1)
    levels = torch.tensor(LEVELS, device=weights.device)
    shares = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(shares, (levels[1:] + levels[:-1]) / 2).to(torch.uint8).reshape(-1, 2)
    return (codes[:, 0] << 4 | codes[:, 1]).reshape(weights.shape[0], -1), scales


def unpack(packed: Tensor, scales: Tensor) -> Tensor:
    """`pack`'s weights, fp32[rows, columns]."""
    codes = torch.stack((packed >> 4, packed & 15), dim=-1)
    levels = torch.tensor(LEVELS, device=packed.device)
    return (levels[codes.reshape(-1, BLOCK).int()] * scales[:, None]).reshape(packed.shape[0], -1)


class FourBitLinear(nn.Linear):
    """A linear layer that is read and never trained. Its state is two plain tensors: `weight` (packed) and `scales`."""

    scales: Tensor

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        packed, scales = pack(plain.weight)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = plain.bias
        self.register_buffer("scales", scales)

    def forward(self, input: Tensor) -> Tensor:
        """As of the layer that it stands for, in autocast's precision where that is on."""
        kind = input.device.type
        input = input.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else input
        product: Tensor = _Product.apply(input, self.weight, self.scales)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def plain(self) -> nn.Linear:
        """An ordinary layer that computes the same."""
        made = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        made.weight = nn.Parameter(unpack(self.weight, self.scales), requires_grad=False)
        made.bias = self.bias
        return made


class _Product(torch.autograd.Function):
    """input · weightᵀ, keeping the packed weights only."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
        ctx.save_for_backward(packed, scales)
        return F.linear(input, unpack(packed, scales).to(input.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ unpack(*ctx.saved_tensors).to(gradient.dtype), None, None


def to_four_bits(model: Any) -> None:
    """Put every linear layer but the head into four bits, in place (one whose weights are no multiple of `BLOCK` stays)."""
    head = model.get_output_embeddings()
    for name, part in list(model.named_modules()):
        if type(part) is nn.Linear and part is not head and part.weight.numel() % BLOCK == 0 and part.in_features % 2 == 0:
            model.set_submodule(name, FourBitLinear(part))


def to_plain(model: Any) -> None:
    """Undo `to_four_bits` with the weights that were trained on, in place: whole again, and what adapters are merged into."""
    for name, part in list(model.named_modules()):
        if isinstance(part, FourBitLinear):
            model.set_submodule(name, part.plain())


def entries(weight: Tensor) -> int:
    """Numbers that a parameter holds: two a byte where it is packed."""
    return 2 * weight.numel() if weight.dtype is torch.uint8 else weight.numel()
