"""Optimizers that need a library of their own. Light: a run asks for it before it begins."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from pipeline_lib.errors import ConfigError

EXTRAS = {
    "adamw_8bit": ("bitsandbytes", "eightbit"),
    "lars": ("pytorch_optimizer", "optimizers"),
    "lamb": ("pytorch_optimizer", "optimizers"),
}
"""Optimizer → the library's module, and the extra that installs it."""


def require_library(optimizer: str) -> None:
    """See that the library of an optimizer is here; nothing is imported.

    Raises:
        ConfigError: it is not installed.
    """
    if optimizer in EXTRAS and importlib.util.find_spec(EXTRAS[optimizer][0]) is None:
        raise _missing(optimizer, "is not installed")


def load_library(optimizer: str) -> Any:
    """The module of an optimizer's library, None where torch has the optimizer.

    Raises:
        ConfigError: it is not installed, or cannot be imported.
    """
    require_library(optimizer)
    try:
        return importlib.import_module(EXTRAS[optimizer][0]) if optimizer in EXTRAS else None
    except ImportError as error:
        raise _missing(optimizer, f"cannot be imported ({error})") from error


def _missing(optimizer: str, why: str) -> ConfigError:
    module, extra = EXTRAS[optimizer]
    return ConfigError(
        f"the optimizer {optimizer} needs {module}, which {why}", where="train.optimizer",
        fix=f"pip install 'millrace[{extra}]', or set train.optimizer to adamw, muon or adafactor",
    )  # fmt: skip
