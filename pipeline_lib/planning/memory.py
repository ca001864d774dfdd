"""How much memory a training needs, term by term: refuses a model before it is built; calibration is checked against it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline_lib.config.model import LoraConfig, ModelConfig
from pipeline_lib.planning.families import layers

MIB = 1 << 20
Device = Literal["cpu", "cuda"]

# Interpreter, torch, transformers and what their first step loads and compiles: measured, 493 MiB in a process of its own
# (torch 2.13, transformers 5.23, Linux, one thread). A calibration puts what it measures in its place. An accelerator's own count
# has none of it.
PROGRAM_BYTES = 493 * MIB
# What glibc keeps beyond what is in use: freed blocks up to 32 MiB stay in the heap, in holes that nothing fits into. Measured as
# the difference between process and sum of tensors: 100 to 190 MiB over nine trainings of 0.2 to 0.6 GB; with adapters, whose
# dropouts and casts make many more short-lived tensors, about 100 MiB and half of the activations (three trainings). With every
# block mapped by itself the difference is 10 MiB, and training half as fast. Small trainings leave small holes: 14 MiB beside
# 11 MiB of tensors, 77 beside 222.
HOLES_BYTES, HOLES_SHARE = 128 * MIB, 0.45
ADAPTER_HOLES_BYTES, ADAPTER_HOLES_SHARE = 96 * MIB, 0.5
FOUR_BIT_BYTES = 0.5 + 4 / 64  # a weight in NF4, with its share of a scale (`training.four_bits`)
WHOLE_BYTES = 13  # a weight while four bits are made a number: code, place in the table, value, its product with the scale
LOGITS_AT_ONCE = {"cpu": 1 << 21, "cuda": 1 << 26}  # of the chunked loss (`training.loss`)
LEAST_LOSS_ROWS = 64
LEAST_LENGTH = 64  # shorter sequences are not worth advising


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a decoder by place."""

    embeddings: int  # input, and output when untied
    matrices: int  # attention and feed-forward matrices of all layers
    norms: int  # and biases

    @property
    def total(self) -> int:
        """All parameters."""
        return self.embeddings + self.matrices + self.norms

    @property
    def without_embeddings(self) -> int:
        """The N of scaling laws."""
        return self.matrices + self.norms


def count_parameters(model: ModelConfig, vocabulary_size: int) -> ParameterCount:
    """Count a model's parameters: the matrices and vectors of its layers, a norm at the end, the embedding once or twice."""
    stack = layers(model)
    ends = model.width
    if model.family in ("phi", "gpt2", "gpt_neox"):  # layer norms have a bias
        ends += model.width
    if model.family == "phi":  # and so has Phi's head
        ends += vocabulary_size
    return ParameterCount(
        embeddings=vocabulary_size * model.width * (1 if model.tied_embeddings else 2),
        matrices=sum(layer.matrices for layer in stack),
        norms=sum(layer.vectors for layer in stack) + ends,
    )


def count_trainable(model: ModelConfig, vocabulary_size: int, lora: LoraConfig) -> int:
    """Parameters that get gradients: all of them, or rank · (in + out) for each adapted matrix (Hu et al. 2021, section 4.1)."""
    if not lora.rank:
        return count_parameters(model, vocabulary_size).total
    sides = [sum(layer.linears[name]) for layer in layers(model) for name in lora.targets if name in layer.linears]
    return lora.rank * sum(sides)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by term; `total` is what the process (on an accelerator: its allocator) needs at its peak."""

    terms: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All terms together."""
        return sum(self.terms.values())

    def with_program(self, program_bytes: int) -> MemoryEstimate:
        """The same with a measured process in place of the usual one."""
        return replace(self, terms={**self.terms, "program": program_bytes})


def estimate_memory(
    model: ModelConfig,
    *,
    vocabulary_size: int,
    sequence_length: int,
    micro_batch: int,
    precision: str,
    optimizer: str,
    lora: LoraConfig,
    accumulation: int = 1,
    checkpointing: bool = False,
    device: Device = "cpu",
) -> MemoryEstimate:
    """Peak memory of one process in training, bytes, by term.

    - program: see `PROGRAM_BYTES`.
    - weights: fp32 whatever the autocast precision (Rajbhandari et al. 2020, section 3.1), and autocast's copies of the matrices;
      with `lora.quantize` the linear layers in four bits, one of them made whole at a time, and all of them when the adapters are
      merged (on the processor).
    - optimizer: `optimizer_bytes`.
    - activations: what every layer saves (`families`); with checkpointing its input, and one layer's in full while it is made
      again (Chen et al. 2016), twice: once saved, once as gradients on the way.
    - loss: the chunk of logits in work, its log-softmax and gradient, the gradients of the hidden states and of the head.
    - gradients: fp32. In a step of one micro-batch they come as activations go, and only what is more than these is added.
    - checkpoint: the copy of weights and optimizer from which checkpoints are written, in the process's memory from the first one
      on.
    - allocator: see `HOLES_BYTES`; an accelerator's allocator keeps blocks of few sizes, and nothing is added for it.

    Args:
        model: its numbers.
        vocabulary_size: rows of the embedding.
        sequence_length: tokens in a sequence.
        micro_batch: sequences in a forward pass.
        precision: fp32, bf16 or fp16 (autocast over fp32 weights).
        optimizer: `train.optimizer`.
        lora: `train.lora`.
        accumulation: forward passes in an optimizer step.
        checkpointing: activations are made again in the backward pass.
        device: where it trains.
    """
    count, stack = count_parameters(model, vocabulary_size), layers(model)
    trainable = count_trainable(model, vocabulary_size, lora)
    tokens = micro_batch * sequence_length
    low = precision != "fp32"
    width = 2 if low else 4
    saved = [tokens * layer.saved_bytes(precision, sequence_length, heads=model.heads, dropout=model.dropout) for layer in stack]
    most = max(saved)
    last = tokens * model.width * (4 + 4)  # input and normalised input of the last norm
    activations = last + (sum(4 * tokens * model.width for _ in stack) + 2 * most if checkpointing else sum(saved))
    rows = min(max(LEAST_LOSS_ROWS, LOGITS_AT_ONCE[device] // vocabulary_size), tokens)
    head = vocabulary_size * model.width
    loss = rows * vocabulary_size * (4 + 2 * width) + tokens * model.width * 4 + (0 if lora.rank else 4 * head)
    if low:
        loss += 2 * head
    gradients = 4 * trainable if accumulation > 1 else max(4 * trainable + most - activations - loss, 0)
    weights, halves = 4.0 * count.total, 2 * sum(layer.matrices - layer.experts for layer in stack) if low else 0
    if lora.quantize == "4bit":
        frozen = [inputs * outputs for layer in stack for inputs, outputs in layer.linears.values()]
        weights -= (4 - FOUR_BIT_BYTES) * sum(frozen)
        halves = 0
    tensors: dict[str, float] = {
        "weights": weights + 4 * (trainable if lora.rank else 0),
        "weights in half precision": halves,
        "gradients": gradients,
        "optimizer": optimizer_bytes(optimizer, model, trainable, lora),
        "activations": activations,
        "loss": loss,
        "checkpoint": weights + optimizer_bytes(optimizer, model, trainable, lora) if device == "cpu" else 0,
    }
    if lora.quantize == "4bit":
        tensors["a matrix made whole"] = WHOLE_BYTES * max(frozen, default=0)
        if device == "cpu":  # where the model is merged and read back
            tensors["merging"] = max(2 * 4 * count.total - sum(tensors.values()), 0)
    holes = min(ADAPTER_HOLES_BYTES if lora.rank else HOLES_BYTES, HOLES_SHARE * sum(tensors.values()))
    holes += ADAPTER_HOLES_SHARE * activations if lora.rank else 0
    program, allocator = (PROGRAM_BYTES, holes) if device == "cpu" else (0, 0)
    terms = {"program": program, **tensors, "allocator": allocator}
    return MemoryEstimate({name: round(value) for name, value in terms.items()})


def nearest_that_fits(
    model: ModelConfig,
    limit_bytes: float,
    *,
    vocabulary_size: int,
    sequence_length: int,
    precision: str,
    lora: LoraConfig,
    device: Device,
) -> str:
    """The least change that makes a training fit, as settings in words; "" when nothing does.

    Tried in this order, each on top of those before: one sequence at a time, activations computed twice, an optimizer without
    full moments, half the length again and again, fewer layers, and with a start of numbers less width.

    Args:
        model: its numbers.
        limit_bytes: what there is.
        vocabulary_size: rows of the embedding.
        sequence_length: tokens in a sequence.
        precision: fp32, bf16 or fp16.
        lora: low-rank adaptation.
        device: where it trains.
    """

    def fits(tried: ModelConfig, length: int, *, twice: bool, optimizer: str) -> bool:
        estimate = estimate_memory(
            tried, vocabulary_size=vocabulary_size, sequence_length=length, micro_batch=1, precision=precision,
            optimizer=optimizer, lora=lora, checkpointing=twice, device=device,
        )  # fmt: skip
        return estimate.total <= limit_bytes

    words = ["calibrate.micro_batches=[1]"]
    if fits(model, sequence_length, twice=False, optimizer="adamw"):
        return words[0]
    words.append("train.activation_checkpointing=true")
    if fits(model, sequence_length, twice=True, optimizer="adamw"):
        return ", ".join(words)
    words.append("train.optimizer=adafactor")
    lengths = [sequence_length >> halvings for halvings in range(8) if sequence_length >> halvings >= LEAST_LENGTH]
    for length in lengths:
        if fits(model, length, twice=True, optimizer="adafactor"):
            return ", ".join([*words, *([f"pack.sequence_length={length}"] if length < sequence_length else [])])
    for depth in _falling(model.depth):
        for heads in _falling(model.heads):
            share = heads / model.heads
            kv_heads = next(k for k in range(min(model.kv_heads, heads), -1, -1) if k == 0 or heads % k == 0)
            smaller = model.model_copy(
                update={
                    "depth": depth, "heads": heads, "kv_heads": kv_heads, "width": model.width // model.heads * heads,
                    "ffn_width": max(round(model.ffn_width * share), 16),
                }
            )  # fmt: skip
            if fits(smaller, sequence_length, twice=True, optimizer="adafactor"):
                changes = smaller.model_dump(include={"depth", "heads", "kv_heads", "width", "ffn_width"})
                return ", ".join([*words, *(f"model.{n}={v}" for n, v in changes.items() if v != getattr(model, n))])
            if depth > 1:  # narrower only once there is a single layer left
                break
    return ""


def _falling(most: int) -> list[int]:
    """From `most` down to 1, by tenths."""
    return sorted({max(most * tenths // 10, 1) for tenths in range(1, 11)} | {max(most // 20, 1), 1}, reverse=True)


def optimizer_bytes(optimizer: str, model: ModelConfig, trainable: int, lora: LoraConfig) -> int:
    """State of an optimizer, bytes.

    AdamW and LAMB keep two fp32 moments a parameter (Kingma & Ba 2015; You et al. 2020), LARS one (You et al. 2017), Muon one for
    the hidden matrices and AdamW's two for the rest (Jordan et al. 2024), 8-bit AdamW two bytes and a scale for 256 (Dettmers et
    al. 2022), Adafactor a row and a column a matrix (Shazeer & Stern 2018; of adapters, which are as narrow, no more than AdamW).
    """
    stack = layers(model)
    if optimizer == "lars":
        return 4 * trainable
    if optimizer == "adamw_8bit":
        return round(2 * trainable * (1 + 4 / 256))
    if optimizer == "muon":
        hidden = trainable if lora.rank else sum(layer.matrices - layer.experts for layer in stack)
        return 4 * hidden + 8 * (trainable - hidden)
    if optimizer == "adafactor" and not lora.rank:
        linears = [sides for layer in stack for sides in layer.linears.values()]
        vectors = sum(layer.vectors for layer in stack) + model.width
        rest = trainable - vectors - sum(inputs * outputs for inputs, outputs in linears)  # embeddings, experts: rows of `width`
        return 4 * (sum(map(sum, linears)) + vectors + rest // model.width + model.width)
    return 8 * trainable
