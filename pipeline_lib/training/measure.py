"""A short training for others: how fast this machine trains a model."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_lib.config.model import Isolation, LoraConfig, ModelConfig, Optimizer, Precision, TrainConfig
from pipeline_lib.hardware.machine import median, peak_memory_bytes, reset_peak_memory, training_device
from pipeline_lib.training.plan import TrainingPlan

if TYPE_CHECKING:
    from pipeline_lib.training.data import Sequences
    from pipeline_lib.training.start import Lookup

WARM_UP_STEPS = 1  # the first step compiles, allocates and fills caches


@dataclass(frozen=True)
class Measurement:
    """What was seen on this machine."""

    tokens_per_second: float  # median step
    step_seconds: list[float]  # without the first step
    peak_memory_bytes: int  # of this measurement: process (CPU) or allocator (GPU)
    parameters: int
    flops_per_token: float
    evaluate_tokens_per_second: float
    save_seconds: float  # one checkpoint: weights, optimizer, digests, sync
    fetch_seconds: float  # one micro-batch, read and stacked
    first_step_seconds: float  # with what is compiled or allocated only once


def measure(
    model: ModelConfig,
    *,
    vocabulary_size: int,
    sequence_length: int,
    micro_batch: int,
    n_steps: int,
    precision: Precision,
    learning_rate: float = 1e-3,
    optimizer: Optimizer = "adamw",
    lora: LoraConfig | None = None,
    dataset: Sequences | None = None,
    seconds: float | None = None,
    threads: int | None = None,
    store_lookup: Lookup | None = None,
    attention: str = "",
    activation_checkpointing: bool = False,
    compile: bool = False,
    isolation: Isolation = "auto",
) -> Measurement:
    """Train a few steps of one micro-batch each and time them; then an evaluation, a checkpoint, and a step beside its copy.

    Args:
        model: what to build (a `start` needs `store_lookup` when it is a reference).
        vocabulary_size: entries of the tokenizer.
        sequence_length: tokens in a sequence.
        micro_batch: sequences in a forward pass; accumulation repeats exactly this.
        n_steps: steps at most, after the first one that is not counted.
        precision: fp32, or bf16 autocast over fp32 weights.
        learning_rate: small enough not to blow up; it does not change the speed.
        optimizer: as in training.
        lora: as in training.
        dataset: sequences to read; random tokens when None.
        seconds: stop after this long, whatever `n_steps` says; at least one step is timed.
        threads: CPU threads; torch's own choice when None.
        store_lookup: see `build_model`.
        attention: as in a plan.
        activation_checkpointing: as in training.
        compile: as in training.
        isolation: as in training.
    """
    import torch

    from pipeline_lib.training.data import MicroBatches, RandomSequences, spread
    from pipeline_lib.training.evaluate import mean_loss
    from pipeline_lib.training.loop import Session, fit
    from pipeline_lib.training.model import adapt, build_model, count_parameters, flops_per_token
    from pipeline_lib.training.pace import Pace
    from pipeline_lib.training.saving import CheckpointWriter

    if threads:
        torch.set_num_threads(threads)
    reset_peak_memory(training_device())
    built = build_model(
        model, vocabulary_size=vocabulary_size, sequence_length=sequence_length, seed=0, store_lookup=store_lookup
    )
    net, _ = adapt(built, lora or LoraConfig(rank=0))
    plan = TrainingPlan(
        steps=WARM_UP_STEPS + n_steps, warmup_steps=0, decay_steps=0, schedule="wsd", learning_rate=learning_rate,
        weight_decay=0.0, batch_sequences=micro_batch, micro_batch=micro_batch, precision=precision, evaluate_every=0,
        save_every=0, attention=attention,
    )  # fmt: skip
    config = TrainConfig(
        optimizer=optimizer,
        lora=lora or LoraConfig(),
        activation_checkpointing=activation_checkpointing,
        compile=compile,
        isolation=isolation,
    )
    data = dataset or RandomSequences(vocabulary_size, sequence_length)
    begin = time.perf_counter()
    next(iter(MicroBatches(data, 0, micro_batch)))
    fetched = time.perf_counter() - begin
    with tempfile.TemporaryDirectory(prefix="millrace-measure-") as folder:
        session = Session(net, plan, config, data, 0, Path(folder))
        pace = Pace(session, seconds)
        fit(session, [pace])
        steps = pace.step_seconds[WARM_UP_STEPS:] or pace.step_seconds
        batches = spread(data, 2 * micro_batch, micro_batch)
        mean_loss(net, session.objective, batches[:1])
        begin = time.perf_counter()
        mean_loss(net, session.objective, batches)
        evaluated = time.perf_counter() - begin
        begin = time.perf_counter()
        with CheckpointWriter(Path(folder), identity={"data": ""}) as writer:
            writer.save(session, notes={})
            writer.wait()
            saved = time.perf_counter() - begin
            # From its first checkpoint on, a training holds a copy of its state.
            session.follow(session.schedule.moved(session.step, session.step + 1, session.step + 1))
            fit(session, [])
    evaluated_tokens = sum(batch["input_ids"].numel() for batch in batches)
    return Measurement(
        tokens_per_second=micro_batch * sequence_length / median(steps),
        step_seconds=steps,
        peak_memory_bytes=peak_memory_bytes(training_device()),
        parameters=count_parameters(net),
        flops_per_token=flops_per_token(net, sequence_length),
        evaluate_tokens_per_second=evaluated_tokens / evaluated,
        save_seconds=saved,
        fetch_seconds=fetched,
        first_step_seconds=pace.step_seconds[0],
    )
