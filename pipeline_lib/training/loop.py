"""The one training loop, on `transformers.Trainer`. The stage, the search's trials and the calibration all run this.

What is ours: the order of the data, the loss, the guard against non-finite steps, and who says that training ends. Everything
else is Trainer's. A place to go on from is given through `on_train_begin`, so that nothing of Trainer's own checkpoints (pickles,
no digests, no identity of the data) is used.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pipeline_lib.config.model import TrainConfig
from pipeline_lib.hardware.machine import out_of_memory, release_memory, synchronize, training_device
from pipeline_lib.pretrained import quiet
from pipeline_lib.training.adjustments import Adjustments
from pipeline_lib.training.clipping import Clipping
from pipeline_lib.training.data import Sequences
from pipeline_lib.training.isolation import Isolation, decide_isolation
from pipeline_lib.training.loss import counted_tokens
from pipeline_lib.training.model import check_trainable, prepare
from pipeline_lib.training.objective import Objective
from pipeline_lib.training.optimizers import make_optimizer
from pipeline_lib.training.parallel import Parallel
from pipeline_lib.training.plan import TrainingPlan
from pipeline_lib.training.scaling import LossScale
from pipeline_lib.training.schedule import Schedule
from pipeline_lib.training.world import World, world
from pipeline_lib.workspace.faults import fault_point

OF_ACCELERATE = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")  # variables
ENDLESS = 2**40  # Trainer's own step limit; the schedule in effect says when training ends


def _raise(error: Exception) -> None:
    raise error


@dataclass
class Session:
    """What a training is, and where it stands. Callbacks share it; checkpoints store and restore it."""

    model: Any
    plan: TrainingPlan
    config: TrainConfig
    data: Sequences
    seed: int
    folder: Path
    step: int = 0  # optimizer steps done
    schedule: Schedule = field(init=False)  # in effect
    optimizer: torch.optim.Optimizer = field(init=False)
    scheduler: LambdaLR = field(init=False)
    objective: Objective = field(init=False)
    world: World = field(default_factory=world)
    parallel: Parallel = field(init=False)
    isolation: Isolation = field(init=False)
    loss: Tensor = field(init=False)  # mean loss of the step just done, on the device
    grad_norm: Tensor = field(init=False)  # before clipping, on the device
    finite: Tensor = field(init=False)  # False: loss or gradient of the step just done was not a number; it was not applied
    clipping: Clipping = field(init=False)
    scale: LossScale | None = field(init=False)  # of fp16
    rates: dict[str, float] = field(default_factory=dict)  # factors on the schedule's rate, by who put them there
    loss_limit: Tensor = field(init=False)  # a step whose loss is above it is not applied
    withheld: Tensor = field(init=False)  # True: the step just done was not applied for that
    adjustments: Adjustments = field(default_factory=Adjustments)  # what recoveries have changed
    parts: int = 1  # in which a micro-batch goes through the model, where there was not the memory for a whole one
    relieve: Callable[[Exception], None] = field(default=_raise)  # called when memory ran out: makes more parts, or raises
    waited_seconds: float = 0.0  # for batches, in this attempt
    paused_seconds: float = 0.0  # spent in evaluations and saves of this attempt: not training, for rates

    def __post_init__(self) -> None:
        check_trainable(self.model)
        device = training_device()
        self.model.to(device)
        twice = self.config.activation_checkpointing or self.plan.activation_checkpointing
        prepare(self.model, attention=self.plan.attention, activation_checkpointing=twice)
        length = len(self.data[0]["input_ids"])
        self.isolation = decide_isolation(self.model, length, self.config.isolation)
        self.schedule = self.plan.first_schedule()
        self.objective = Objective(
            self.model, self.plan.precision, apart=self.isolation.mode == "rows", compile=self.config.compile
        )
        self.parallel = Parallel(self.world, self.model, self.objective)
        self.optimizer = make_optimizer(self.model, self.plan, self.config)
        self.scheduler = LambdaLR(self.optimizer, self._factor)
        self.clipping = Clipping(self.config, device)
        self.scale = LossScale(device) if self.plan.precision == "fp16" else None
        self.loss = torch.zeros((), device=device)
        self.grad_norm, self.finite = torch.zeros((), device=device), torch.ones((), dtype=torch.bool, device=device)
        self.loss_limit = torch.full((), math.inf, device=device)
        self.withheld = torch.zeros((), dtype=torch.bool, device=device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def position(self) -> int:
        """Where the next step reads in the order of the data."""
        return self.adjustments.data_step(self.step) * self.plan.batch_sequences

    @property
    def finished(self) -> bool:
        """Whether the schedule in effect has no step left."""
        return self.step >= self.schedule.total_steps

    @property
    def learning_rate(self) -> float:
        """Of the step just done."""
        return self.plan.learning_rate * self._factor(max(0, self.step - 1))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time inside does not count as training."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            synchronize(self.device)
            self.paused_seconds += time.perf_counter() - begin

    def _factor(self, step: int) -> float:
        return self.schedule.factor(step) * math.prod(self.rates.values())  # of the schedule in effect, which may be moved

    def follow(self, schedule: Schedule) -> None:
        """Put another schedule into effect, from the next step on."""
        self.schedule = schedule
        self._set_rate()

    def set_rate(self, who: str, factor: float) -> None:
        """Multiply the schedule's rate by a factor from the next step on; it replaces what the same one said before."""
        self.rates[who] = factor
        self._set_rate()

    def _set_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * self._factor(self.step)

    def continue_at(self, step: int, schedule: Schedule) -> None:
        """Take up a checkpoint's place: steps done, schedule in effect, learning rate."""
        self.step = step
        self.scheduler.last_epoch = step
        self.follow(schedule)

    def tensors(self) -> dict[str, Tensor]:
        """The live tensors that a checkpoint keeps beside weights and optimizer: clipping's window, loss scale."""
        return self.clipping.tensors() | (self.scale.tensors() if self.scale else {})


def random_states() -> dict[str, Tensor]:
    """Of the generators that training draws from: torch's own, of processor and accelerator."""
    states = {"cpu": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Put the generators where they were."""
    torch.random.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextlib.contextmanager
def _told_by_nobody_else() -> Iterator[None]:
    """Trainer takes precision, sharding and more from what `accelerate launch` leaves in the environment; here plan and
    configuration say all that."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(OF_ACCELERATE)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def fit(session: Session, callbacks: Sequence[TrainerCallback]) -> None:
    """Train until the schedule in effect ends or a callback stops it. A finished session returns at once."""
    if session.finished:
        return
    quiet()
    _exempt_imports()
    generators = random_states()
    with _told_by_nobody_else():
        trainer = _PackedTrainer(session, callbacks)
        trainer.remove_callback(PrinterCallback)
        if session.step:  # Trainer has seeded the generators; a training that goes on draws what it would have drawn
            set_random_states(generators)
        trainer.train()


@cache
def _exempt_imports() -> None:
    """Garbage is collected at the end of every training (by accelerate): without this, each time through all imported modules."""
    gc.collect()
    gc.freeze()


class _PackedTrainer(Trainer):
    """Trainer on packed sequences with token-exact accumulation."""

    def __init__(self, session: Session, callbacks: Sequence[TrainerCallback]) -> None:
        self.session, self.world = session, session.world
        micro_batch, passes = self.world.share(session.plan)
        arguments = TrainingArguments(
            output_dir=str(session.folder),
            max_steps=ENDLESS,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=passes,
            max_grad_norm=session.config.max_grad_norm,
            seed=session.seed,
            use_cpu=session.device.type == "cpu",
            save_strategy="no",
            logging_strategy="no",
            logging_nan_inf_filter=False,  # on, it would log 0.0 for a loss that is NaN
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        # With more GPUs in sight Trainer would count tokens and scale losses as if it had spread the model over them.
        arguments._n_gpu = min(arguments.n_gpu, 1)
        super().__init__(
            model=session.model,
            args=arguments,
            callbacks=[_Place(session), *callbacks, _End(session)],
            optimizers=(session.optimizer, session.scheduler),
        )
        self.model_accepts_loss_kwargs = True  # count the labels of the whole accumulated batch …
        self.loss_is_scaled_for_ga = True  # … `compute_loss` divides by them
        self.step_loss = torch.zeros((), device=session.device)
        self.last_part = True  # gradients travel between processes with the backward pass under way
        self.done: list[Any] = []  # the step's micro-batches so far, to do again in smaller parts when memory runs out

    def get_train_dataloader(self) -> Any:
        """Batches from the step in effect on, without a sampler of Trainer's and without skipping."""
        session = self.session
        return self.world.batches(session.data, session.seed, session.plan, session.position)

    def get_batch_samples(self, *given: Any, **named: Any) -> tuple[list[Any], Tensor]:
        """The step's micro-batches of this process, and how many tokens the step predicts in all processes."""
        begin = time.perf_counter()
        tokens: Any
        samples, tokens = super().get_batch_samples(*given, **named)
        self.session.waited_seconds += time.perf_counter() - begin
        return samples, self.world.sum(tokens)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward. Where memory runs out, the step so far is done again in smaller parts: its mean stays the same.

        Raises:
            StageFailedError: a single sequence is too much.
        """
        self.done.append(inputs)
        todo = [inputs]
        while True:
            try:
                return [self._in_parts(model, micro_batch, num_items_in_batch) for micro_batch in todo][-1]
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                said = type(error)(str(error))  # without the traceback, which keeps the tensors
            self.session.relieve(said)
            if self.world.size > 1:  # the others wait in this step: all begin again, from a checkpoint
                raise said
            model.zero_grad(set_to_none=True)
            self.step_loss = torch.zeros_like(self.step_loss)
            release_memory(self.session.device)
            self.session.objective.restart()
            todo = self.done

    def _in_parts(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Tensor:
        parts = min(self.session.parts, len(inputs["input_ids"]))
        last = inputs is self.done[-1] and len(self.done) == self.args.gradient_accumulation_steps
        self.last_part = last and parts == 1
        if parts == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        cut = zip(*(tensor.tensor_split(parts) for tensor in inputs.values()), strict=True)
        batches = [dict(zip(inputs, part, strict=True)) for part in cut]
        losses = []
        for number, batch in enumerate(batches):
            self.last_part = last and number == parts - 1
            losses.append(super().training_step(model, batch, num_items_in_batch))
        return torch.stack(losses).sum()

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """This micro-batch's share of the mean loss over all predicted tokens of the step."""
        fault_point("step.before_micro_batch")
        total = counted_tokens(inputs["labels"]) if num_items_in_batch is None else num_items_in_batch
        session = self.session
        session.parallel.sync(self.last_part)
        cross_entropy = session.parallel.forward(inputs)
        self.step_loss += cross_entropy.detach() / total.clamp(min=1)
        loss: Tensor = (cross_entropy + session.objective.balance) * (self.world.size / total.clamp(min=1))
        return loss * session.scale.scale if session.scale else loss

    def _clip_grad_norm(self, model: Any) -> Tensor:
        """Clip, and decide on the device whether the step may be applied: the last moment before the optimizer."""
        session = self.session
        if session.scale:
            session.scale.unscale([p.grad for p in model.parameters() if p.grad is not None])
        norm = session.clipping(model.parameters())
        session.loss = self.world.sum(self.step_loss)
        applied = session.finite = torch.isfinite(session.loss) & torch.isfinite(norm)
        if session.scale:  # a step that overflowed for its scale is done without, and no news
            at_fault = session.scale.update(applied) & torch.isfinite(session.loss)
            session.finite, norm = applied | at_fault, torch.where(at_fault, session.grad_norm, norm)
        session.grad_norm = norm
        session.withheld = applied & (session.loss > session.loss_limit)
        applied = applied & ~session.withheld
        self.done.clear()
        self.step_loss = torch.zeros_like(self.step_loss)
        if isinstance(session.optimizer, torch.optim.AdamW) and not session.parallel.sharded:
            session.optimizer.found_inf = (~applied).float()  # type: ignore[attr-defined] # the kernel skips
        elif not bool(applied):
            model.zero_grad(set_to_none=True)  # without gradients an optimizer changes nothing, not even its moments
        return norm


class _Place(TrainerCallback):
    """Keeps Trainer's step and ours the same; first of all callbacks."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin where the session stands."""
        state.global_step = self.session.step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step is done, applied or not."""
        self.session.step = int(state.global_step)


class _End(TrainerCallback):
    """Ends training with the schedule; last of all callbacks, so that a controller has spoken."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop when nothing is left to do."""
        if self.session.finished:
            control.should_training_stop = True
