"""Which attention a model uses: set, and seen to be in effect and to give the numbers of the family's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipeline_lib.errors import ConfigError
from pipeline_lib.training import varlen
from pipeline_lib.training.isolation import packed_logits

AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # of the largest logit; rounding is 1e-6 and 1e-2, a leak about 0.5
LENGTH = 64  # tokens of the pair of documents that is compared


def use_attention(model: Any, name: str) -> None:
    """Let a model use an attention: sdpa, eager, flex_attention or varlen.

    Raises:
        ConfigError: the family cannot, it would compute something else, or it is flex_attention without a GPU.
    """
    family = model.config.model_type
    require_device(name, model.device)
    if name == varlen.NAME:
        varlen.register()
    before = _seen(model)
    try:
        model.set_attn_implementation(name)
        after = _seen(model)
    except (ValueError, ImportError) as error:
        raise _refusal(f"{family} has no attention {name} here: {error}") from error
    if model.config._attn_implementation != name:
        raise _refusal(f"{family} does not let its attention be chosen")
    for kind, wanted in before.items():
        if not float((after[kind] - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12)) <= AGREEMENT[kind]:
            raise _refusal(f"{family} computes something else with attention {name}")


def require_device(name: str, device: torch.device) -> None:
    """Refuse an attention that a device cannot train with.

    Raises:
        ConfigError: it is flex_attention without a GPU.
    """
    if name == "flex_attention" and device.type == "cpu":
        raise ConfigError(
            "flex_attention has no backward pass on processors",
            where="train.attention",
            fix="set train.attention to auto or sdpa",
        )


def _seen(model: Any) -> dict[torch.dtype, Tensor]:
    """Logits of the packed pair in fp32; on a GPU, whose kernels for bf16 are others, in bf16 too."""
    seen = {torch.float32: packed_logits(model, LENGTH)}
    if model.device.type == "cuda":
        with torch.autocast("cuda", dtype=torch.bfloat16):
            seen[torch.bfloat16] = packed_logits(model, LENGTH)
    return seen


def _refusal(what: str) -> ConfigError:
    return ConfigError(what, where="train.attention", fix="set train.attention to auto")
