"""One model over several processes: torch's DistributedDataParallel, or FSDP2 (`fully_shard`), around the session's model.

The loss of a micro-batch is divided by the tokens of the whole step, in all processes; both kinds average gradients over the
processes, so it is multiplied by their number. Gradients travel once a step, with the last micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from pipeline_lib.training.objective import Objective
from pipeline_lib.training.world import World

Forward = Callable[[Any], Tensor]


class _Whole(nn.Module):
    """Model and objective as one module: what DDP must see the forward pass of."""

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.compute = objective.__call__

    def forward(self, batch: Any) -> Tensor:
        """The loss sum."""
        return self.compute(batch)


class Parallel:
    """How a session's forward and backward passes go over its world. Made before the optimizer: FSDP replaces parameters.

    Attributes:
        forward: a micro-batch's loss sum in this process, like the objective's.
        sync: told before each pass whether gradients travel with it.
        sharded: whether each process holds a part of the weights.
    """

    def __init__(self, world: World, model: Any, objective: Objective) -> None:
        self.forward: Forward = objective.__call__
        self.sync: Callable[[bool], None] = lambda last: None
        self.sharded = world.size > 1 and world.parallel == "fsdp"
        if self.sharded:
            _shard(model, world)
            objective.chunked = False  # the head's weight is whole only inside the model's own forward pass
            self.sync = model.set_requires_gradient_sync
        elif world.size > 1:
            wrapped = nn.parallel.DistributedDataParallel(_Whole(model, objective))
            self.forward = wrapped.__call__
            self.sync = lambda last: setattr(wrapped, "require_backward_grad_sync", last)


def _shard(model: Any, world: World) -> None:
    """FSDP2: every layer gathers its weights when it runs, the rest of the model with the model."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(model.device.type, (world.size,))
    stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    for layer in max(stacks, key=lambda stack: sum(p.numel() for p in stack.parameters()), default=()):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts; every process must ask for it."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


def like(parameter: Any, values: Tensor) -> Tensor:
    """Whole values as a parameter has them: all, or the part that this process holds of it."""
    if not hasattr(parameter, "to_local") or values.shape != parameter.shape:
        return values
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = parameter.device_mesh, parameter.placements
    placed: Tensor = distribute_tensor(values.to(parameter.device), mesh, placements, src_data_rank=None)
    return placed
