"""The stage `tune`: a search over factors around the scaling law's values, within its share of the window."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline_lib.config.model import ModelConfig, TrainConfig, TuneConfig
from pipeline_lib.config.resources import ResourcesConfig
from pipeline_lib.errors import StoppedError
from pipeline_lib.planning.memory import count_parameters
from pipeline_lib.planning.profiles import choose_profile
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import TRIALS
from pipeline_lib.training.start import real_numbers
from pipeline_lib.tuning.budget import TrialPlan, plan_trials
from pipeline_lib.tuning.space import Space, checked_space, values_at
from pipeline_lib.tuning.study import ask, finished, open_study, setup_of, tell
from pipeline_lib.tuning.trial import TrialTrainer
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.stage import Outcome, StageRun

if TYPE_CHECKING:
    import optuna

# A gain up to this may be luck of the seed: the default stays. Assumed, not measured (repeat the baseline with other seeds).
SEED_NOISE = 0.005
OVERRUN = 1.2  # no trial starts when the search would take more than this many times its share


def tune(run: StageRun, *, tune: TuneConfig, model: ModelConfig, train: TrainConfig, resources: ResourcesConfig) -> Outcome:
    """Try factors, the first trial with all of them 1 (the baseline); the best one wins if it beats that by more than luck.

    A trial that fails is a result. When all fail, or no time is left for two, the law's values stay and the details say so.
    A killed search continues: finished trials stay, the one that was running is repeated.

    Raises:
        ConfigError: the space names something unknown or excludes the starting point.
        RefusedError: no calibrated profile fits into the memory limit.
        StoppedError: a clean stop was asked for.
    """
    space = checked_space(tune.space, train)
    if not tune.trials or not space:
        return _unsearched(run, "no search is configured" if not tune.trials else "nothing in tune.space is left to search")
    data, calibrated = run.input("fill_gaps").details, run.input("calibrate").details
    profile = choose_profile(calibrated, resources)
    if profile.get("activation_checkpointing"):  # nothing else fits
        train = train.model_copy(update={"activation_checkpointing": True})
    wanted = plan_trials(
        tune,
        train,
        calibrated=calibrated,
        profile=profile,
        sequence_length=data["sequence_length"],
        seconds=search_seconds(run.services, resources),
    )
    study = open_study(run.keep("study"), run.work.name, tune, run.seed)
    setup = TrialPlan(**setup_of(study, asdict(wanted)))
    if not setup.trials:
        return _unsearched(run, f"{setup.seconds:.0f} s are the search's share of the window: not enough for two trials")
    if not study.trials:
        study.enqueue_trial(dict.fromkeys(space, 1.0), user_attrs={"baseline": True})
    trainer = TrialTrainer(run, model, train, setup, profile["precision"], int(calibrated["threads"]))
    real, rows = real_numbers(model, data["vocabulary_size"], run.workspace.store.artifact)
    parameters = count_parameters(real, rows).without_embeddings
    while _goes_on(run, finished(study), setup):
        trial, factors = ask(study, space)
        values = values_at(factors, model=model, train=train, parameters=parameters, tokens=setup.tokens(data["sequence_length"]))
        ended = trainer(trial.number, values, {f"{name}_factor": factor for name, factor in factors.items()}, _report(trial))
        if run.services.should_stop():
            raise StoppedError("stopped as asked", where="stage tune", fix="run again: the search continues where it stood")
        tell(study, trial, values, ended)
    return _outcome(run, finished(study), setup, space)


def search_seconds(services: Services, resources: ResourcesConfig) -> float | None:
    """The search's share of the window, never more than half of what is left before the margin; None without a window."""
    if services.deadline is None:
        return None
    now = services.clock()
    window = (services.deadline - (services.started or now)).total_seconds()
    left = (services.deadline - now).total_seconds() - resources.margin_minutes * 60
    return max(min(resources.search_share * window, left / 2), 0.0)


def _goes_on(run: StageRun, done: Sequence[optuna.trial.FrozenTrial], setup: TrialPlan) -> bool:
    if len(done) >= setup.trials:
        return False
    spent = math.fsum(trial.user_attrs["seconds"] for trial in done)
    if setup.seconds and done and spent + spent / len(done) > OVERRUN * setup.seconds:
        run.event("search_cut", trials=len(done), wanted=setup.trials, seconds=round(spent, 1), share=round(setup.seconds, 1))
        return False
    losses = [trial.user_attrs["dev_loss"] for trial in done if trial.user_attrs["state"] == "complete"]
    run.progress(len(done), setup.trials, "trials", f"best dev loss {min(losses):.3f}" if losses else "")
    return True


def _report(trial: optuna.Trial) -> Any:
    """Tells the pruner a dev loss; the baseline is never pruned, everything is measured against it."""

    def report(step: int, dev_loss: float) -> bool:
        trial.report(dev_loss, step)
        return bool(trial.user_attrs.get("baseline")) or not trial.should_prune()

    return report


def _unsearched(run: StageRun, why: str) -> Outcome:
    """No trial was made: the law's or the configured values stay."""
    run.event("search_skipped", why=why)
    _write(run, [])
    return Outcome(
        metrics={"trials": 0},
        summary=SummaryTable(("what", "value"), (("search", why),), "No search"),
        details={"best": {}, "baseline": {}, "gain": 0.0, "trials": {}, "failed": False, "curve": [], "why": why},
    )


def _outcome(run: StageRun, done: Sequence[optuna.trial.FrozenTrial], setup: TrialPlan, space: Space) -> Outcome:
    """Name the winner, write the table."""
    _write(run, done)
    states = Counter(str(trial.user_attrs["state"]) for trial in done)
    complete = [trial for trial in done if trial.user_attrs["state"] == "complete"]
    baseline = next((trial for trial in complete if trial.user_attrs.get("baseline")), None)
    details: dict[str, Any] = {
        "best": {}, "baseline": {}, "gain": 0.0, "trials": dict(sorted(states.items())), "failed": not complete,
        "noise": SEED_NOISE, "curve": [], "setup": asdict(setup),
    }  # fmt: skip
    if not complete:
        cause, times = Counter(str(trial.user_attrs["error"]) for trial in done).most_common(1)[0]
        details["why"] = f"all {len(done)} trials failed, {times} of them with: {cause}; the default values stay"
        run.event("search_failed", why=details["why"])
        return Outcome({"trials": len(done), "failed": len(done)}, summary=_summary(done, None, details["why"]), details=details)
    best = min(complete, key=lambda trial: (trial.user_attrs["dev_loss"], trial.number))
    winner, details["why"] = best, "the baseline failed, the best of the others wins"
    if baseline is not None:
        loss = baseline.user_attrs["dev_loss"]
        details["baseline"] = {**baseline.user_attrs["values"], "dev_loss": loss, "trial": baseline.number}
        details["gain"] = (loss - best.user_attrs["dev_loss"]) / loss
        luck = details["gain"] <= SEED_NOISE
        winner = baseline if luck else best
        details["why"] = f"the best trial is {details['gain']:.2%} better than the baseline: " + (
            f"within the noise of {SEED_NOISE:.1%} between seeds, the default stays" if luck else "more than luck"
        )
    values = winner.user_attrs["values"]
    sequence = int(winner.user_attrs["tokens"] / max(winner.user_attrs["steps"], 1))
    details["best"] = {
        **{name: values[name] for name in space},
        **{f"{name}_factor": winner.params[name] for name in space},
        "dev_loss": winner.user_attrs["dev_loss"],
        "trial": winner.number,
    }
    details["curve"] = [[step * sequence, loss] for step, loss in winner.user_attrs["curve"]]
    return Outcome(
        metrics={"trials": len(done), "gain": round(details["gain"], 5), "dev_loss": winner.user_attrs["dev_loss"]},
        summary=_summary(done, winner.number, details["why"]),
        details=details,
    )


def _write(run: StageRun, done: Sequence[optuna.trial.FrozenTrial]) -> None:
    rows = []
    for trial in done:
        found = trial.user_attrs
        params = {**found["values"], **{f"{name}_factor": factor for name, factor in trial.params.items()}}
        rows.append(
            {name: found[name] for name in ("state", "dev_loss", "steps", "tokens", "seconds", "error")}
            | {"number": trial.number, "params": json.dumps(params, sort_keys=True), "curve": json.dumps(found["curve"])}
        )
    write_table(pa.Table.from_pylist(rows, schema=TRIALS), run.path("trials", "trials.parquet"))


def _summary(done: Sequence[optuna.trial.FrozenTrial], winner: int | None, title: str) -> SummaryTable:
    rows: list[list[str | float | int]] = []
    for trial in done:
        found = trial.user_attrs
        loss = "" if found["dev_loss"] is None else round(found["dev_loss"], 4)
        words = "wins" if trial.number == winner else found["error"] or ("baseline" if found.get("baseline") else "")
        rows.append(
            [trial.number, found["state"], f"{found['values']['learning_rate']:.2e}", f"{found['values']['weight_decay']:.3g}",
             loss, found["seconds"], words]
        )  # fmt: skip
    return SummaryTable(("trial", "state", "learning rate", "weight decay", "dev loss", "seconds", "note"), rows, title)
