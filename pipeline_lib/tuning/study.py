"""An Optuna study that survives a kill: every trial is stored as it goes, and what was running is repeated once, never lost."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.model import TuneConfig
from pipeline_lib.tuning.space import Space
from pipeline_lib.tuning.trial import Ended

if TYPE_CHECKING:
    import optuna

URL_VARIABLE = "MILLRACE_OPTUNA_URL"  # a shared database for studies; without it each study is a file in its stage's work folder
SETUP = "setup"  # study attribute: the trial plan
REPEATS = "repeats"  # trial attribute: the number of the trial that a kill cut off


def open_study(folder: Path, name: str, tune: TuneConfig, seed: int) -> optuna.Study:
    """Make the study, or continue it: trials that a killed process left running are failed and queued again.

    Args:
        folder: where the SQLite file lies when no shared database is configured.
        name: of the study; the same name continues.
        tune: sampler and pruner.
        seed: of the sampler.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    study = optuna.create_study(
        storage=os.environ.get(URL_VARIABLE) or f"sqlite:///{folder / 'study.db'}",
        study_name=name,
        direction="minimize",
        load_if_exists=True,
    )
    study.sampler = _sampler(tune, seed + len(study.trials))  # a continued study must not draw the same points again
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=2) if tune.pruner == "median" else optuna.pruners.NopPruner()
    queued = repeated(study)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        if trial.number not in queued:  # queued first, failed second: a kill in between neither loses nor doubles it
            factors = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            study.enqueue_trial(factors, user_attrs={**trial.user_attrs, REPEATS: trial.number})
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _sampler(tune: TuneConfig, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    if tune.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if tune.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=4)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)


def ask(study: optuna.Study, space: Space) -> tuple[optuna.Trial, dict[str, float]]:
    """The next trial and its factors."""
    trial = study.ask()
    return trial, {name: trial.suggest_float(name, low, high, log=True) for name, (low, high) in space.items()}


def tell(study: optuna.Study, trial: optuna.Trial, values: Mapping[str, float], ended: Ended) -> None:
    """Store how a trial ended. The attributes come first: a trial that is finished has them all."""
    import optuna

    for name, value in {"values": dict(values), **asdict(ended)}.items():
        trial.set_user_attr(name, value)
    if ended.state == "complete":
        study.tell(trial, ended.dev_loss)
    else:
        state = optuna.trial.TrialState.PRUNED if ended.state == "pruned" else optuna.trial.TrialState.FAIL
        study.tell(trial, state=state)


def repeated(study: optuna.Study) -> set[int]:
    """Numbers of the trials that a kill cut off and that were queued again: they count for nothing."""
    return {trial.user_attrs[REPEATS] for trial in study.get_trials(deepcopy=False) if REPEATS in trial.user_attrs}


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that ended by themselves (complete, pruned or failed), in order."""
    cut = repeated(study)
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished() and trial.number not in cut]


def setup_of(study: optuna.Study, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What was fixed when the study began; `wanted` becomes that when it begins now."""
    if SETUP not in study.user_attrs:
        study.set_user_attr(SETUP, dict(wanted))
    return dict(study.user_attrs[SETUP])
