"""Gradient norms and update-to-weight ratios by group of layers, at some steps of a training."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from pipeline_lib.training.loop import Session
from pipeline_lib.training.parallel import whole

SEEN_STEPS = 200  # of a training
EVERY_STEPS = 20  # at least between two looks: a look reads every gradient once more
ELEMENTS = 65_536  # of a parameter, evenly spread, stand for it in the update-to-weight ratio
_NUMBER = re.compile(r"\.(?:layers|h|blocks|block|layer)\.(\d+)\.")
_EMBEDDING = re.compile(r"embed|wte|wpe")
ALL = "all"


def group_of(name: str) -> str:
    """The group of a parameter by its name: `embeddings`, `layer 0` …, `head` or `other` (norms at the end)."""
    if found := _NUMBER.search(name):
        return f"layer {found[1]}"
    return "embeddings" if _EMBEDDING.search(name) else "head" if "lm_head" in name else "other"


class Layers(TrainerCallback):
    """Looks before and after the optimizer's step; the numbers stay on the device until `flush`."""

    def __init__(self, session: Session, write: Callable[[str, Sequence[dict[str, Any]]], None]) -> None:
        self.session, self.write = session, write
        self.every = max(EVERY_STEPS, session.plan.steps // SEEN_STEPS)
        self.groups: dict[str, list[Tensor]] = {}
        for name, parameter in session.model.named_parameters():
            if parameter.requires_grad:
                self.groups.setdefault(group_of(name), []).append(parameter)
        self._before: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._pending: list[tuple[int, Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Gradients (clipped by now) and weights as they are before the step."""
        if (self.session.step + 1) % self.every and self.session.step:
            return
        gradients = [[p.grad for p in group if p.grad is not None] for group in self.groups.values()]
        none = torch.zeros(1, device=self.session.device)
        self._norms = [whole(torch.stack(torch._foreach_norm(group or [none])).norm()) for group in gradients]
        self._before = [_some(parameter).clone() for group in self.groups.values() for parameter in group]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """How far the step went, in every group and in all."""
        if not self._before:
            return
        before, self._before = iter(self._before), []
        updates, weights = [], []
        for group in self.groups.values():
            old = [next(before) for _ in group]
            moved = torch._foreach_sub([_some(parameter) for parameter in group], old)
            updates.append(whole(torch.stack(torch._foreach_norm(moved)).norm()))
            weights.append(whole(torch.stack(torch._foreach_norm(old)).norm()))
        norms = torch.stack(self._norms)
        unclipped = norms * (self.session.grad_norm / norms.norm())  # clipping has scaled all of them alike
        self._pending.append((self.session.step + 1, torch.stack([unclipped, torch.stack(updates), torch.stack(weights)])))

    def flush(self) -> None:
        """Bring what the device still holds to the host and write it."""
        pending, self._pending = self._pending, []
        for step, values in pending:
            norms, updates, weights = values.double().cpu()
            rows = list(zip(self.groups, norms.tolist(), (updates / weights).tolist(), strict=True))
            rows.append((ALL, float(norms.norm()), float(updates.norm() / weights.norm())))
            self.write("layers", [{"step": step, "group": name, "grad_norm": n, "update_ratio": r} for name, n, r in rows])


def _some(parameter: Tensor) -> Tensor:
    """At most about `ELEMENTS` elements, evenly spread; a view where the parameter is contiguous."""
    flat = parameter.detach().flatten()
    return flat[:: max(1, len(flat) // ELEMENTS)]
