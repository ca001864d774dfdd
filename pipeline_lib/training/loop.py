"""The one training loop, on `transformers.Trainer`. The stage, the search's trials and the calibration all run this.

What is ours: the order of the data, the loss, the guard against non-finite steps, and who says that training ends. Everything
else is Trainer's. A place to go on from is given through `on_train_begin`, so that nothing of Trainer's own checkpoints (pickles,
no digests, no identity of the data) is used.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from pipeline_lib.config.model import TrainConfig
from pipeline_lib.hardware.machine import synchronize, training_device
from pipeline_lib.pretrained import quiet
from pipeline_lib.training.data import MicroBatches, Sequences
from pipeline_lib.training.loss import counted_tokens
from pipeline_lib.training.model import check_trainable, parameter_groups
from pipeline_lib.training.objective import Objective
from pipeline_lib.training.plan import TrainingPlan
from pipeline_lib.training.schedule import Schedule

ENDLESS = 2**40  # Trainer's own step limit; the schedule in effect says when training ends


@dataclass
class Session:
    """What a training is, and where it stands. Callbacks share it; checkpoints store and restore it."""

    model: Any
    plan: TrainingPlan
    config: TrainConfig
    data: Sequences
    seed: int
    folder: Path
    step: int = 0  # optimizer steps done; the position in the data is step × batch_sequences
    schedule: Schedule = field(init=False)  # in effect
    optimizer: torch.optim.Optimizer = field(init=False)
    scheduler: LambdaLR = field(init=False)
    objective: Objective = field(init=False)
    loss: Tensor = field(init=False)  # mean loss of the step just done, on the device
    grad_norm: Tensor = field(init=False)  # before clipping, on the device
    finite: Tensor = field(init=False)  # False: the step just done was not applied
    paused_seconds: float = 0.0  # spent in evaluations and saves of this attempt: not training, for rates

    def __post_init__(self) -> None:
        check_trainable(self.model)
        device = training_device()
        self.model.to(device)
        self.schedule = self.plan.first_schedule()
        self.objective = Objective(self.model, self.plan.precision)
        self.optimizer = make_optimizer(self.model, self.plan, self.config)
        self.scheduler = LambdaLR(self.optimizer, self._factor)
        self.loss = torch.zeros((), device=device)
        self.grad_norm, self.finite = torch.zeros((), device=device), torch.ones((), dtype=torch.bool, device=device)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    @property
    def finished(self) -> bool:
        """Whether the schedule in effect has no step left."""
        return self.step >= self.schedule.total_steps

    @property
    def learning_rate(self) -> float:
        """Of the step just done."""
        return self.plan.learning_rate * self.schedule.factor(max(0, self.step - 1))

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
        return self.schedule.factor(step)  # of the schedule in effect, which may be moved

    def follow(self, schedule: Schedule) -> None:
        """Put another schedule into effect, from the next step on."""
        self.schedule = schedule
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * schedule.factor(self.step)

    def continue_at(self, step: int, schedule: Schedule) -> None:
        """Take up a checkpoint's place: steps done, schedule in effect, learning rate."""
        self.step = step
        self.scheduler.last_epoch = step
        self.follow(schedule)


def make_optimizer(model: Any, plan: TrainingPlan, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW (fused: it can skip a step on the device) or Adafactor, with decay on matrices only."""
    groups = parameter_groups(model, plan.weight_decay)
    if config.optimizer == "adafactor":
        return torch.optim.Adafactor(groups, lr=plan.learning_rate, weight_decay=plan.weight_decay)
    return torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, config.beta2), eps=1e-8, fused=True)


def fit(session: Session, callbacks: Sequence[TrainerCallback]) -> None:
    """Train until the schedule in effect ends or a callback stops it. A finished session returns at once."""
    if session.finished:
        return
    quiet()
    trainer = _PackedTrainer(session, callbacks)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


class _PackedTrainer(Trainer):
    """Trainer on packed sequences with token-exact accumulation."""

    def __init__(self, session: Session, callbacks: Sequence[TrainerCallback]) -> None:
        self.session = session
        arguments = TrainingArguments(
            output_dir=str(session.folder),
            max_steps=ENDLESS,
            per_device_train_batch_size=session.plan.micro_batch,
            gradient_accumulation_steps=session.plan.accumulation,
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

    def get_train_dataloader(self) -> Any:
        """Batches from the step in effect on, without a sampler of Trainer's and without skipping."""
        plan, session = self.session.plan, self.session
        return MicroBatches(session.data, session.seed, plan.micro_batch, session.step * plan.batch_sequences)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """This micro-batch's share of the mean loss over all predicted tokens of the step."""
        total = counted_tokens(inputs["labels"]) if num_items_in_batch is None else num_items_in_batch
        loss: Tensor = self.session.objective(inputs) / total.clamp(min=1)
        self.step_loss += loss.detach()
        return loss

    def _clip_grad_norm(self, model: Any) -> Tensor:
        """Clip, and decide on the device whether the step may be applied: the last moment before the optimizer."""
        session = self.session
        norm: Tensor = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        session.loss, session.grad_norm = self.step_loss, norm.detach()
        session.finite = torch.isfinite(session.loss) & torch.isfinite(session.grad_norm)
        self.step_loss = torch.zeros_like(self.step_loss)
        if isinstance(session.optimizer, torch.optim.AdamW):
            session.optimizer.found_inf = (~session.finite).float()  # type: ignore[attr-defined] # the kernel skips
        elif not bool(session.finite):
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
