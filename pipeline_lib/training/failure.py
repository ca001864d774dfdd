"""How a training ends that nothing could help: an event and an error that say class, evidence, what was tried and what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn

from pipeline_lib.errors import StageFailedError
from pipeline_lib.training.signals import Signal


def tell_failure(event: Callable[..., None], signal: Signal, *, tried: Sequence[str], fix: str) -> None:
    """The event `training_failed`, which the report shows."""
    event("training_failed", step=signal.step, signal=signal.signal, evidence=dict(signal.evidence), tried=list(tried), fix=fix)


def give_up(event: Callable[..., None], signal: Signal, *, tried: Sequence[str], fix: str) -> NoReturn:
    """Tell it, and end the training.

    Args:
        event: who is told.
        signal: what happened, where, and how it is known.
        tried: what was done about it, in words.
        fix: what a person can do.

    Raises:
        StageFailedError: always.
    """
    tried = tried or ["nothing: no policy was left"]
    tell_failure(event, signal, tried=tried, fix=fix)
    seen = "; ".join(f"{name} {value}" for name, value in signal.evidence.items())
    raise StageFailedError(
        f"{signal.signal} at step {signal.step:,}, and nothing helped. Evidence: {seen}. Tried: {'; '.join(tried)}",
        where="stage train", fix=fix,
    )  # fmt: skip
