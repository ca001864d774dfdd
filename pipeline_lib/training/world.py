"""The processes that train together, seen from one of them. A single process is a world of its own, and pays nothing for it.

Every process does the same steps in the same order, on its share of each step's sequences. What depends on the clock or on the
disk is looked at by the first one alone and told to the others, so that all decide alike. That goes over the processor (gloo),
whatever the weights travel over, and as JSON.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline_lib.config.model import TrainConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.training.data import Batch, MicroBatches, Sequences
from pipeline_lib.training.hooks import CONTINUE, Controller, Decision
from pipeline_lib.training.plan import TrainingPlan
from pipeline_lib.training.rank import OF_A_LAUNCHER

MEET_SECONDS = 600  # for all processes to be there, and for the slowest in a step; a stall ends earlier by `train.stall_seconds`


@dataclass(frozen=True)
class World:
    """One of `size` processes. `control` is the group over which they agree."""

    rank: int = 0
    size: int = 1
    parallel: Literal["ddp", "fsdp"] = "ddp"
    control: Any = field(default=None, repr=False)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, plan: TrainingPlan) -> tuple[int, int]:
        """(sequences in a forward pass, forward passes in a step) of one process."""
        each = plan.batch_sequences // self.size
        micro = math.gcd(each, plan.micro_batch)
        return micro, each // micro

    def batches(self, data: Sequences, seed: int, plan: TrainingPlan, position: int) -> Iterable[Batch]:
        """Endless micro-batches of this process from a position on: of each step's sequences its contiguous part."""
        return MicroBatches(data, seed, plan.micro_batch, position) if self.size == 1 else self._own(data, seed, plan, position)

    def _own(self, data: Sequences, seed: int, plan: TrainingPlan, position: int) -> Iterator[Batch]:
        micro, passes = self.share(plan)
        while True:
            own = iter(MicroBatches(data, seed, micro, position + self.rank * micro * passes))
            for _ in range(passes):
                yield next(own)
            position += plan.batch_sequences

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place, on the value's device."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def sum_array(self, values: np.ndarray) -> None:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(torch.from_numpy(values), group=self.control)

    def first(self, look: Callable[[], Any]) -> Any:
        """What `look` gives in the first process, as JSON values, to all."""
        if self.size == 1:
            return look()
        said = json.dumps(look()).encode() if self.main else b""
        length = torch.tensor([len(said)])
        dist.broadcast(length, 0, group=self.control)
        data = torch.frombuffer(bytearray(said), dtype=torch.uint8) if self.main else torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, 0, group=self.control)
        return json.loads(bytes(data.tolist()))

    def any(self, asked: Callable[[], bool]) -> Callable[[], bool]:
        """`asked`, answered alike in every process: true where it is true in one."""
        if self.size == 1:
            return asked

        def answer() -> bool:
            told = torch.tensor([int(asked())])
            dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self.control)
            return bool(told.item())

        return answer

    def led(self, controller: Controller) -> Controller:
        """A controller that looks at the first process's clock only."""
        return controller if self.size == 1 else _Led(self, controller)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier(group=self.control)


class _Led:
    """The first process's decisions, in every process."""

    def __init__(self, world: World, controller: Controller) -> None:
        self.world, self.controller = world, controller

    def on_step(self, step: int, elapsed_seconds: float) -> Decision:
        """See `hooks.Controller`."""

        def look() -> dict[str, Any] | None:
            decision = self.controller.on_step(step, elapsed_seconds)
            return None if decision.kind == "continue" else vars(decision)

        told = self.world.first(look)
        return Decision(**told) if told else CONTINUE

    def ask_for_decay(self, reason: str) -> None:
        """See `hooks.Controller`."""
        self.controller.ask_for_decay(reason)

    def outlook(self) -> Mapping[str, Any]:
        """See `hooks.Controller`."""
        return self.controller.outlook()

    def state(self) -> Mapping[str, Any]:
        """See `hooks.Controller`."""
        return self.controller.state()

    def restore(self, state: Mapping[str, Any], /) -> None:
        """See `hooks.Controller`."""
        self.controller.restore(state)


_present = World()


def world() -> World:
    """The world that this process belongs to."""
    return _present


def check_share(plan: TrainingPlan, train: TrainConfig) -> None:
    """Refuse what several processes cannot do, before they are started.

    Raises:
        ConfigError: there are fewer GPUs, the batch cannot be shared equally, or optimizer or weights do not know shards.
    """
    processes, here = train.processes, train.launcher != "external"
    if here and torch.cuda.is_available() and processes > (gpus := torch.cuda.device_count()):
        raise ConfigError(
            f"{processes} processes need a GPU each, {gpus} are here", where="train.processes", fix=f"train.processes={gpus}"
        )
    if plan.batch_sequences % processes:
        near = [n for n in range(1, plan.batch_sequences + 1) if plan.batch_sequences % n == 0]
        best = min(near, key=lambda n: abs(n - processes))
        raise ConfigError(
            f"a batch of {plan.batch_sequences} sequences cannot be shared equally by {processes} processes",
            where="train.processes", fix=f"{best} processes can; or change train.batch_tokens",
        )  # fmt: skip
    if train.parallel == "fsdp" and train.lora.quantize != "none":
        raise ConfigError(
            "fsdp gives processes parts of weights, and weights in four bits cannot be taken apart so", where="train.parallel",
            fix="train.parallel=ddp, or train.lora.quantize=none",
        )  # fmt: skip
    if train.parallel == "fsdp" and train.optimizer not in {"adamw", "adafactor"}:
        raise ConfigError(
            f"{train.optimizer} needs whole matrices, fsdp gives it parts of them", where="train.parallel",
            fix="train.parallel=ddp, or train.optimizer=adamw",
        )  # fmt: skip


def join(meeting: Path, rank: int, size: int, parallel: Literal["ddp", "fsdp"]) -> World:
    """Become one of `size` processes. They find each other where torchrun's MASTER_ADDR and MASTER_PORT say, or where there are
    none, through the file `meeting`, which must be new.

    Raises:
        RuntimeError: not all of them came in time.
    """
    global _present  # noqa: PLW0603 - a process joins one world, once
    gpu = int(os.environ.get("LOCAL_RANK", rank))
    method = "env://" if "MASTER_ADDR" in os.environ else meeting.absolute().as_uri()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(gpu)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    waits = timedelta(seconds=MEET_SECONDS)
    dist.init_process_group(backend, init_method=method, rank=rank, world_size=size, timeout=waits)
    for name in OF_A_LAUNCHER & os.environ.keys():  # Trainer is to see a single process: what is shared is our business
        del os.environ[name]
    control = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    _present = World(rank, size, parallel, control)
    return _present
