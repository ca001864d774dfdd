"""Models read through transformers: from a local folder, safetensors only, no remote code, one at a time, quietly."""

from __future__ import annotations

import functools
import logging as logging_of_python
import threading
import warnings
from pathlib import Path
from typing import Any

MAKING = threading.RLock()
"""Held while a model is made or read. While transformers reads one it switches off the tying of weights for the whole process,
and initial weights come from the process's one generator: two threads at it would get, and leave behind, other models."""


@functools.cache
def quiet() -> None:
    """No progress bars, errors only: they would bury a run's own lines. Called before anything of transformers is used here."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging_of_python.getLogger("bitsandbytes").setLevel(logging_of_python.ERROR)  # warns of missing GPU kernels
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def read_model(folder: Path, *, head: bool = True) -> Any:
    """The model of a folder in fp32 and evaluation mode, with its language-modelling head or without."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    quiet()
    kind: Any = AutoModelForCausalLM if head else AutoModel
    with MAKING:
        model = kind.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
    return model.eval()
