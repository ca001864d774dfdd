"""What a layer of each family holds and what it saves for the backward pass, in closed form.

Counted for transformers 5.23 by asking autograd what it keeps (`torch.autograd.graph.saved_tensors_hooks`), which the tests do
again for every family. The reasoning is that of Korthikanti et al. 2022, section 4.1; h is the width, k the width of keys and
values, f that of the feed-forward block, T the length of a sequence:

- a norm saves its input and the normalised input in fp32 (RMS norm, 2 h; a fused layer norm 1 h);
- a matrix saves its input in the compute type. In fp32 q, k and v share one (h), gate and up another (h); autocast makes a copy
  for each (3 h, 2 h). The output matrix of attention saves h;
- attention saves q, k, v and no scores; keys and values are repeated to all heads first (3 h), and the mask that keeps documents
  apart is widened once a layer (T). Dropout leaves the fused kernel: softmax, what is dropped and their product (3 T a head);
- a gated block saves gate, its activation, up and their product (4 f); GELU in transformers' own formula saves 5 f.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pipeline_lib.config.model import ModelConfig

NORM = 2.0  # features of h that an RMS norm saves in fp32
STATE = 16  # state a channel of Mamba (its configuration's default)
CONVOLUTION = 4  # taps of Mamba's convolution
LFM2_ROUND = 256  # LFM2 rounds two thirds of its feed-forward width up to a multiple of this
LFM2_TAPS = 3
SCORE_BYTES = (12.0, 13.5)  # of a score where dropout leaves the fused kernel: fp32, autocast (measured)
LFM2_PATTERN = ("conv", "conv", "full_attention")  # as `training.model` builds it


@dataclass(frozen=True)
class Layer:
    """One layer: its weights, and what a token leaves behind in it. `vectors`: weights of norms, biases and the like."""

    linears: dict[str, tuple[int, int]] = field(default_factory=dict)  # name → (inputs, outputs)
    experts: int = 0  # weights of expert matrices: computed in fp32 whatever the precision
    vectors: int = 0
    fp32: float = 0.0  # features a token saves in fp32
    inputs: tuple[float, float] = (0.0, 0.0)  # features saved as inputs of matrices: in fp32, under autocast
    narrow: float = 0.0  # features a token saves in the compute type
    attention: bool = True

    @property
    def matrices(self) -> int:
        """Weights of matrices, experts included."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values()) + self.experts

    def saved_bytes(self, precision: str, sequence_length: int, *, heads: int, dropout: float) -> float:
        """Bytes that a token leaves for the backward pass."""
        width = 4 if precision == "fp32" else 2
        mask = scores = 0.0
        if self.attention:
            mask = 0.0 if dropout else width * sequence_length
            scores = SCORE_BYTES[precision != "fp32"] * heads * sequence_length if dropout else 4.0 * heads
        return 4.0 * self.fp32 + width * (self.inputs[precision != "fp32"] + self.narrow) + mask + scores


def kv_width(model: ModelConfig) -> int:
    """Features of all key (or value) heads together."""
    return model.width // model.heads * (model.kv_heads or model.heads)


def layers(model: ModelConfig) -> list[Layer]:
    """The layers of a model, first to last. A family that is not known here is counted as a Llama."""
    family = model.family
    if family == "lfm2":
        kinds = [LFM2_PATTERN[layer % len(LFM2_PATTERN)] for layer in range(model.depth)]
        return [_lfm2(model, kind == "full_attention") for kind in kinds]
    if family in ("phi", "gpt2", "gpt_neox"):
        return [_plain(model)] * model.depth
    if family in ("mamba", "falcon_mamba"):
        return [_mamba(model)] * model.depth
    if family in ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe"):
        return [_experts(model)] * model.depth
    return [_gated(model)] * model.depth


def _attention(model: ModelConfig, output: str = "o_proj") -> Layer:
    """Norm, attention and norm of the Llama kind, without a feed-forward block."""
    h, k = model.width, kv_width(model)
    linears = {"q_proj": (h, h), "k_proj": (h, k), "v_proj": (h, k), output: (h, h)}
    vectors, fp32, narrow = 2 * h, 2 * NORM * h, 3.0 * h
    if model.family in ("qwen3", "qwen3_moe", "lfm2"):  # norms on queries and keys
        vectors += 2 * (h // model.heads)
        fp32, narrow = fp32 + h + k, narrow + h + k
    if model.family in ("qwen2", "qwen2_moe"):
        vectors += h + 2 * k
    if model.family == "phi3":
        linears = {"qkv_proj": (h, h + 2 * k), "o_proj": (h, h)}
    shared, copied = (2.0, 2.0) if model.family == "phi3" else (2.0, 4.0)
    return Layer(linears, 0, vectors, fp32, (shared * h, copied * h), narrow)


def _gated(model: ModelConfig) -> Layer:
    h, f, base = model.width, model.ffn_width, _attention(model)
    if model.family == "phi3":
        ffn, copies = {"gate_up_proj": (h, 2 * f), "down_proj": (f, h)}, 1.0
        narrow = base.narrow + h + 4.0 * f
    else:
        ffn, copies = {"gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h)}, 2.0
        narrow = base.narrow + 4.0 * f
    inputs = (base.inputs[0] + h, base.inputs[1] + copies * h)
    return Layer({**base.linears, **ffn}, 0, base.vectors, base.fp32, inputs, narrow)


def _plain(model: ModelConfig) -> Layer:
    """A layer norm, attention and a feed-forward block of two matrices side by side (Phi); GPT-2's stand one after the other."""
    h, f = model.width, model.ffn_width
    biases = 4 * h + f + h
    if model.family == "phi":
        linears = dict.fromkeys(("q_proj", "k_proj", "v_proj", "dense"), (h, h)) | {"fc1": (h, f), "fc2": (f, h)}
        return Layer(linears, 0, biases + 2 * h, h, (2.0 * h, 5.0 * h), 4.0 * h + 5.0 * f)
    linears = {"c_attn": (h, 3 * h), "c_proj": (h, h), "c_fc": (h, f), "c_proj_out": (f, h)}
    return Layer(linears, 0, biases + 4 * h, 2.0 * h, (3.0 * h, 3.0 * h), 3.0 * h + 5.0 * f)


def _experts(model: ModelConfig) -> Layer:
    """A router chooses `experts_per_token` of `experts`, whose gated blocks run in fp32."""
    h, f, base, chosen = model.width, model.ffn_width, _attention(model), model.experts_per_token
    weights = model.experts * 3 * h * f
    linears = {**base.linears, "gate": (h, model.experts)}
    fp32 = base.fp32 + 4.0 * chosen * f + 2.0 * chosen * h + 5.0 * model.experts
    if model.family == "qwen2_moe":  # and one that every token passes
        linears |= {"gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h), "shared_expert_gate": (h, 1)}
        fp32 += 4.0 * f
    return Layer(linears, weights, base.vectors, fp32, (base.inputs[0] + h, base.inputs[1] + h), base.narrow)


def _mamba(model: ModelConfig) -> Layer:
    """The path without kernels of its own: the state of every step stays (three times i × state), i the inner width."""
    h, i = model.width, model.ffn_width
    rank = math.ceil(h / 16)
    linears = {"in_proj": (h, 2 * i), "x_proj": (i, rank + 2 * STATE), "dt_proj": (rank, i), "out_proj": (i, h)}
    shared = h + 2.0 * i
    vectors = h + i * CONVOLUTION + i + i + i * STATE + i  # norm, convolution and its bias, bias of dt, A, D
    return Layer(linears, 0, vectors, NORM * h + 3.0 * i * STATE, (shared, shared + i * STATE), 8.0 * i, attention=False)


def _lfm2(model: ModelConfig, attention: bool) -> Layer:
    h = model.width
    f = math.ceil(int(2 * model.ffn_width / 3) / LFM2_ROUND) * LFM2_ROUND
    ffn = {"w1": (h, f), "w3": (h, f), "w2": (f, h)}
    if attention:
        base = _attention(model, "out_proj")
        inputs = (base.inputs[0] + h, base.inputs[1] + 2 * h)
        return Layer({**base.linears, **ffn}, 0, base.vectors, base.fp32, inputs, base.narrow + 4.0 * f)
    linears = {"in_proj": (h, 3 * h), "out_proj": (h, h), **ffn}
    return Layer(linears, 0, 2 * h + LFM2_TAPS * h, 2 * NORM * h, (3.0 * h, 4.0 * h), 5.5 * h + 4.0 * f, attention=False)
