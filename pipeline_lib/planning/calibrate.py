"""The stage `calibrate`: what this machine does with this model, measured in a few seconds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from pipeline_lib.config.model import (
    CalibrateConfig,
    Isolation,
    LoraConfig,
    ModelConfig,
    Optimizer,
    Precision,
    TokenizerConfig,
    TrainConfig,
)
from pipeline_lib.errors import ConfigError, RefusedError, StageFailedError
from pipeline_lib.hardware.machine import resident_bytes, training_device, training_memory_bytes
from pipeline_lib.memory.keep import caught_up
from pipeline_lib.planning.memory import Device, count_parameters, estimate_memory, nearest_that_fits
from pipeline_lib.planning.peak import Share, remembered_share
from pipeline_lib.planning.profiles import GIB, USABLE_SHARE, Point
from pipeline_lib.planning.recalled import features_asked, first_guess
from pipeline_lib.tokens import load as tokens
from pipeline_lib.training import start
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.machine import usable_cores
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.stage import Outcome, StageRun

MOST_STEPS = 50  # the median of more is no better than the machine's drift
CLEARLY_SLOWER = 0.85  # beyond the usual drift of 8–12 %
FEW_STEPS_SPREAD = 0.3  # of the speed that one step shows; that of n goes with 1/√n. Judged
# Beside SDPA with a mask. Passed over: flash_attention_2 to 4 (kernels of a hub, for GPUs); paged ones (for generation);
# flex_attention (no backward pass on processors). On GPUs varlen and flex_attention are there to be set.
ATTENTIONS: dict[Device, tuple[str, ...]] = {"cpu": ("varlen", "eager"), "cuda": ()}
VARIANTS = 2  # as many shares of the time are left for them
WINDOW_SHARE, LONG_WINDOW, SHORT_WINDOW_SECONDS = 0.03, 1800.0, 10.0  # what calibration may cost of a window


def calibrate(
    run: StageRun,
    *,
    calibrate: CalibrateConfig,
    model: ModelConfig,
    optimizer: Optimizer,
    precision: Literal["auto", "fp32", "bf16", "fp16"],
    attention: str,
    isolation: Isolation,
    compile: bool,
    activation_checkpointing: bool,
    lora: LoraConfig,
    sequence_length: int,
    tokenizer: TokenizerConfig,
) -> Outcome:
    """Measure points (micro-batch × precision) in the time allowed, then variants of the fastest; a point that fails is a result.

    The time covers building the model, steps, one evaluation and one checkpoint a point, not the import of torch. A precision
    that is clearly slower on one micro-batch is not tried on the others. Points left when the time is up are marked as not
    measured; the first one always is. Variants: activations computed twice, on the smallest micro-batch; half of the threads;
    another attention that keeps documents apart. What profiles (`profiles.py`) make of all that, `plan` decides within the run's
    memory.

    Raises:
        ConfigError: model.start or tokenizer.source cannot be read.
        RefusedError: no profile can fit into this machine's memory.
        StageFailedError: every point failed.
    """
    precisions: list[Precision] = ["bf16", "fp32"] if precision == "auto" else [precision]
    entries = tokenizer.vocabulary_size
    if tokenizer.source != "train":
        entries = tokens.read_facts(tokens.source_folder(tokenizer.source, run.workspace)).vocabulary_size
    real, rows = start.real_numbers(model, entries, run.workspace.store.artifact)
    device: Device = "cuda" if training_device().type == "cuda" else "cpu"
    asked = features_asked(
        real, TrainConfig(optimizer=optimizer), {"vocabulary_size": rows, "sequence_length": sequence_length},
        count_parameters(real, rows).total,
    )  # fmt: skip
    memory = caught_up(run.workspace)
    guess, share = first_guess(memory, asked), remembered_share(memory, asked)
    bench = Bench(
        run, calibrate, model, real, entries, rows, sequence_length, optimizer, lora, usable_cores(),
        "" if attention == "auto" else attention, isolation, compile, device, share,
    )  # fmt: skip
    points = [
        bench.point(micro, kind, again=activation_checkpointing)
        for micro, kind in product(sorted(set(calibrate.micro_batches)), precisions)
    ]
    leanest = bench.point(points[0]["micro_batch"], points[0]["precision"], again=True)
    _refuse_too_large([*points, leanest], bench)
    imported = _import_everything(precisions)
    bench.program_bytes = resident_bytes() if device == "cpu" else 0
    bench.begin()
    for index, point in enumerate(points):
        run.progress(index, len(points), "points", f"micro-batch {point['micro_batch']}, {point['precision']}")
        coming = [p for p in points[index:] if not p["error"] and not _faster_precision(points, p["precision"])]
        if not point["error"] and (faster := _faster_precision(points, point["precision"])):
            point["error"] = f"not measured: {faster} was faster with the same micro-batch"
        bench.measure(point, share=1 / max(len(coming) + VARIANTS, 1), must=not _measured(points))
    if not _measured(points):
        reasons = "; ".join(f"{p['micro_batch']} × {p['precision']}: {p['error']}" for p in points)
        raise StageFailedError(f"no profile could be measured ({reasons})", where="stage calibrate", fix="see the reasons")
    fastest = max(_measured(points), key=lambda point: point["tokens_per_second"])
    variants = _variants(bench, leanest, fastest, auto_attention=attention == "auto", again=activation_checkpointing)
    return _outcome(bench, points, variants, fastest, imported=imported, guess=guess)


@dataclass
class Bench:
    """Measures points, all of one model, within the time allowed."""

    run: StageRun
    config: CalibrateConfig
    model: ModelConfig
    real: ModelConfig  # the numbers of a start
    entries: int  # of the tokenizer
    rows: int  # of the embedding
    sequence_length: int
    optimizer: Optimizer
    lora: LoraConfig
    threads: int
    attention: str
    isolation: Isolation
    compile: bool
    device: Device
    share: Share  # of its estimate that such a training was measured at before
    program_bytes: int = 0
    slowest: float = 0.0  # seconds around the steps of a point
    started: float = 0.0
    allowed: float = 0.0

    def begin(self) -> None:
        """Start the clock."""
        self.started, self.allowed = time.monotonic(), seconds_allowed(self.run.services, self.config.seconds)

    @property
    def taken(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.started

    def point(self, micro_batch: int, precision: str, *, again: bool) -> Point:
        """A point with its estimate, as past runs correct it; marked when this machine cannot hold it."""
        estimate = estimate_memory(
            self.real, vocabulary_size=self.rows, sequence_length=self.sequence_length, micro_batch=micro_batch,
            precision=precision, optimizer=self.optimizer, lora=self.lora, checkpointing=again, device=self.device,
        )  # fmt: skip
        usable, foreseen = USABLE_SHARE * training_memory_bytes(), round(self.share.value * estimate.total)
        error = f"needs about {foreseen / GIB:.1f} GiB" if foreseen > usable else ""
        return {
            "micro_batch": micro_batch, "precision": precision, "activation_checkpointing": again, "error": error,
            "estimated_bytes": foreseen, "formula_bytes": estimate.total, "memory_terms": estimate.terms,
        }  # fmt: skip

    def measure(self, point: Point, *, share: float, must: bool = False, threads: int = 0, attention: str | None = None) -> None:
        """Measure a point with this share of the time that is left, and write what was seen into it; nothing without time.

        Args:
            point: see `point`; one with an error is left alone.
            share: of the time left.
            must: also when there is no time.
            threads: in place of all.
            attention: in place of the configured one.
        """
        left = self.allowed - self.taken
        if point["error"]:
            return
        if not must and left < 1.2 * self.slowest:
            point["error"] = "not measured: the time for calibration was over"
            return
        from pipeline_lib.training.measure import measure

        begin = time.monotonic()
        try:
            seen = measure(
                self.model, vocabulary_size=self.entries, sequence_length=self.sequence_length,
                micro_batch=point["micro_batch"], n_steps=MOST_STEPS, precision=point["precision"], optimizer=self.optimizer,
                lora=self.lora, seconds=max(left * share - self.slowest, 0.2), threads=threads or self.threads,
                store_lookup=self.run.workspace.store.artifact, compile=self.compile, isolation=self.isolation,
                attention=self.attention if attention is None else attention,
                activation_checkpointing=point["activation_checkpointing"],
            )  # fmt: skip
        except (RuntimeError, ValueError, MemoryError, ConfigError) as error:  # torch's out-of-memory is a RuntimeError
            point["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            self.run.event("profile_failed", **{name: point[name] for name in ("micro_batch", "precision", "error")})
            return
        seconds, steps = time.monotonic() - begin, math.fsum(seen.step_seconds)
        self.slowest = max(self.slowest, seconds - steps)
        terms = point["memory_terms"] | ({"program": self.program_bytes} if self.program_bytes else {})
        point |= {
            "tokens_per_second": round(seen.tokens_per_second, 1),
            "interval": _interval(seen.step_seconds),
            "steps": len(seen.step_seconds),
            "timed_seconds": round(steps, 3),
            "peak_memory_bytes": seen.peak_memory_bytes,
            "estimated_bytes": sum(terms.values()),
            "memory_terms": terms,
            "memory_error": round(sum(terms.values()) / seen.peak_memory_bytes - 1, 4),
            "memory_share": round(seen.peak_memory_bytes / point["formula_bytes"], 4),
            "parameters": seen.parameters,
            "flops_per_token": seen.flops_per_token,
            "evaluate_tokens_per_second": round(seen.evaluate_tokens_per_second, 1),
            "save_seconds": round(seen.save_seconds, 4),
            "fetch_seconds": round(seen.fetch_seconds, 6),
            "first_step_seconds": round(seen.first_step_seconds, 4),
            "seconds": round(seconds, 3),
        }


def seconds_allowed(services: Services, configured: float) -> float:
    """Time for measuring: as configured, at most 3 % of a window of half an hour or more, 10 s of a shorter one."""
    if services.deadline is None:
        return configured
    window = (services.deadline - (services.started or services.clock())).total_seconds()
    return min(configured, WINDOW_SHARE * window if window >= LONG_WINDOW else SHORT_WINDOW_SECONDS)


def file_digests(*, model: ModelConfig, tokenizer: TokenizerConfig, **others: object) -> dict[str, str]:
    """What calibration reads outside the workspace: the files of a start folder and of a tokenizer folder, by name."""
    entries = {f"tokenizer/{name}": digest for name, digest in tokens.file_digests(tokenizer=tokenizer).items()}
    return {**start.file_digests(model=model), **entries}


def _refuse_too_large(points: list[Point], bench: Bench) -> None:
    """Refuse before any work when this machine can hold no point."""
    if all(point["error"] for point in points):
        least, machine = min(point["estimated_bytes"] for point in points), USABLE_SHARE * training_memory_bytes()
        nearest = nearest_that_fits(
            bench.real, machine / bench.share.value, vocabulary_size=bench.rows, sequence_length=bench.sequence_length,
            precision=points[0]["precision"], lora=bench.lora, device=bench.device,
        )  # fmt: skip
        raise RefusedError(
            f"training needs about {least / GIB:.1f} GiB even with the smallest profile ({bench.share.words()}), "
            f"this machine gives {machine / GIB:.1f}",
            where="stage calibrate",
            fix=f"the nearest that would fit: {nearest}"
            if nearest
            else "not even one layer fits: a smaller tokenizer.vocabulary_size",
        )


def _measured(points: list[Point]) -> list[Point]:
    return [point for point in points if "tokens_per_second" in point]


def _faster_precision(points: list[Point], precision: str) -> str:
    """The precision that beat this one clearly on the same micro-batch, or "": it will not be beaten on a larger one."""
    rates = {(p["micro_batch"], p["precision"]): p["tokens_per_second"] for p in _measured(points)}
    for (micro, other), rate in rates.items():
        if other != precision and rates.get((micro, precision), rate) < CLEARLY_SLOWER * rate:
            return str(other)
    return ""


def _variants(bench: Bench, leanest: Point, fastest: Point, *, auto_attention: bool, again: bool) -> list[Point]:
    """The leanest point; and the fastest one with half of the threads, and with other attentions, while there is time.

    What is clearly faster stays: `bench.threads` and `bench.attention` are then those.
    """
    variants = []
    if not again:
        lean = bench.point(leanest["micro_batch"], fastest["precision"], again=True)
        bench.measure(lean, share=1 / VARIANTS)
        if lean["error"].startswith("not measured"):  # a third pass through the layers: 4/3 of the time (Chen et al. 2016)
            lean |= {"error": "", "tokens_per_second": round(0.75 * fastest["tokens_per_second"], 1), "note": "estimated"}
        variants.append(lean)
    trials: list[tuple[str, dict[str, Any]]] = []
    if bench.device == "cpu" and bench.threads > 1:
        trials.append((f"{bench.threads // 2} threads", {"threads": bench.threads // 2}))
    if auto_attention:
        trials += [(f"{name} attention", {"attention": name}) for name in ATTENTIONS[bench.device]]
    for left, (what, changes) in zip(range(len(trials), 0, -1), trials, strict=True):
        trial = {
            **bench.point(fastest["micro_batch"], fastest["precision"], again=fastest["activation_checkpointing"]), "trial": what,
        }  # fmt: skip
        bench.measure(trial, share=1 / left, **changes)
        if trial.get("tokens_per_second", 0.0) * CLEARLY_SLOWER > fastest["tokens_per_second"]:
            bench.threads, bench.attention = changes.get("threads", bench.threads), changes.get("attention", bench.attention)
            seen = ("tokens_per_second", "interval", "peak_memory_bytes", "estimated_bytes", "memory_error", "memory_share")
            fastest |= {name: trial[name] for name in seen}
        bench.run.event("variant", what=what, **{k: trial[k] for k in ("tokens_per_second", "error") if k in trial})
    return variants


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


def _outcome(
    bench: Bench, points: list[Point], variants: list[Point], chosen: Point, *, imported: float, guess: dict[str, Any]
) -> Outcome:
    building = max(chosen["seconds"] - chosen["timed_seconds"] - chosen["save_seconds"], 0.0)
    usual = chosen["micro_batch"] * bench.sequence_length / chosen["tokens_per_second"]  # seconds of a step
    details = {
        "profiles": [_shown(point) for point in points],
        "variants": [_shown(point) for point in variants],
        "policies": {name: policy.model_dump(mode="json") for name, policy in bench.config.profiles.items()},
        "chosen": {name: chosen[name] for name in ("micro_batch", "precision", "tokens_per_second", "interval")},
        "interval": chosen["interval"],
        # A forward pass alone is never slower than a step: one slow moment must not look like a slow machine.
        "evaluate_tokens_per_second": max(chosen["evaluate_tokens_per_second"], chosen["tokens_per_second"]),
        "save_seconds": chosen["save_seconds"],
        "import_seconds": round(imported, 3),
        "startup_seconds": round(imported + building, 3),
        "build_seconds": round(building, 3),
        "compile_seconds": round(max(chosen["first_step_seconds"] - usual, 0.0), 3) if bench.compile else 0.0,
        "parameters": chosen["parameters"],
        "flops_per_token": chosen["flops_per_token"],
        "peak_memory_bytes": chosen["peak_memory_bytes"],
        "memory": {name: chosen[name] for name in ("memory_terms", "estimated_bytes", "peak_memory_bytes", "memory_error")},
        "data_wait_share": round(chosen["fetch_seconds"] / usual, 4),
        "threads": bench.threads,
        "attention": bench.attention,
        "sequence_length": bench.sequence_length,
        "guess": guess,
        "guessed_memory_share": bench.share.to_json(),
        "seconds": round(bench.taken, 3),
        "seconds_allowed": round(bench.allowed, 3),
    }
    rows: list[list[str | float | int]] = []
    for p in [*points, *variants]:
        peak = p.get("peak_memory_bytes", 0)
        found = (round(peak / GIB, 2), f"{p['memory_error']:+.0%}") if peak else ("", "")
        twice, rate = "yes" if p["activation_checkpointing"] else "", round(p.get("tokens_per_second", 0))
        estimated, note = round(p["estimated_bytes"] / GIB, 2), p["error"] or p.get("note", "")
        rows.append([p["micro_batch"], p["precision"], twice, rate, estimated, *found, note])
    columns = ("micro-batch", "precision", "activations twice", "tokens/s", "estimated GiB", "measured GiB", "error", "note")
    return Outcome(
        metrics={
            "tokens_per_second": chosen["tokens_per_second"],
            "micro_batch": chosen["micro_batch"],
            "precision": chosen["precision"],
            "parameters": chosen["parameters"],
            "memory_error": chosen["memory_error"],
            "memory_share": chosen["memory_share"],
            "measuring_seconds": round(bench.taken, 2),
        },
        summary=SummaryTable(columns, rows, "What this machine does with this model"),
        details=details,
    )


def _interval(step_seconds: list[float]) -> list[float]:
    """90 % interval of the speed relative to the median: the 5th and 95th percentile of the steps (all of them when few), and
    never narrower than what so few steps can know."""
    ordered = sorted(step_seconds)
    median, unknown = ordered[len(ordered) // 2], 1 + FEW_STEPS_SPREAD / math.sqrt(len(ordered))
    cut = len(ordered) // 20
    return [round(min(median / ordered[-1 - cut], 1 / unknown), 4), round(max(median / ordered[cut], unknown), 4)]


def _shown(profile: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in profile.items() if name not in {"timed_seconds", "parameters", "flops_per_token"}}
