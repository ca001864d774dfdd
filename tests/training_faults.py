"""Real faults in a real training: an extension whose callback breaks things at given steps. Used by tests and a benchmark.

`MILLRACE_TEST_FAULTS` is JSON: a list of {"kind", "steps": [step, …], "once": bool, …}. What happens once is marked by a file in
`$MILLRACE_TEST_MARKS`, so that it does not happen again when the step is done anew, as with bad data that is passed over.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

from pipeline_lib.extensions import extend
from pipeline_lib.training import checkpoints
from pipeline_lib.training.world import world


class Faults(TrainerCallback):
    """Arms a fault before its step begins, and disarms it when the step has ended."""

    def __init__(self, faults: list[Mapping[str, Any]], marks: Path | None) -> None:
        self.faults, self.marks = faults, marks
        self.hooks: list[Any] = []
        self.limited = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step after `global_step` done ones is about to begin."""
        step = state.global_step + 1
        for number, fault in enumerate(self.faults):
            if step in fault["steps"] and not self._happened(number, step, fault):
                getattr(self, fault["kind"])(fault, kwargs["model"], kwargs["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Everything works again."""
        while self.hooks:
            self.hooks.pop().remove()
        if self.limited:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            self.limited = False

    def _happened(self, number: int, step: int, fault: Mapping[str, Any]) -> bool:
        if not fault.get("once", True) or self.marks is None:
            return False
        mark = self.marks / f"fault-{number}-{step}-{world().rank}"
        if mark.exists():
            return True
        mark.touch()
        return False

    def nan_loss(self, fault: Mapping[str, Any], model: Any, optimizer: Any) -> None:
        """An activation is not a number."""
        self.hooks.append(model.get_input_embeddings().register_forward_hook(lambda part, given, made: made * math.nan))

    def inf_gradient(self, fault: Mapping[str, Any], model: Any, optimizer: Any) -> None:
        """The loss is fine, a gradient is not."""
        weight = model.get_input_embeddings().weight
        self.hooks.append(weight.register_hook(lambda gradient: gradient * math.inf))

    def spike(self, fault: Mapping[str, Any], model: Any, optimizer: Any) -> None:
        """Nonsense is read: the tokens' order is lost and their vectors are large, while the labels are the right ones."""
        strength = fault.get("strength", 50.0)

        def lost(part: Any, given: Any, made: Any) -> Any:
            return strength * made.flip(1) if part.training else made

        def louder(part: Any, given: Any) -> Any:
            return (strength * given[0],) if part.training else given

        embedding, head, norm = model.get_input_embeddings(), model.get_output_embeddings(), model.base_model.norm
        self.hooks += [embedding.register_forward_hook(lost), head.register_forward_pre_hook(louder)]
        self.hooks.append(norm.register_forward_hook(lambda part, given, made: strength * made if part.training else made))

    def diverge(self, fault: Mapping[str, Any], model: Any, optimizer: Any) -> None:
        """Updates so large that the model forgets what it knew."""
        for group in optimizer.param_groups:
            group["lr"] *= fault.get("strength", 30.0)

    def hard(self, fault: Mapping[str, Any], model: Any, optimizer: Any) -> None:
        """Texts that cannot be read, from which nothing is learned."""
        self.spike(fault, model, optimizer)
        for group in optimizer.param_groups:
            group["lr"] = 0.0

    def memory(self, fault: Mapping[str, Any], model: Any, optimizer: Any) -> None:
        """More sequences at once than `most` ask for memory that no machine has."""

        def greedy(part: Any, given: Any) -> None:
            if part.training and len(given[0]) > fault["most"]:
                torch.empty(1 << 56, dtype=torch.uint8)

        self.hooks.append(model.get_input_embeddings().register_forward_pre_hook(greedy))

    def address_space(self, fault: Mapping[str, Any], model: Any, optimizer: Any) -> None:
        """During this step the process may have only `mib` more than it has now."""
        have = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (have + fault["mib"] * 2**20, resource.RLIM_INFINITY))
        self.limited = True

    def fill_disk(self, fault: Mapping[str, Any], model: Any, optimizer: Any) -> None:
        """Somebody else writes until only `leave_mib` are free where the workspace lies."""
        home = Path(os.environ["MILLRACE_TEST_HOME"])
        too_much = shutil.disk_usage(home).free - int(fault["leave_mib"] * 2**20)
        with (home / "somebody-elses-file").open("wb") as handle:
            os.posix_fallocate(handle.fileno(), 0, max(too_much, 1))

    def no_room(self, fault: Mapping[str, Any], model: Any, optimizer: Any) -> None:
        """From here on a checkpoint wants more room beside it than any disk has."""
        checkpoints.SPARE_BYTES = 1 << 60

    def terminate(self, fault: Mapping[str, Any], model: Any, optimizer: Any) -> None:
        """Somebody asks this process to stop."""
        os.kill(os.getpid(), signal.SIGTERM)

    def kill(self, fault: Mapping[str, Any], model: Any, optimizer: Any) -> None:
        """This process, or the one of a rank, is gone."""
        if fault.get("rank", 0) == world().rank:
            os.kill(os.getpid(), signal.SIGKILL)

    def hang(self, fault: Mapping[str, Any], model: Any, optimizer: Any) -> None:
        """A rank stands still, as one does that waits for a device."""
        if fault.get("rank", 0) == world().rank:
            os.kill(os.getpid(), signal.SIGSTOP)


@extend.callback("faults")
def faults() -> Any:
    """As the environment says."""
    marks = os.environ.get("MILLRACE_TEST_MARKS")
    return Faults(json.loads(os.environ.get("MILLRACE_TEST_FAULTS", "[]")), Path(marks) if marks else None)
