"""How much memory a training needs, term by term. An estimate to refuse by; calibration measures the truth."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline_lib.config.model import LoraConfig, ModelConfig

MIB = 1 << 20
# Interpreter, torch, transformers and their allocators before any model: judged for a Linux CPU build, not measured here.
BASE_BYTES = 700 * MIB


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a Llama-style decoder by place."""

    embeddings: int  # input, and output when untied
    matrices: int  # attention and feed-forward matrices of all layers
    norms: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embeddings + self.matrices + self.norms

    @property
    def without_embeddings(self) -> int:
        """The N of scaling laws."""
        return self.matrices + self.norms


def kv_width(model: ModelConfig) -> int:
    """Features of all key (or value) heads together."""
    return model.width // model.heads * (model.kv_heads or model.heads)


def count_parameters(model: ModelConfig, vocabulary_size: int) -> ParameterCount:
    """Count a Llama decoder: q, k, v, o, gate, up, down, two norms a layer, one at the end, the embedding once or twice."""
    attention = 2 * model.width * (model.width + kv_width(model))
    feed_forward = 3 * model.width * model.ffn_width
    return ParameterCount(
        embeddings=vocabulary_size * model.width * (1 if model.tied_embeddings else 2),
        matrices=model.depth * (attention + feed_forward),
        norms=(2 * model.depth + 1) * model.width,
    )


def count_trainable(model: ModelConfig, vocabulary_size: int, lora: LoraConfig) -> int:
    """Parameters that get gradients: all of them, or rank · (in + out) for each adapted matrix."""
    if not lora.rank:
        return count_parameters(model, vocabulary_size).total
    width, kv, ffn = model.width, kv_width(model), model.ffn_width
    sides = {
        "q_proj": 2 * width, "k_proj": width + kv, "v_proj": width + kv, "o_proj": 2 * width,
        "gate_proj": width + ffn, "up_proj": width + ffn, "down_proj": width + ffn,
    }  # fmt: skip
    return model.depth * lora.rank * sum(sides.get(name, 2 * width) for name in lora.targets)


MOMENT_BYTES = {
    "adamw": 8,
    "muon": 8,
    "lamb": 8,
    "lars": 4,
    "adamw_8bit": 2,
}  # a weight; Muon: the upper end, AdamW's on embeddings


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by term; `total` is what the process needs at its peak."""

    terms: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All terms together."""
        return sum(self.terms.values())


def estimate_memory(
    model: ModelConfig,
    *,
    vocabulary_size: int,
    sequence_length: int,
    micro_batch: int,
    precision: str,
    optimizer: str,
    lora: LoraConfig,
) -> MemoryEstimate:
    """Peak memory of one process in training, bytes.

    Weights, gradients and Adam's two moments are fp32 whatever the autocast precision (ZeRO, Rajbhandari et al. 2020, 3.1);
    Adafactor keeps a row and a column a matrix (Shazeer & Stern 2018). Saved activations a token and layer follow Korthikanti et
    al. 2022, section 4.1, counted for a gated feed-forward block and an attention that stores no score matrix: inputs of the two
    norms and their outputs (4 h), q, k, v, attention output (2 h + 2 kv), gate, up, their activation and product (4 f). Logits,
    their log-softmax and their gradient are fp32, for all rows of a micro-batch: the upper end, a chunked loss needs less.
    """
    count = count_parameters(model, vocabulary_size)
    trainable = count_trainable(model, vocabulary_size, lora)
    tokens = micro_batch * sequence_length
    width_bytes = 4 if precision == "fp32" else 2
    layer = 4 * model.width * 4 + (2 * model.width + 2 * kv_width(model) + 4 * model.ffn_width) * width_bytes  # norms stay fp32
    moments = MOMENT_BYTES[optimizer] * trainable if optimizer in MOMENT_BYTES else 4 * (trainable // max(model.width, 1)) * 2
    return MemoryEstimate(
        {
            "program": BASE_BYTES,
            "weights": 4 * count.total,
            "weights in 16 bits": 0 if precision == "fp32" else 2 * count.matrices,
            "gradients": 4 * trainable,
            "optimizer": moments,
            "activations": tokens * layer * model.depth,
            "logits": 3 * 4 * tokens * vocabulary_size,
        }
    )
