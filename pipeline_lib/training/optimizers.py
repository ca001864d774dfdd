"""Optimizers by name: torch's own, 8-bit AdamW of `bitsandbytes`, LARS and LAMB of `pytorch-optimizer`.

All get the plan's rate and decay (on matrices only), so that one learning rate means about the same for each: Muon's update is
brought to the size of AdamW's (Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pipeline_lib.config.model import TrainConfig
from pipeline_lib.training.libraries import load_library
from pipeline_lib.training.plan import TrainingPlan

EPSILON = 1e-8
MOMENTUM = 0.9  # first moment of every optimizer but Muon, which has 0.95


def make_optimizer(model: nn.Module, plan: TrainingPlan, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer of a training.

    Raises:
        ConfigError: it needs a library that is not installed.
    """
    name, rate, betas = config.optimizer, plan.learning_rate, (MOMENTUM, config.beta2)
    library = load_library(name)
    groups = parameter_groups(model, plan.weight_decay)
    if name == "adafactor":
        return torch.optim.Adafactor(groups, lr=rate, weight_decay=plan.weight_decay)
    if name == "adamw_8bit":
        optimizer: torch.optim.Optimizer = library.optim.AdamW8bit(groups, lr=rate, betas=betas, eps=EPSILON)
        return optimizer
    if name == "lamb":  # clipping is the loop's
        optimizer = library.Lamb(groups, lr=rate, betas=betas, max_grad_norm=0.0, grad_averaging=True)
        return optimizer
    if name == "lars":
        optimizer = library.LARS(groups, lr=rate, momentum=MOMENTUM)
        return optimizer
    if name == "muon" and (hidden := hidden_matrices(model)):
        others = [{**group, "params": [p for p in group["params"] if id(p) not in hidden]} for group in groups]
        matrices = [p for group in groups for p in group["params"] if id(p) in hidden]
        return Joined([
            torch.optim.Muon(matrices, lr=rate, weight_decay=plan.weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([g for g in others if g["params"]], lr=rate, betas=betas, eps=EPSILON, fused=True),
        ])  # fmt: skip
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=EPSILON, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay, vectors (norms, biases) do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def hidden_matrices(model: Any) -> set[int]:
    """Identities of the matrices that Muon turns: of the linear layers, the head left out. What else has two dimensions
    (embeddings, a router, the decay of a state space) is no map between features."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    ends = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings()) if part is not None}
    linear = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear | Conv1D) and part.weight.requires_grad}
    return linear - ends


class Joined(torch.optim.Optimizer):
    """Several optimizers as one, each over its own parameters; the state is saved and loaded as that of one."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = [part for part in parts if part.param_groups]
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override] # no closure: the loop never has one
        """One step of every part."""
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As of one optimizer; the parts go on with what was loaded."""
        super().load_state_dict(dict(state_dict))
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]
