"""The memory model against what torch really holds and saves, term by term and family by family."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline_lib.config.model import LoraConfig, ModelConfig, TrainConfig
from pipeline_lib.planning.families import layers
from pipeline_lib.planning.memory import (
    LOGITS_AT_ONCE,
    count_parameters,
    count_trainable,
    estimate_memory,
    nearest_that_fits,
    optimizer_bytes,
)

ENTRIES, LENGTH, MICRO = 512, 64, 4
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi", "phi3", "mixtral", "mamba", "lfm2")


def small(family: str, **changes: Any) -> ModelConfig:
    kv = 0 if family == "phi" else 2
    numbers = {"family": family, "width": 64, "depth": 3, "heads": 4, "kv_heads": kv, "ffn_width": 160, **changes}
    return ModelConfig.model_validate(numbers)


def build(model: ModelConfig, rank: int = 0) -> Any:
    from pipeline_lib.training.model import adapt, build_model

    net = build_model(model, vocabulary_size=ENTRIES, sequence_length=LENGTH, seed=0)
    return adapt(net, LoraConfig(rank=rank))[0]


def saved_bytes(net: Any, precision: str) -> int:
    """What autograd keeps of one forward pass beside the parameters themselves."""
    import torch

    from pipeline_lib.training.data import RandomSequences, collate
    from pipeline_lib.training.objective import Objective

    objective, data = Objective(net, precision), RandomSequences(ENTRIES, LENGTH)
    batch = collate([data[index] for index in range(MICRO)])
    parameters = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        objective(batch)
    return sum(storage.nbytes() for storage in kept.values())


def estimate(model: ModelConfig, **changes: Any) -> dict[str, int]:
    options: dict[str, Any] = {
        "vocabulary_size": ENTRIES, "sequence_length": LENGTH, "micro_batch": MICRO, "precision": "fp32", "optimizer": "adamw",
        "lora": LoraConfig(),
    }  # fmt: skip
    return estimate_memory(model, **{**options, **changes}).terms


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_and_saved_activations_are_those_of_the_real_model(family: str) -> None:
    model = small(family)
    net = build(model)
    assert count_parameters(model, ENTRIES).total == sum(parameter.numel() for parameter in net.parameters())
    for precision in ("fp32", "bf16"):
        terms = estimate(model, precision=precision)
        # gradients of head and hidden states are saved by the loss; its chunk is not
        loss = 4 * ENTRIES * model.width + 4 * MICRO * LENGTH * model.width
        expected = terms["activations"] + terms["weights in half precision"] + loss
        assert expected == pytest.approx(saved_bytes(net, precision), rel=0.06), precision


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dropout_on_attention_saves_scores(precision: str) -> None:
    plain, dropped = small("llama"), small("llama", dropout=0.1)
    more = saved_bytes(build(dropped), precision) - saved_bytes(build(plain), precision)
    expected = estimate(dropped, precision=precision)["activations"] - estimate(plain, precision=precision)["activations"]
    assert expected == pytest.approx(more, rel=0.15)


@pytest.mark.parametrize("family", ["llama", "phi", "mamba"])
def test_adapters_count_as_peft_makes_them(family: str) -> None:
    targets = {"llama": ["q_proj", "down_proj"], "phi": ["dense", "fc1"], "mamba": ["in_proj"]}[family]
    model, lora = small(family), LoraConfig(rank=4, targets=targets)
    from pipeline_lib.training.model import adapt, build_model

    net, _ = adapt(build_model(model, vocabulary_size=ENTRIES, sequence_length=LENGTH, seed=0), lora)
    assert count_trainable(model, ENTRIES, lora) == sum(p.numel() for p in net.parameters() if p.requires_grad)


def test_weights_in_four_bits_are_counted_as_they_are_held() -> None:
    model, lora = small("llama"), LoraConfig(rank=4, quantize="4bit")
    from pipeline_lib.training.model import adapt, build_model

    net, _ = adapt(build_model(model, vocabulary_size=ENTRIES, sequence_length=LENGTH, seed=0), lora)
    held = sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers()) if tensor.requires_grad or tensor.dim())
    expected = estimate(model, lora=lora)
    assert expected["weights"] == pytest.approx(held, rel=0.01)
    large = small("llama", width=1024, ffn_width=2816, depth=12)  # here merging is the moment that needs most
    on_cpu, on_gpu = (estimate(large, lora=lora, micro_batch=1, device=device) for device in ("cpu", "cuda"))
    merged = 2 * 4 * count_parameters(large, ENTRIES).total
    assert sum(on_cpu.values()) - on_cpu["program"] - on_cpu["allocator"] == pytest.approx(merged, rel=1e-6)
    assert sum(on_gpu.values()) < merged / 4


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
def test_optimizer_state_is_what_the_optimizer_keeps(optimizer: str) -> None:
    import torch

    from pipeline_lib.training.optimizers import make_optimizer
    from pipeline_lib.training.plan import TrainingPlan

    model = small("llama")
    net = build(model)
    plan = TrainingPlan(
        steps=1, warmup_steps=0, decay_steps=0, schedule="wsd", learning_rate=1e-3, weight_decay=0.1, batch_sequences=1,
        micro_batch=1, precision="fp32", evaluate_every=0, save_every=0,
    )  # fmt: skip
    made = make_optimizer(net, plan, TrainConfig.model_validate({"optimizer": optimizer}))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    held = sum(
        value.numel() * value.element_size()
        for state in made.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    )
    trainable = count_trainable(model, ENTRIES, LoraConfig())
    assert optimizer_bytes(optimizer, model, trainable, LoraConfig()) == pytest.approx(held, rel=0.02)


def test_terms_follow_what_they_depend_on() -> None:
    model = small("llama")
    count, full = count_parameters(model, ENTRIES).total, estimate(small("llama"))
    assert (full["weights"], full["optimizer"]) == (4 * count, 8 * count)
    assert estimate(model, micro_batch=2 * MICRO)["activations"] == pytest.approx(2 * full["activations"], abs=2)
    assert estimate(model, accumulation=2)["gradients"] == 4 * count
    assert full["gradients"] < 4 * count
    assert (
        estimate(small("llama", depth=12), checkpointing=True)["activations"]
        < estimate(small("llama", depth=12))["activations"] / 2
    )
    assert estimate(model, lora=LoraConfig(rank=4))["optimizer"] == 8 * count_trainable(model, ENTRIES, LoraConfig(rank=4))
    on_gpu = estimate(model, device="cuda")
    assert (on_gpu["program"], on_gpu["allocator"]) == (0, 0)


def test_grouped_heads_and_odd_families_are_counted() -> None:
    assert [layer.attention for layer in layers(small("lfm2"))] == [False, False, True]
    assert len({layer.matrices for layer in layers(small("unheard_of"))}) == 1


@pytest.mark.parametrize(
    ("model", "gib", "said"),
    [
        ({"width": 1024, "depth": 24, "heads": 16, "ffn_width": 4096}, 10.5, ["calibrate.micro_batches=[1]"]),
        ({"width": 1024, "depth": 24, "heads": 16, "ffn_width": 4096}, 9.7, ["train.activation_checkpointing=true"]),
        ({"width": 1024, "depth": 24, "heads": 16, "ffn_width": 4096}, 4.5, ["train.optimizer=adafactor"]),
        ({"width": 1024, "depth": 24, "heads": 16, "ffn_width": 4096}, 2.0, ["model.depth="]),
        ({"width": 65536, "depth": 400, "heads": 64, "ffn_width": 262144}, 20, ["model.depth=1", "model.width="]),
    ],
)
def test_what_does_not_fit_is_told_the_nearest_that_would(model: dict[str, Any], gib: float, said: list[str]) -> None:
    options: dict[str, Any] = {
        "vocabulary_size": 4096, "sequence_length": 512, "precision": "bf16", "lora": LoraConfig(), "device": "cpu",
    }  # fmt: skip
    words = nearest_that_fits(ModelConfig.model_validate(model), gib * 2**30, **options)
    assert all(part in words for part in said), words
    changes = dict(part.split("=") for part in words.split(", "))
    numbers = model | {name.removeprefix("model."): int(v) for name, v in changes.items() if name.startswith("model.")}
    estimate = estimate_memory(
        ModelConfig.model_validate(numbers), micro_batch=1, checkpointing="train.activation_checkpointing" in changes,
        optimizer=changes.get("train.optimizer", "adamw"), **options,
    )  # fmt: skip
    assert estimate.total <= gib * 2**30
    assert nearest_that_fits(ModelConfig.model_validate(model), 1e8, **options) == ""


def test_the_loss_works_on_as_many_logits_as_is_counted_here() -> None:
    from pipeline_lib.training.loss import CHUNK_LOGITS

    assert LOGITS_AT_ONCE == CHUNK_LOGITS
