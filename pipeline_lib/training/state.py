"""What a checkpoint keeps of the optimizer and of the session's own machinery, as tensors by name.

`<parameter>.<name>` is the optimizer's state of a parameter, `group.<group>.step` the counter of a parameter group,
`session.<name>` a tensor of the session (loss scale, clipping window). Whole numbers end in `:int`. Rates and decay are the
plan's and are not stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline_lib.errors import StageFailedError
from pipeline_lib.training.parallel import like, whole

if TYPE_CHECKING:
    from pipeline_lib.training.loop import Session

WHOLE = ":int"


def training_tensors(session: Session) -> dict[str, Tensor]:
    """The state of optimizer and session: each tensor contiguous, none sharing memory with another (safetensors refuses that)."""
    groups, state = session.optimizer.param_groups, session.optimizer.state
    parameters = [parameter for group in groups for parameter in group["params"]]
    found: dict[str, Any] = {}
    for index, parameter in enumerate(parameters):
        found |= {f"{index}.{name}": value for name, value in state.get(parameter, {}).items()}
    found |= {f"group.{number}.step": group["step"] for number, group in enumerate(groups) if "step" in group}
    found |= {f"session.{name}": tensor for name, tensor in session.tensors().items()}
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in found.items():
        if isinstance(value, Tensor):
            value = whole(value)  # noqa: PLW2901
            shared = value.data_ptr() in seen and value.numel() > 0
            seen.add(value.data_ptr())
            tensors[name] = value.clone() if shared else value.contiguous()
        else:
            tensors[name + WHOLE] = torch.tensor(int(value))
    return tensors


def restore_training(session: Session, tensors: Mapping[str, Tensor]) -> None:
    """Bring optimizer and session of a fresh session to a saved state.

    Raises:
        StageFailedError: the state belongs to another model or another optimizer.
    """
    state: dict[int, dict[str, Any]] = {}
    groups = session.optimizer.state_dict()["param_groups"]
    own = session.tensors()
    for key, tensor in tensors.items():
        value = int(tensor) if key.endswith(WHOLE) else tensor
        first, _, name = key.removesuffix(WHOLE).partition(".")
        if first == "session":
            if name not in own or own[name].shape != tensor.shape:
                raise _other(f"it keeps {name}")
            own[name].copy_(tensor)
        elif first == "group":
            number, _, name = name.partition(".")
            groups[int(number)][name] = value
        else:
            state.setdefault(int(first), {})[name] = value
    if state and max(state) >= (fresh := sum(len(group["params"]) for group in groups)):
        raise _other(f"it has {fresh} parameters here")
    if missing := own.keys() - {key.removeprefix("session.") for key in tensors}:
        raise _other(f"it lacks {', '.join(sorted(missing))}")
    parameters = [parameter for group in session.optimizer.param_groups for parameter in group["params"]]
    for index, values in state.items():
        state[index] = {
            name: like(parameters[index], value) if isinstance(value, Tensor) else value for name, value in values.items()
        }
    session.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _other(what: str) -> StageFailedError:
    return StageFailedError(
        f"the checkpoint's optimizer belongs to another model or other settings: {what}", where="optimizer.safetensors"
    )
