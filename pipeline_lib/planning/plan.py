"""The stage `plan`: which steps, schedule, batch and cadence fit into the run's window and limits, and what to expect."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline_lib.config.model import ModelConfig, PlanConfig, TrainConfig
from pipeline_lib.config.resources import ResourcesConfig
from pipeline_lib.errors import RefusedError
from pipeline_lib.hardware.machine import training_device
from pipeline_lib.memory.keep import caught_up
from pipeline_lib.planning import laws
from pipeline_lib.planning.cures import known_cures
from pipeline_lib.planning.earlier import earlier_ends
from pipeline_lib.planning.forecast import Earlier, Promise, forecast_from, forecast_loss, widened
from pipeline_lib.planning.graded import after_factors, coverage
from pipeline_lib.planning.memory import count_parameters, estimate_memory
from pipeline_lib.planning.peak import Share
from pipeline_lib.planning.profiles import at_batch, choose_profile, profile_table
from pipeline_lib.planning.recalled import features_asked, in_words, recall
from pipeline_lib.planning.searched import at_size, with_search
from pipeline_lib.planning.window import (
    AFTER_TRAINING_SECONDS,
    SUITE_TOKENS,
    WANTED_STEPS,
    After,
    Fit,
    Load,
    Window,
    course,
    fit,
    split_batch,
    validation_seconds,
    warmup,
)
from pipeline_lib.training.checkpoints import Checkpoint
from pipeline_lib.training.forks import source_of
from pipeline_lib.training.start import real_numbers
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.machine import machine_identity
from pipeline_lib.workspace.resolve import read_champion
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.stage import Outcome, StageRun
from pipeline_lib.workspace.workspace import Workspace

MOST_BATCH = 3.0  # times the law's, from which on the plan warns


def plan(
    run: StageRun,
    *,
    plan: PlanConfig,
    model: ModelConfig,
    train: TrainConfig,
    resources: ResourcesConfig,
    language_tokens: int,
    level: Literal["smoke", "standard"],
) -> Outcome:
    """Read data, calibration and search, write the plan into the details (keys in README.md beside this file).

    Raises:
        RefusedError: window, memory or money do not allow it; the fix names the nearest plan that would.
    """
    data, calibrated, tuned = run.input("fill_gaps").details, run.input("calibrate").details, run.input("tune").details
    configured = real_numbers(model, data["vocabulary_size"], run.workspace.store.artifact)
    plan, train, model = with_search(tuned, plan=plan, train=train, model=model)
    real, rows = real_numbers(model, data["vocabulary_size"], run.workspace.store.artifact)
    profile = choose_profile(calibrated, resources, profile=plan.profile, priority=plan.priority)
    profile = at_size(profile, count_parameters(*configured), count_parameters(real, rows))
    past, memory = list(RunBook(run.workspace.runs_folder).all()), caught_up(run.workspace)
    details = compose(
        data,
        calibrated,
        tuned,
        window_of(
            run.services,
            resources,
            after=after_training(calibrated, run.workspace, past, language_tokens=language_tokens, level=level),
            start_up=calibrated["build_seconds"] + (0.0 if "transformers" in sys.modules else calibrated["import_seconds"]),
        ),
        profile=profile,
        plan=plan,
        train=train,
        resources=resources,
        model=model,
        real=real,
        rows=rows,
        source=source_of(run.workspace, train.parent),
        kept=coverage(past),
        earlier=earlier_ends(memory, model, train, data=data, digest=run.input("fill_gaps").manifest.digest),
    )
    details["chosen"] = dict(tuned["best"].get("chosen", {}))
    asked = features_asked(real, train, data, count_parameters(real, rows).total)
    details["recalled"] = recall(run, memory, asked, float(profile["tokens_per_second"]))
    details["cures"] = known_cures(memory.table(), asked, train.recovery.table())
    for words in details["gave_up"]:
        run.event("gave_up", what=words)
    for words in details["warnings"]:
        run.event("plan_warning", what=words)
    metrics = {name: details[name] for name in ("steps", "tokens", "epochs", "learning_rate", "limit")}
    return Outcome(metrics=metrics, summary=_summary(details), details=details)


def after_training(
    calibrated: Mapping[str, Any], workspace: Workspace, past: Iterable[RunRecord], *, language_tokens: int, level: str
) -> After:
    """Validation, gate and report, as past runs on this machine correct the estimate of them.

    A champion is scored beside the new model.
    """
    seconds = AFTER_TRAINING_SECONDS + validation_seconds(
        language_tokens + SUITE_TOKENS[level],
        calibrated["evaluate_tokens_per_second"],
        models=2 if read_champion(workspace).get("champion") else 1,
    )
    reserved, expected = after_factors(past, machine_identity()["cpu"])
    return After(seconds * reserved, seconds * expected, seconds)


def compose(
    data: Mapping[str, Any],
    calibrated: Mapping[str, Any],
    tuned: Mapping[str, Any],
    window: Window | None,
    *,
    profile: Mapping[str, Any],
    plan: PlanConfig,
    train: TrainConfig,
    resources: ResourcesConfig,
    model: ModelConfig,
    real: ModelConfig,
    rows: int,
    source: Checkpoint | None = None,
    kept: Mapping[str, Mapping[str, float]] | None = None,
    earlier: Earlier | None = None,
) -> dict[str, Any]:
    """The whole plan as the details of the stage (README.md beside this file); asks nothing of a workspace.

    Args:
        data: details of `fill_gaps`, or an estimate of them.
        calibrated: details of `calibrate`.
        tuned: details of `tune`.
        window: None without a deadline.
        profile: the chosen one of the calibrated profiles.
        plan, train, resources, model: configured.
        real: the numbers of the model that is really trained.
        rows: of its embedding.
        source: the checkpoint that a fork goes on from.
        kept: how past promises were kept, see `graded.coverage`.
        earlier: how trainings of this model ended, see `earlier.earlier_ends`.

    Raises:
        RefusedError: window or money do not allow it; the fix names the nearest plan that would.
    """
    draft = draft_plan(data, calibrated, profile, window, plan=plan, train=train, source=source)
    profile = draft.profile
    parameters = count_parameters(real, rows)
    tokens = draft.fit.steps * draft.batch_sequences * data["sequence_length"]
    rate = _learning_rate(parameters.without_embeddings, tokens, tuned, model, train, batch_share=draft.batch_share)
    warm, short = warmup(draft.fit.steps, draft.most_steps, plan.warmup_share)
    large = "" if source or model.start != "scratch" else _large_batch(tokens, draft.batch_sequences, data["sequence_length"])
    shape = course(draft.fit.steps, schedule=train.schedule, warmup_steps=warm, decay_share=plan.decay_share)
    promises = _promises(
        draft, window, calibrated=calibrated, profile=profile, tuned=tuned, resources=resources, tokens=tokens, earlier=earlier
    )
    _refuse_above_limits(promises, resources, window)
    twice = bool(train.activation_checkpointing or profile.get("activation_checkpointing", False))
    estimate = estimate_memory(
        real,
        vocabulary_size=rows,
        sequence_length=data["sequence_length"],
        micro_batch=draft.micro_batch,
        precision=profile["precision"],
        optimizer=train.optimizer,
        lora=train.lora,
        accumulation=draft.batch_sequences // draft.micro_batch,
        checkpointing=twice,
        device="cuda" if training_device().type == "cuda" else "cpu",
    )
    fastest = float(profile.get("wanted_tokens_per_second") or profile["tokens_per_second"])
    gave_up = list(draft.gave_up)
    if fastest > profile["tokens_per_second"]:
        limit = f"{resources.memory_gib:g} GiB" if resources.memory_gib else "this machine's memory"
        gave_up.insert(0, f"profile: {profile['tokens_per_second']:,.0f} of {fastest:,.0f} tokens/s, so that it fits {limit}")
    details: dict[str, Any] = {
        "steps": draft.fit.steps,
        "warmup_steps": shape.warmup_steps,
        "decay_steps": shape.decay_steps,
        "schedule": train.schedule,
        "learning_rate": float(f"{rate.value:.4g}"),
        "weight_decay": float(tuned["best"].get("weight_decay", train.weight_decay)),
        "batch_sequences": draft.batch_sequences,
        "micro_batch": draft.micro_batch,
        "precision": profile["precision"],
        "activation_checkpointing": twice,
        "attention": calibrated.get("attention", "") if train.attention == "auto" else train.attention,
        "profile": profile.get("profile", ""),
        "profiles": profile_table(calibrated, resources, batch_tokens=train.batch_tokens, optimizer=train.optimizer),
        "evaluate_every": draft.fit.evaluate_every,
        "save_every": draft.fit.save_every,
        "epochs": round(draft.fit.steps * draft.batch_sequences / data["sequences"]["train"], 4),
        "seconds_per_step": draft.load.step,
        "tokens_per_second": profile["tokens_per_second"],
        "threads": int(calibrated["threads"]),
        "overhead_per_step": draft.fit.overhead_per_step(draft.load),
        "max_steps": draft.most_steps,
        "replan": plan.replan,
        "reserve": {
            "margin": window.margin if window else 0.0,
            "after_training": window.after.reserved if window else 0.0,
            "after_expected": window.after.expected if window else 0.0,
            "after_estimated": window.after.estimated if window else 0.0,
            "closing": draft.load.closing,
            "evaluate": draft.load.evaluate,
        },
        "tokens": tokens,
        "limit": draft.fit.limit,
        "warmup_why": short or f"{plan.warmup_share:.2%} of the {draft.most_steps:,} steps that the full data makes",
        "interval": calibrated["interval"],
        "learning_rate_why": rate.why,
        "batch_tokens_of_the_law": round(laws.step_law_batch_tokens(tokens)),
        "flops": laws.training_flops(parameters.total, tokens),
        "advice": laws.advice(parameters.without_embeddings, tokens),
        "size_advice": laws.size_advice(parameters.without_embeddings, tokens),
        "gave_up": gave_up,
        "warnings": [words for words in (short, large) if words],
        "window": [[part, round(seconds, 3)] for part, seconds in window_parts(window, draft).items()],
        "memory_terms": estimate.terms,
        "memory": _memory(estimate.total, profile, calibrated),
        "promises": {name: promise.to_json() | {"kept": (kept or {}).get(name, {})} for name, promise in promises.items()},
    }
    return details | _counted_on(source.step, details) if source else details


@dataclass(frozen=True)
class Draft:
    """Batch, steps and cadence, before the learning rate."""

    batch_sequences: int
    micro_batch: int
    load: Load
    fit: Fit
    most_steps: int  # the data and the configuration allow no more
    gave_up: list[str]
    batch_share: float  # of the batch that was asked for
    profile: Mapping[str, Any]  # the chosen one, as fast and as large as with passes of this size


def window_of(services: Services, resources: ResourcesConfig, *, after: After, start_up: float) -> Window | None:
    """The run's window as it stands now, or None when the run has no deadline; `after`: see `after_training`."""
    if services.deadline is None:
        return None
    now = services.clock()
    started = services.started or now
    return Window(
        total=(services.deadline - started).total_seconds(),
        spent=(now - started).total_seconds(),
        margin=resources.margin_minutes * 60,
        after=after,
        start_up=start_up,
    )


def draft_plan(
    data: Mapping[str, Any],
    calibrated: Mapping[str, Any],
    profile: Mapping[str, Any],
    window: Window | None,
    *,
    plan: PlanConfig,
    train: TrainConfig,
    source: Checkpoint | None = None,
) -> Draft:
    """Fit batch and steps into the window; the batch shrinks when fewer than `WANTED_STEPS` would fit and quality matters.

    Args:
        data: details of `fill_gaps`.
        calibrated: details of `calibrate`.
        profile: the chosen one of its profiles.
        window: None without a deadline.
        plan: priorities.
        train: limits and batch.
        source: the checkpoint that a fork goes on from: its batch stays, so that its place in the data does, and the passes over
            the data that it made count.

    Raises:
        RefusedError: not even one step fits.
    """
    from pipeline_lib.training.evaluate import DEV_SEQUENCES  # imports torch

    length, train_sequences = int(data["sequence_length"]), int(data["sequences"]["train"])
    if train_sequences < 1:
        raise RefusedError(
            "there is no training data: 0 sequences on the train side", where="stage plan", fix="select more documents"
        )
    evaluate = min(data["sequences"]["dev"], DEV_SEQUENCES) * length / calibrated["evaluate_tokens_per_second"]
    wanted, micro = split_batch(
        train.batch_tokens,
        sequence_length=length,
        micro_batch=int(profile["micro_batch"]),
        most=train.max_epochs * train_sequences,
    )
    if source:
        wanted, micro = int(source.record["plan"]["batch_sequences"]), int(source.record["plan"]["micro_batch"])
    profile = at_batch(profile, calibrated, micro)
    rate = float(profile["tokens_per_second"])
    if window and not plan.replan:
        rate *= calibrated["interval"][0]  # nobody adapts the end: plan for the slow edge of what was measured
    done = source.step if source else 0
    batch = wanted
    gave_up: list[str] = []
    while True:
        load = Load(step=batch * length / rate, evaluate=evaluate, save=float(calibrated["save_seconds"]))
        epoch_steps = max(math.floor(train.max_epochs * train_sequences / batch) - done, 0 if source else 1)
        if not epoch_steps:
            _refuse_more_epochs(done * batch / train_sequences, train.max_epochs)
        found = fit(
            load,
            seconds=window.training if window else None,
            max_steps=train.max_steps,
            epoch_steps=epoch_steps,
            priority=plan.priority,
            evaluate_every=train.evaluate_every,
            save_every=train.save_every,
        )
        few = found.steps < WANTED_STEPS and found.limit != "max_steps" and plan.priority != "speed"
        if not few or batch <= micro or source:
            break
        batch = max(batch // 2 // micro, 1) * micro
    if found.steps < 1 and window:
        _refuse_short_window(window, load)
    if batch < wanted:
        gave_up.append(
            f"batch: {batch * length:,} of {wanted * length:,} tokens, so that {found.steps} steps fit; the learning rate goes "
            "with the square root"
        )
    if found.limit == "window":
        passes = found.steps * batch / train_sequences
        gave_up.append(f"data: {passes:.2f} of {train.max_epochs:g} passes, the window ends before")
        if train.max_steps:
            gave_up.append(f"steps: {found.steps} of {train.max_steps}, the window ends before")
    most = min(epoch_steps, train.max_steps) if train.max_steps else epoch_steps
    return Draft(batch, micro, load, found, most, gave_up, batch / wanted, profile)


def _refuse_more_epochs(passes: float, most: float) -> None:
    raise RefusedError(
        f"the checkpoint has seen the data {passes:.2f} times, train.max_epochs is {most:g}: nothing is left to go on with",
        where="train.max_epochs",
        fix=f"set train.max_epochs to {math.ceil(passes) + 1}, or train a new run on more data",
    )


def _counted_on(done: int, details: Mapping[str, Any]) -> dict[str, Any]:
    """A fork counts its steps on from its source's; those before it are the warm-up of its schedule, which it never sees."""
    ahead = int(details["steps"])
    return {
        "steps": done + ahead,
        "warmup_steps": done,
        "max_steps": done + int(details["max_steps"]),
        "epochs": round(float(details["epochs"]) * (done + ahead) / ahead, 4),
        "gone_on_from": done,
    }


def _refuse_short_window(window: Window, load: Load) -> None:
    missing = load.least - window.training
    hours = (window.total + missing) * 1.05 / 3600
    raise RefusedError(
        f"no training step fits: of {window.total:.0f} s, {window.spent:.0f} s are spent, {window.margin:.0f} s are margin, "
        f"{window.after.reserved:.0f} s are for validation and report, {window.start_up:.0f} s for start-up; one step with "
        f"evaluations and a checkpoint takes {load.least:.1f} s",
        where="resources.max_hours",
        fix=f"set resources.max_hours to {math.ceil(hours * 100) / 100:g} or more, or take {max(missing, 1) / 60:.1f} minutes "
        "off resources.margin_minutes",
    )


def _learning_rate(
    parameters: int, tokens: int, tuned: Mapping[str, Any], model: ModelConfig, train: TrainConfig, *, batch_share: float
) -> laws.Chosen:
    """The configured rate; else the law's for this much data times the factor that the search found best.

    All are meant for the batch that was asked for: a smaller one takes the rate times the square root of its share (Adam's noise
    scale, Malladi et al. 2022, "On the SDEs and scaling rules for adaptive gradient algorithms").
    """
    if train.learning_rate:
        found = laws.Chosen(train.learning_rate, "configured")
    else:
        found = laws.learning_rate(parameters, tokens, start=model.start, lora=train.lora.rank > 0)
        if (factor := float(tuned["best"].get("learning_rate_factor", 1.0))) != 1.0:
            found = replace(found, value=found.value * factor, why=f"{found.why}; × {factor:.3g} from the search")
    if batch_share == 1.0:
        return found
    share = math.sqrt(batch_share)
    return replace(found, value=found.value * share, why=f"{found.why}; × {share:.3g}, the root of the batch's share")


def _large_batch(tokens: int, batch_sequences: int, sequence_length: int) -> str:
    """A warning, or "": fewer and larger steps than the law's learn less from the same tokens."""
    batch, law = batch_sequences * sequence_length, laws.step_law_batch_tokens(tokens)
    better = max(2 ** round(math.log2(law)), sequence_length)
    if batch <= MOST_BATCH * law or better >= batch:
        return ""
    return (
        f"a step has {batch:,} tokens, {batch / law:.1f} times what the Step Law says for the {tokens:,} that fit: "
        f"train.batch_tokens={better} makes more of them"
    )


def _promises(
    draft: Draft,
    window: Window | None,
    *,
    calibrated: Mapping[str, Any],
    profile: Mapping[str, Any],
    tuned: Mapping[str, Any],
    resources: ResourcesConfig,
    tokens: int,
    earlier: Earlier | None,
) -> dict[str, Promise]:
    """What a person may expect, each with a 90 % interval. Times count from the run's start, without a window from now."""
    training = sum(draft.fit.seconds(draft.load).values())
    before = window.spent + window.start_up if window else float(calibrated["build_seconds"])
    after = window.after if window else After(0.0, 0.0, 0.0)
    expected = before + training + after.expected
    slow, fast = calibrated["interval"][0], calibrated["interval"][1]
    low, high = widened(training, 1 / fast, 1 / slow)
    end_low, end_high = before + low + after.expected / 2, before + high + max(after.reserved, after.expected)
    basis = "calibrated speed"
    if window:
        end_high = min(end_high, window.total)
        basis += ", the controller keeps the window"
    expected = min(expected, end_high)
    promises = {
        "expected_end_seconds": Promise(expected, end_low, end_high, "s", basis),
        "peak_memory_bytes": _peak(profile, calibrated),
    }
    from_earlier = forecast_from(earlier, tokens) if earlier and (earlier.same_data or not tuned.get("curve")) else None
    if promised := from_earlier or forecast_loss(tuned.get("curve", []), tokens):
        promises["final_dev_loss"] = promised
    hours = [seconds / 3600 for seconds in (expected, end_low, end_high)]
    if resources.watts:
        energy = [resources.watts * h / 1000 for h in hours]
        promises["energy_kwh"] = _promise(energy, "kWh", f"{resources.watts:g} W over the whole run")
    if resources.price_per_hour or (resources.watts and resources.price_per_kwh):
        an_hour = cost_per_hour(resources)
        price = [an_hour * h for h in hours]
        promises["price"] = _promise(price, resources.currency, f"{an_hour:.4g} {resources.currency}/h")
    return promises


def _peak(profile: Mapping[str, Any], calibrated: Mapping[str, Any]) -> Promise:
    """Peak memory: what calibration measured; where it had no time for this profile, its estimate as past runs correct it."""
    peak = float(profile["peak_memory_bytes"])
    if profile.get("measured", True):
        return Promise(peak, 0.9 * peak, 1.25 * peak, "bytes", "measured in calibration")
    share = Share.from_json(calibrated.get("guessed_memory_share", {}))
    return Promise(peak, peak * share.low / share.value, peak * share.high / share.value, "bytes", share.words())


def _memory(estimated: int, profile: Mapping[str, Any], calibrated: Mapping[str, Any]) -> dict[str, Any]:
    """How the plan's peak memory came about: the formula's, what past runs make of it, and what was measured here."""
    share = Share.from_json(calibrated.get("guessed_memory_share", {}))
    foreseen = {name: round(estimated * getattr(share, name)) for name in ("value", "low", "high")}
    measured = int(profile["peak_memory_bytes"]) if profile.get("measured", True) else None
    return {
        "estimated_bytes": estimated, "share": share.to_json(), "foreseen_bytes": foreseen, "measured_bytes": measured,
        "words": share.words() + ("; the measurement of the calibration counts" if measured else ""),
    }  # fmt: skip


def _promise(numbers: list[float], unit: str, basis: str) -> Promise:
    value, low, high = numbers
    return Promise(value, low, high, unit, basis)


def cost_per_hour(resources: ResourcesConfig) -> float:
    """Machine and energy, in `resources.currency` an hour."""
    return resources.price_per_hour + resources.watts / 1000 * resources.price_per_kwh


def _refuse_above_limits(promises: Mapping[str, Promise], resources: ResourcesConfig, window: Window | None) -> None:
    price = promises.get("price")
    if not resources.money or price is None or price.value <= resources.money:
        return
    hours = resources.money / cost_per_hour(resources)
    spent = window.spent / 3600 if window else 0.0
    fix = f"set resources.max_hours to {hours:.2f}" if hours > spent else "nothing is left for training"
    raise RefusedError(
        f"the run would cost {price.value:.2f} {resources.currency}, {resources.money:.2f} are allowed",
        where="resources.money",
        fix=f"{fix}, or raise resources.money to {price.high:.2f}",
    )


def window_parts(window: Window | None, draft: Draft) -> dict[str, float]:
    """Every second of the window by part; the parts add up to the window."""
    training = draft.fit.seconds(draft.load)
    if window is None:
        return training
    parts = {"spent before the plan": window.spent, "start-up": window.start_up, **training}
    parts |= {"validation and report": window.after.reserved, "margin": window.margin}
    parts["unused"] = window.total - sum(parts.values())
    return parts


def _summary(details: Mapping[str, Any]) -> SummaryTable:
    rows: list[list[str | float | int]] = [[part, round(seconds, 1)] for part, seconds in details["window"]]
    title = (
        f"{details['steps']} steps of {details['batch_sequences']} sequences, {details['epochs']:.2f} epochs, "
        f"learning rate {details['learning_rate']:.2e}; limit: {details['limit']}"
    )
    if words := in_words(details["recalled"], details["memory"]):
        title += f"; {words}"
    return SummaryTable(("part", "seconds"), rows, title)
