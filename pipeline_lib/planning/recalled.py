"""What memory says about a training like this one, for `plan` to copy into its output: advice, and a check of the machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline_lib.config.model import ModelConfig, TrainConfig
from pipeline_lib.memory.store import MemoryStore
from pipeline_lib.workspace.machine import machine_identity
from pipeline_lib.workspace.stage import StageRun

LIKE_RUNS = 3  # shown to people
UNLIKE_SPEED = 0.3  # a calibrated speed further from the recalled one than this share is an event


def features_asked(model: ModelConfig, train: TrainConfig, data: Mapping[str, Any], parameters: int) -> dict[str, float | str]:
    """What is known of a training before it runs, under the names of `workspace.features`.

    Args:
        model: with the numbers of the model that is really trained.
        train: its optimizer.
        data: details of `fill_gaps`.
        parameters: of the model, all of them.
    """
    machine = machine_identity()
    return {
        "family": model.family,
        "width": model.width,
        "depth": model.depth,
        "parameters": parameters,
        "vocabulary_size": int(data["vocabulary_size"]),
        "sequence_length": int(data["sequence_length"]),
        "optimizer": train.optimizer,
        "cpu": machine["cpu"],
        "cores": machine["cores"],
        "gpu": ", ".join(machine["gpus"]),
    }


def first_guess(memory: MemoryStore, asked: Mapping[str, float | str]) -> dict[str, Any]:
    """Tokens a second that past runs like this one let expect before anything is measured; {} when none can tell.

    Args:
        memory: of the workspace (`memory.keep.caught_up`): runs that ended here or were taken over, however long ago.
        asked: see `features_asked`.

    Returns:
        {"value", "low", "high", "runs"}.
    """
    guess = memory.guess(asked)
    if guess is None:
        return {}
    numbers = {"value": round(guess.value, 1), "low": round(guess.low, 1), "high": round(guess.high, 1)}
    return {**numbers, "runs": list(guess.runs)}


def recall(run: StageRun, memory: MemoryStore, asked: Mapping[str, float | str], calibrated_rate: float) -> dict[str, Any]:
    """The most similar past runs, the speed they let expect, and what was calibrated against it (1: the same).

    Says an event when the two differ by more than `UNLIKE_SPEED`: another process may be at work on this machine.

    Args:
        run: the stage run of `plan`.
        memory: of the workspace.
        asked: see `features_asked`.
        calibrated_rate: tokens a second of the chosen profile.

    Returns:
        {"asked", "runs": [{"run_id", "distance", "reasons", "doubts"}], "tokens_per_second": {"value", "low", "high", "runs"} or
        {}, "calibrated_share"}.
    """
    like = memory.recall(asked, k=LIKE_RUNS)
    guess = first_guess(memory, asked)
    found: dict[str, Any] = {
        "asked": dict(asked),
        "runs": [
            {"run_id": n.run_id, "distance": round(n.distance, 4), "reasons": list(n.reasons), "doubts": list(n.doubts)}
            for n in like
        ],
        "tokens_per_second": {},
        "calibrated_share": 1.0,
    }
    if guess:
        share = calibrated_rate / guess["value"]
        found |= {"tokens_per_second": guess, "calibrated_share": round(share, 4)}
        if abs(share - 1) > UNLIKE_SPEED:
            why = "is the machine busy?" if share < 1 else "it was busy then, or has changed"
            run.event("speed_differs", calibrated=round(calibrated_rate, 1), recalled=guess["value"], why=why)
    return found


def in_words(found: Mapping[str, Any], memory: Mapping[str, Any]) -> str:
    """A clause or two for the plan's summary; "" when no past run can tell.

    Args:
        found: see `recall`.
        memory: `memory` of the plan's details.
    """
    return "; ".join(words for words in (_speed(found), _peak(memory)) if words)


def _peak(memory: Mapping[str, Any]) -> str:
    if not (share := memory["share"])["runs"]:
        return ""
    gib, seen, measured = 2**30, memory["foreseen_bytes"], memory["measured_bytes"]
    beside = f", {measured / gib:.2f} measured now" if measured else ""
    return (
        f"memory {memory['estimated_bytes'] / gib:.2f} GiB by the formula × {share['value']:.2f} of {', '.join(share['runs'])}: "
        f"{seen['low'] / gib:.2f} to {seen['high'] / gib:.2f}{beside}"
    )


def _speed(found: Mapping[str, Any]) -> str:
    if not (rate := found["tokens_per_second"]):
        return ""
    seen = f"{rate['value']:,.0f} tokens/s ({rate['low']:,.0f} to {rate['high']:,.0f})"
    return f"{len(rate['runs'])} past runs like it let expect {seen}, {found['calibrated_share']:.0%} of that calibrated"
