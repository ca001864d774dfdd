"""The stage `calibrate`: what this machine does with this model, measured in a few seconds."""

from __future__ import annotations

import math
import time
from itertools import product
from typing import Any, Literal

from pipeline_lib.config.model import CalibrateConfig, LoraConfig, ModelConfig, Optimizer, Precision, TokenizerConfig
from pipeline_lib.errors import RefusedError, StageFailedError
from pipeline_lib.hardware.machine import training_memory_bytes
from pipeline_lib.planning.memory import estimate_memory
from pipeline_lib.planning.profiles import GIB, USABLE_SHARE
from pipeline_lib.tokens import load as tokens
from pipeline_lib.training import start
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.machine import usable_cores
from pipeline_lib.workspace.stage import Outcome, StageRun

MOST_STEPS = 50  # the median of more is no better than the machine's drift
CLEARLY_SLOWER = 0.85  # beyond the usual drift of 8–12 %


def calibrate(
    run: StageRun,
    *,
    calibrate: CalibrateConfig,
    model: ModelConfig,
    optimizer: Optimizer,
    precision: Literal["auto", "fp32", "bf16", "fp16"],
    lora: LoraConfig,
    sequence_length: int,
    tokenizer: TokenizerConfig,
) -> Outcome:
    """Measure every profile (micro-batch × precision) within `calibrate.seconds`; a profile that fails is a result.

    The time covers building the model, steps, one evaluation and one checkpoint a profile, not the import of torch. Small
    micro-batches go first: a process's peak memory on a CPU only grows. A precision that is clearly slower on one micro-batch is
    not tried on the others. Profiles left when the time is up are marked as not measured; the first one always is.

    Raises:
        ConfigError: model.start or tokenizer.source cannot be read.
        RefusedError: no profile can fit into this machine's memory.
        StageFailedError: every profile failed.
    """
    precisions: list[Precision] = ["bf16", "fp32"] if precision == "auto" else [precision]
    entries = tokenizer.vocabulary_size
    if tokenizer.source != "train":
        entries = tokens.read_facts(tokens.source_folder(tokenizer.source, run.workspace)).vocabulary_size
    real, rows = start.real_numbers(model, entries, run.workspace.store.artifact)
    profiles: list[dict[str, Any]] = []
    for micro, kind in product(sorted(set(calibrate.micro_batches)), precisions):
        needed = estimate_memory(
            real, vocabulary_size=rows, sequence_length=sequence_length, micro_batch=micro, precision=kind,
            optimizer=optimizer, lora=lora,
        ).total  # fmt: skip
        profiles.append({"micro_batch": micro, "precision": kind, "estimated_bytes": needed, "error": ""})
    _mark_too_large(profiles)
    from pipeline_lib.training.measure import measure

    imported = _import_everything(precisions)
    threads = usable_cores()
    begin = time.monotonic()
    for index, profile in enumerate(profiles):
        run.progress(index, len(profiles), "profiles", f"micro-batch {profile['micro_batch']}, {profile['precision']}")
        measured = [p for p in profiles if "seconds" in p]
        slowest = max((p["seconds"] - p["timed_seconds"] for p in measured), default=0.0)
        left = calibrate.seconds - (time.monotonic() - begin)
        if profile["error"]:
            continue
        if faster := _faster_precision(measured, profile["precision"]):
            profile["error"] = f"not measured: {faster} was faster with the same micro-batch"
            continue
        if measured and left < 1.2 * slowest:
            profile["error"] = "not measured: the time for calibration was over"
            continue
        coming = [p for p in profiles[index:] if not p["error"] and not _faster_precision(measured, p["precision"])]
        started = time.monotonic()
        try:
            seen = measure(
                model, vocabulary_size=entries, sequence_length=sequence_length, micro_batch=profile["micro_batch"],
                n_steps=MOST_STEPS, precision=profile["precision"], optimizer=optimizer, lora=lora,
                seconds=max(left / len(coming) - slowest, 0.2), threads=threads, store_lookup=run.workspace.store.artifact,
            )  # fmt: skip
        except (RuntimeError, ValueError, MemoryError) as error:  # torch's out-of-memory is a RuntimeError
            profile["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            run.event("profile_failed", **{name: profile[name] for name in ("micro_batch", "precision", "error")})
            continue
        profile |= {
            "tokens_per_second": round(seen.tokens_per_second, 1),
            "interval": _interval(seen.step_seconds),
            "steps": len(seen.step_seconds),
            "timed_seconds": round(math.fsum(seen.step_seconds), 3),
            "peak_memory_bytes": seen.peak_memory_bytes,
            "parameters": seen.parameters,
            "flops_per_token": seen.flops_per_token,
            "evaluate_tokens_per_second": round(seen.evaluate_tokens_per_second, 1),
            "save_seconds": round(seen.save_seconds, 4),
            "seconds": round(time.monotonic() - started, 3),
        }
    return _outcome(profiles, threads, imported, time.monotonic() - begin)


def file_digests(*, model: ModelConfig, tokenizer: TokenizerConfig, **others: object) -> dict[str, str]:
    """What calibration reads outside the workspace: the files of a start folder and of a tokenizer folder, by name."""
    entries = {f"tokenizer/{name}": digest for name, digest in tokens.file_digests(tokenizer=tokenizer).items()}
    return {**start.file_digests(model=model), **entries}


def _mark_too_large(profiles: list[dict[str, Any]]) -> None:
    """Mark the profiles that this machine cannot hold; refuse before any work when it can hold none."""
    machine = USABLE_SHARE * training_memory_bytes()
    for profile in profiles:
        if profile["estimated_bytes"] > machine:
            profile["error"] = f"needs about {profile['estimated_bytes'] / GIB:.1f} GiB"
    if all(profile["error"] for profile in profiles):
        least = min(profile["estimated_bytes"] for profile in profiles)
        raise RefusedError(
            f"training needs about {least / GIB:.1f} GiB even with the smallest profile, this machine gives {machine / GIB:.1f}",
            where="stage calibrate",
            fix="use a smaller model, a shorter pack.sequence_length or smaller calibrate.micro_batches",
        )


def _faster_precision(measured: list[dict[str, Any]], precision: str) -> str:
    """The precision that beat this one clearly on the same micro-batch, or "": it will not be beaten on a larger one."""
    rates = {(p["micro_batch"], p["precision"]): p["tokens_per_second"] for p in measured}
    for (micro, other), rate in rates.items():
        if other != precision and rates.get((micro, precision), rate) < CLEARLY_SLOWER * rate:
            return str(other)
    return ""


def _import_everything(precisions: list[Precision]) -> float:
    """Seconds that importing torch and transformers takes: a step of the smallest model loads what a training loads.

    One a precision, since each compiles its kernels when it is first used.
    """
    from pipeline_lib.training.measure import measure

    begin = time.monotonic()
    tiny = ModelConfig(width=16, depth=1, heads=1, ffn_width=16)
    for kind in precisions:
        measure(tiny, vocabulary_size=300, sequence_length=16, micro_batch=1, n_steps=1, precision=kind, seconds=0.0)
    return time.monotonic() - begin


def _outcome(profiles: list[dict[str, Any]], threads: int, imported: float, taken: float) -> Outcome:
    measured = [profile for profile in profiles if not profile["error"]]
    if not measured:
        reasons = "; ".join(f"{p['micro_batch']} × {p['precision']}: {p['error']}" for p in profiles)
        raise StageFailedError(f"no profile could be measured ({reasons})", where="stage calibrate", fix="see the reasons")
    chosen = max(measured, key=lambda profile: profile["tokens_per_second"])
    building = max(chosen["seconds"] - chosen["timed_seconds"] - chosen["save_seconds"], 0.0)
    details = {
        "profiles": [_shown(profile) for profile in profiles],
        "chosen": {name: chosen[name] for name in ("micro_batch", "precision", "tokens_per_second", "interval")},
        "interval": chosen["interval"],
        # A forward pass alone is never slower than a step: one slow moment must not look like a slow machine.
        "evaluate_tokens_per_second": max(chosen["evaluate_tokens_per_second"], chosen["tokens_per_second"]),
        "save_seconds": chosen["save_seconds"],
        "import_seconds": round(imported, 3),
        "startup_seconds": round(imported + building, 3),
        "build_seconds": round(building, 3),
        "parameters": chosen["parameters"],
        "flops_per_token": chosen["flops_per_token"],
        "peak_memory_bytes": chosen["peak_memory_bytes"],
        "threads": threads,
    }
    rows = [
        [p["micro_batch"], p["precision"], round(p["tokens_per_second"]), round(p["peak_memory_bytes"] / GIB, 2), ""]
        if not p["error"]
        else [p["micro_batch"], p["precision"], 0, round(p["estimated_bytes"] / GIB, 2), p["error"]]
        for p in profiles
    ]
    return Outcome(
        metrics={
            "tokens_per_second": chosen["tokens_per_second"],
            "micro_batch": chosen["micro_batch"],
            "precision": chosen["precision"],
            "parameters": chosen["parameters"],
            "measuring_seconds": round(taken, 2),
        },
        summary=SummaryTable(("micro-batch", "precision", "tokens/s", "peak GiB", "note"), rows, "Profiles of this machine"),
        details=details,
    )


def _interval(step_seconds: list[float]) -> list[float]:
    """90 % interval of the speed relative to the median: the 5th and 95th percentile of the steps (all of them when few)."""
    ordered = sorted(step_seconds)
    median = ordered[len(ordered) // 2]
    cut = len(ordered) // 20
    return [round(min(median / ordered[-1 - cut], 1.0), 4), round(max(median / ordered[cut], 1.0), 4)]


def _shown(profile: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in profile.items() if name not in {"timed_seconds", "parameters", "flops_per_token"}}
