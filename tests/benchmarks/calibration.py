"""Figures about calibration: memory estimate against measured peak, predicted against measured speed, what calibration costs.

`window` calls `memory_figures` and `cost_figures`; alone, this benchmark runs both.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import Book

SMALL = {"width": 192, "depth": 4, "heads": 4, "ffn_width": 512}
MIDDLE = {"width": 256, "depth": 6, "heads": 4, "ffn_width": 768}
WIDE = {"width": 512, "depth": 6, "heads": 8, "kv_heads": 2, "ffn_width": 1408}
ADAPTERS = {"rank": 16}

# (model, vocabulary, micro-batch, length, precision, activations twice, LoRA)
COMBINATIONS: tuple[tuple[dict[str, Any], int, int, int, str, bool, dict[str, Any]], ...] = (
    (SMALL, 4096, 8, 256, "bf16", False, {}),
    (SMALL, 4096, 8, 256, "fp32", False, {}),
    (MIDDLE, 8192, 2, 1024, "fp32", False, {}),
    (MIDDLE, 8192, 8, 256, "bf16", False, {}),
    (MIDDLE, 8192, 8, 512, "bf16", True, {}),
    (MIDDLE, 8192, 8, 256, "bf16", False, ADAPTERS),
    (WIDE, 16384, 4, 256, "fp32", False, {}),
    (WIDE, 16384, 4, 256, "bf16", False, ADAPTERS),
    ({**MIDDLE, "family": "qwen3", "kv_heads": 2}, 8192, 4, 512, "fp32", False, {}),
    ({**MIDDLE, "family": "phi"}, 8192, 8, 256, "fp32", True, {}),
    ({**SMALL, "family": "mixtral", "ffn_width": 256}, 4096, 8, 256, "fp32", False, {}),
    ({**SMALL, "family": "lfm2"}, 4096, 8, 256, "bf16", False, {}),
)
MEMORY_GOAL = 0.10


def run(book: Book, arguments: argparse.Namespace) -> None:
    """Memory, speed and cost."""
    memory_figures(book, quick=arguments.quick)
    cost_figures(book, quick=arguments.quick)


def memory_figures(book: Book, *, quick: bool) -> None:
    """Estimate against measured peak, each combination in a process of its own; the goal is within a tenth for every one."""
    errors = []
    for model, vocabulary, micro, length, precision, twice, lora in COMBINATIONS[: 8 if quick else None]:
        asked = {
            "model": model, "vocabulary_size": vocabulary, "micro_batch": micro, "sequence_length": length,
            "precision": precision, "activation_checkpointing": twice, "lora": lora,
        }  # fmt: skip
        seen = _child("memory", asked)
        error = seen["estimate"] / seen["peak"] - 1
        errors.append(abs(error))
        name = f"{model.get('family', 'llama')} {seen['parameters'] / 1e6:.1f} M, {micro} × {length}, {precision}"
        name += ", twice" * twice + ", LoRA" * bool(lora)
        own = (seen["estimate"] - seen["program"]) / max(seen["peak"] - seen["program"], 1) - 1
        told = ", ".join(f"{term} {size / 2**20:.0f}" for term, size in seen["terms"].items() if size > 1 << 20)
        sizes = f"estimate {seen['estimate'] / 2**20:.0f} MiB, measured {seen['peak'] / 2**20:.0f}"
        setup = f"{sizes}; {error:+.1%}, without the program {own:+.1%}; MiB: {told}"
        book.add(f"memory: {name}", abs(error), "share", most=MEMORY_GOAL, setup=setup)
    book.add("memory: median error", statistics.median(errors), "share", setup=f"{len(errors)} combinations")
    if quick:
        book.leave_out("the other families' memory")


def cost_figures(book: Book, *, quick: bool) -> None:
    """What the stage `calibrate` costs of a window, and how near its speed is to that of a longer training right after."""
    errors = []
    for hours in (0.1, 0.6) if quick else (0.05, 0.1, 0.5, 0.6, 1.0):
        seen = _child("cost", {"hours": hours, "seconds": 3 if quick else 8})
        most = 10.0 if hours < 0.5 else 0.03 * hours * 3600
        name = f"calibration in a window of {hours * 60:g} minutes"
        book.add(name, seen["seconds"], "seconds", most=most, setup=f"{seen['points']} points measured")
        errors.append(abs(seen["predicted"] / seen["trained"] - 1))
    book.add(
        "speed: calibrated against trained, median error", statistics.median(errors), "share", most=0.05,
        setup=f"{len(errors)} pairs, {'4' if quick else '20'} s of training each",
    )  # fmt: skip


def _child(what: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Run a measurement in a fresh process: nothing that an earlier one left in memory counts."""
    command = [sys.executable, "-m", "tests.benchmarks.calibration", what, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280, cwd=Path(__file__).parents[2])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _memory(asked: dict[str, Any]) -> dict[str, Any]:
    from pipeline_lib.config.model import LoraConfig, ModelConfig
    from pipeline_lib.hardware.machine import resident_bytes
    from pipeline_lib.planning.memory import estimate_memory
    from pipeline_lib.training.measure import measure

    model, lora = ModelConfig.model_validate(asked.pop("model")), LoraConfig.model_validate(asked.pop("lora"))
    tiny = ModelConfig(width=16, depth=1, heads=1, ffn_width=16)
    measure(tiny, vocabulary_size=300, sequence_length=16, micro_batch=1, n_steps=1, precision=asked["precision"], seconds=0.0)
    program = resident_bytes()
    seen = measure(model, lora=lora, n_steps=2, **asked)
    twice = asked.pop("activation_checkpointing")
    estimate = estimate_memory(model, lora=lora, optimizer="adamw", checkpointing=twice, **asked).with_program(program)
    return {
        "estimate": estimate.total, "terms": estimate.terms, "program": program, "peak": seen.peak_memory_bytes,
        "parameters": seen.parameters,
    }  # fmt: skip


def _cost(asked: dict[str, Any]) -> dict[str, Any]:
    import tempfile
    from datetime import UTC, datetime, timedelta

    from pipeline_lib.config.load import load_config
    from pipeline_lib.stages import BY_NAME
    from pipeline_lib.training.measure import measure
    from pipeline_lib.workspace.services import Services
    from pipeline_lib.workspace.stage import execute
    from pipeline_lib.workspace.workspace import Workspace

    config = load_config(None, ["pack.sequence_length=128", "model.width=96", "model.heads=2", "model.ffn_width=256"])
    now = datetime.now(UTC)
    services = Services(started=now, deadline=now + timedelta(hours=asked["hours"]))
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.open(Path(folder))
        ref = execute(workspace, BY_NAME["calibrate"], config, {}, services=services)
        details = workspace.store.artifact(ref.key).details
    chosen = details["chosen"]
    trained = measure(
        config.model, vocabulary_size=config.tokenizer.vocabulary_size, sequence_length=config.pack.sequence_length,
        micro_batch=chosen["micro_batch"], precision=chosen["precision"], n_steps=10_000, seconds=2.5 * asked["seconds"] - 3.5,
        threads=details["threads"], attention=details["attention"],
    )  # fmt: skip
    return {
        "seconds": details["seconds"], "points": sum(not p["error"] for p in [*details["profiles"], *details["variants"]]),
        "predicted": chosen["tokens_per_second"], "trained": trained.tokens_per_second,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps({"memory": _memory, "cost": _cost}[sys.argv[1]](json.loads(sys.argv[2]))))
