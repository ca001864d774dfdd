"""Which attention a model uses: set, and seen to be in effect and to give the numbers of the family's own."""

from __future__ import annotations

from typing import Any

from pipeline_lib.errors import ConfigError
from pipeline_lib.training import varlen
from pipeline_lib.training.isolation import packed_logits

AGREEMENT = 1e-3  # of the largest logit, in fp32; rounding is 1e-6, another window or mask 1e-2 and more
LENGTH = 64  # tokens of the pair of documents that is compared


def use_attention(model: Any, name: str) -> None:
    """Let a model use an attention: sdpa, eager, flex_attention or varlen.

    Raises:
        ConfigError: the family cannot, it would compute something else, or it is flex_attention without a GPU.
    """
    family = model.config.model_type
    if name == "flex_attention" and model.device.type == "cpu":
        raise ConfigError(
            "flex_attention has no backward pass on processors",
            where="train.attention",
            fix="set train.attention to auto or sdpa",
        )
    if name == varlen.NAME:
        varlen.register()
    before = packed_logits(model, LENGTH)
    try:
        model.set_attn_implementation(name)
        after = packed_logits(model, LENGTH)
    except (ValueError, ImportError) as error:
        raise _refusal(f"{family} has no attention {name} here: {error}") from error
    if model.config._attn_implementation != name:
        raise _refusal(f"{family} does not let its attention be chosen")
    if not float((after - before).abs().max() / before.abs().max().clamp(min=1e-12)) <= AGREEMENT:
        raise _refusal(f"{family} computes something else with attention {name}")


def _refusal(what: str) -> ConfigError:
    return ConfigError(what, where="train.attention", fix="set train.attention to auto")
