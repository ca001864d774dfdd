"""The stage `tune`: a search over factors around the scaling law's values, within its share of the window."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa

from pipeline_lib.config.model import ModelConfig, TrainConfig, TuneConfig
from pipeline_lib.config.resources import ResourcesConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.planning.memory import count_parameters
from pipeline_lib.planning.plan import cost_per_hour
from pipeline_lib.planning.profiles import choose_profile, memory_limit_bytes
from pipeline_lib.planning.recalled import features_asked
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import TRIALS
from pipeline_lib.training.start import real_numbers
from pipeline_lib.tuning.budget import TrialPlan, plan_trials
from pipeline_lib.tuning.feasible import Setting, Trial, trial_of
from pipeline_lib.tuning.importance import importance, slices
from pipeline_lib.tuning.pruning import Rule
from pipeline_lib.tuning.rungs import rungs_of
from pipeline_lib.tuning.search import Search
from pipeline_lib.tuning.space import Space, checked_space
from pipeline_lib.tuning.study import Entry, Study
from pipeline_lib.tuning.trial import Reading
from pipeline_lib.tuning.verdict import baseline_of, best_of, compare, finished, front, worth_of_warm_start
from pipeline_lib.tuning.warm import past_points
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.stage import Outcome, StageRun

GIB = 1 << 30
TOP = 3  # best points that are kept for later searches


def tune(run: StageRun, *, tune: TuneConfig, model: ModelConfig, train: TrainConfig, resources: ResourcesConfig) -> Outcome:
    """Try points, the first with all factors 1 (the default); the best one wins if it beats that by more than luck.

    A trial that fails is a result. When all fail, or no time is left for two, the law's values stay and the details say so.
    A killed search continues: what was read stays, what was at work goes on from its checkpoint.

    Raises:
        ConfigError: the space names nothing or something unknown, or excludes the starting point; an objective needs a price.
        RefusedError: no calibrated profile fits into the memory limit; a study of this name searches another space.
        StoppedError: a clean stop was asked for.
    """
    if not tune.trials:
        return _unsearched(run, "no search is configured")
    space = checked_space(tune.space, train, choices=tune.choices, model=model)
    if "cost" in tune.objectives and not cost_per_hour(resources):
        raise ConfigError(
            "cost is an objective, but nothing has a price", where="tune.objectives",
            fix="set resources.price_per_hour, or watts and price_per_kwh",
        )  # fmt: skip
    if not space:
        return _unsearched(run, "nothing in tune.space is left to search")
    data, calibrated = run.input("fill_gaps").details, run.input("calibrate").details
    profile = choose_profile(calibrated, resources)
    if profile.get("activation_checkpointing"):  # nothing else fits
        train = train.model_copy(update={"activation_checkpointing": True})
    real, rows = real_numbers(model, data["vocabulary_size"], run.workspace.store.artifact)
    wanted = plan_trials(
        tune, train, calibrated=calibrated, profile=profile, sequence_length=data["sequence_length"],
        seconds=search_seconds(run.services, resources),
    )  # fmt: skip
    asked = features_asked(real, train, data, count_parameters(real, rows).total)
    study = Study(
        run.keep("study"), run.work.name, space, sampler=tune.sampler, seed=run.seed, storage=tune.storage,
        objectives=len(tune.objectives), grid_points=tune.grid_points,
    )  # fmt: skip
    study.close_lost()
    fixed = study.setup(
        {"plan": asdict(wanted), "past": [asdict(p) for p in past_points(run.workspace, space, asked, tune.warm_start)]}
    )
    setup = TrialPlan(**fixed["plan"])
    if not setup.trials:
        return _unsearched(run, f"{setup.seconds:.0f} s are the search's share of the window: not enough for two trials")
    pruner = "none" if len(tune.objectives) > 1 else tune.pruner
    planned = rungs_of(setup.steps, rungs=1 if pruner == "none" else tune.rungs, reduction=tune.reduction)
    setting = Setting(
        home=run.workspace.root, folder=run.keep("trials"), cache=run.input("fill_gaps").key, data=data, model=model, real=real,
        rows=rows, train=train, plan=setup, rule=Rule(pruner, len(planned), tune.reduction), precision=profile["precision"],
        threads=max(1, int(calibrated["threads"]) // tune.parallel), seed=run.seed, memory_limit=memory_limit_bytes(resources),
        most_parameters=tune.max_parameters, alone=tune.parallel == 1,
    )  # fmt: skip

    def values_of(trial: Trial, reading: Reading) -> list[float]:
        seconds = 1e6 / max(reading.tokens_per_second, 1e-9)
        told = {
            "dev_loss": reading.dev_loss or 0.0, "speed": seconds, "memory": trial.memory_bytes / GIB,
            "cost": seconds / 3600 * cost_per_hour(resources),
        }  # fmt: skip
        return [told[name] for name in tune.objectives]

    search = Search(
        run, study, space, setting, setup.trials, setup.seconds, tune.parallel, [past["point"] for past in fixed["past"]],
        values_of,
    )  # fmt: skip
    search.explore()
    best, base = best_of(study.entries()), baseline_of(study.entries())
    if best and base and best["number"] != base["number"] and len(tune.objectives) == 1:
        search.repeat([best["number"], base["number"]], setup.repeats)
    made = _outcome(run, study, setting, tune, fixed["past"])
    return replace(made, metrics={**made.metrics, "own_seconds": round(search.own_seconds, 3)})


def search_seconds(services: Services, resources: ResourcesConfig) -> float | None:
    """The search's share of the window and of the money, never more than half of what is left before the margin; None without
    a window."""
    if services.deadline is None:
        return None
    now = services.clock()
    window = (services.deadline - (services.started or now)).total_seconds()
    left = (services.deadline - now).total_seconds() - resources.margin_minutes * 60
    affordable = [resources.money / cost_per_hour(resources) * 3600] if resources.money else []
    return max(min(resources.search_share * min([window, *affordable]), left / 2), 0.0)


def _unsearched(run: StageRun, why: str) -> Outcome:
    """No trial was made: the law's or the configured values stay."""
    run.event("search_skipped", why=why)
    _write(run, [], None)
    return Outcome(
        metrics={"trials": 0},
        summary=SummaryTable(("what", "value"), (("search", why),), "No search"),
        details={"best": {}, "baseline": {}, "gain": 0.0, "trials": {}, "failed": False, "curve": [], "why": why},
    )


def _outcome(run: StageRun, study: Study, setting: Setting, tune: TuneConfig, past: Sequence[Mapping[str, Any]]) -> Outcome:
    """Name the winner, write the table."""
    entries, seen = study.entries(), study.seen()
    _write(run, entries, setting)
    verdict = compare(entries)
    states = Counter(str(one["result"]["state"]) for one in entries)
    details: dict[str, Any] = {
        "best": {}, "baseline": {}, "gain": verdict["gain"], "noise": verdict["noise"], "seeds": verdict["seeds"],
        "trials": dict(sorted(states.items())), "failed": verdict["winner"] is None, "why": verdict["why"], "curve": [],
        "setup": asdict(setting.plan), "rungs": [asdict(r) for r in trial_of({}, setting).rungs],
        "space": {name: one.to_json() for name, one in study.space.items()}, "objectives": list(tune.objectives),
        "sampler": tune.sampler, "pruner": setting.rule.pruner, "importance": importance(study.space, seen),
        "slices": slices(study.space, seen), "warm_start": worth_of_warm_start(entries, past), "front": {}, "top": [],
        "spent_tokens": sum(int(one["result"].get("spent_tokens", 0)) for one in entries),
    }  # fmt: skip
    if verdict["winner"] is None:
        run.event("search_failed", why=verdict["why"])
        return Outcome(
            {"trials": len(entries), "failed": len(entries)},
            summary=_summary(entries, setting, None, verdict["why"]),
            details=details,
        )
    number = verdict["winner"]
    if len(tune.objectives) > 1:
        details["front"] = front(entries, tune.objectives)
        number, details["why"] = details["front"]["recommended"], details["front"]["why"]
    if base := baseline_of(entries):
        told = trial_of(base["point"], setting).values
        details["baseline"] = {**told, "dev_loss": base["result"]["dev_loss"], "trial": base["number"]}
    winner = study.entry(number)
    details["best"] = _best(winner, setting, study.space)
    details["top"] = [
        {"point": one["point"], "dev_loss": one["result"]["dev_loss"]}
        for one in sorted(finished(entries), key=lambda one: one["result"]["dev_loss"])[:TOP]
    ]
    tokens = trial_of(winner["point"], setting).batch_sequences * int(setting.data["sequence_length"])
    details["curve"] = [[step * tokens, loss] for step, loss in winner["result"]["curve"]]
    return Outcome(
        metrics={"trials": len(entries), "gain": round(details["gain"], 5), "dev_loss": winner["result"]["dev_loss"]},
        summary=_summary(entries, setting, number, details["why"]),
        details=details,
    )


def _best(winner: Entry, setting: Setting, space: Space) -> dict[str, Any]:
    """The winner for `plan`: factors around the law, and settings in place of the configured ones."""
    point, trial = winner["point"], trial_of(winner["point"], setting)
    default = trial_of({name: one.start for name, one in space.items()}, setting)
    factors = {f"{name}_factor": point[name] for name in space if not space[name].options}
    if "batch_tokens" in point and not setting.train.learning_rate:  # the batch that wins brings its rate with it
        factors["learning_rate_factor"] = float(point.get("learning_rate", 1.0)) * float(point["batch_tokens"]) ** 0.5
    return {
        **{name: trial.values[name] for name in space if name in trial.values},
        **factors,
        "chosen": {name: value for name, value in trial.chosen.items() if value != default.chosen.get(name)},
        "point": dict(point),
        "dev_loss": winner["result"]["dev_loss"],
        "trial": winner["number"],
    }


def _write(run: StageRun, entries: Sequence[Entry], setting: Setting | None) -> None:
    rows = []
    for one in entries:
        found = one["result"]
        params: dict[str, Any] = {name if isinstance(v, str) else f"{name}_factor" if isinstance(v, float) else name: v
                                  for name, v in one["point"].items()}  # fmt: skip
        if setting:
            params |= trial_of(one["point"], setting).values
        rungs = [{k: r[k] for k in ("rung", "steps", "tokens", "spent_tokens", "seconds", "dev_loss")} for r in one["readings"]]
        rows.append(
            {name: found[name] for name in ("state", "dev_loss", "steps", "tokens", "spent_tokens", "seconds", "error")}
            | {
                "number": one["number"], "kind": one["kind"], "seed_of": one["notes"].get("seed_of"),
                "params": json.dumps(params, sort_keys=True), "curve": json.dumps(found["curve"]), "rungs": json.dumps(rungs),
            }
        )  # fmt: skip
    write_table(pa.Table.from_pylist(rows, schema=TRIALS), run.path("trials", "trials.parquet"))


def _summary(entries: Sequence[Entry], setting: Setting, winner: int | None, title: str) -> SummaryTable:
    rows: list[list[str | float | int]] = []
    for one in entries:
        found, values = one["result"], trial_of(one["point"], setting).values
        loss = "" if found["dev_loss"] is None else round(found["dev_loss"], 4)
        kind = f"seed {one['notes']['seed']} of {one['notes']['seed_of']}" if one["kind"] == "repeat" else one["kind"]
        words = "wins" if one["number"] == winner else found["error"] or kind
        rows.append(
            [one["number"], found["state"], f"{values['learning_rate']:.2e}", f"{values['weight_decay']:.3g}", loss,
             found["seconds"], words]
        )  # fmt: skip
    return SummaryTable(("trial", "state", "learning rate", "weight decay", "dev loss", "seconds", "note"), rows, title)
