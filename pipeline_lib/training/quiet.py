"""One place that makes transformers quiet: its progress bars and advice would bury a run's own lines."""

from __future__ import annotations

import functools
import warnings


@functools.cache
def quiet() -> None:
    """No progress bars, errors only. Called before anything of transformers is used here."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
