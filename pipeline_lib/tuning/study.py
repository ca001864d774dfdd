"""The study: an Optuna study that survives a kill. Every reading is stored as it comes; Optuna's states are the truth.

A trial is RUNNING until it ended for good, also while it waits at a rung. A killed process leaves trials that were asked for and
not yet read (they go on from their checkpoint, or begin) and trials without a point (they are failed: nothing is lost, since
nothing was known of them).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.errors import ConfigError, RefusedError
from pipeline_lib.tuning.samplers import Seen, propose
from pipeline_lib.tuning.space import Point, Space
from pipeline_lib.tuning.trial import Reading
from pipeline_lib.workspace.identity import fingerprint_of

if TYPE_CHECKING:
    import optuna

URL_VARIABLE = "MILLRACE_OPTUNA_URL"  # a shared database for studies; without it each study is a file in its stage's work folder
SPACE, SETUP = "space", "setup"  # study attributes
KIND, POINT, SAMPLER, READINGS, RESULT, SEED_OF = "kind", "point", "sampler", "readings", "result", "seed_of"  # of trials
Entry = dict[str, Any]
"""A trial as it is recorded: number, kind (baseline, warm, sampled, repeat), point, readings, result ({}: it lives), notes."""


class Study:
    """Open, or continue, a study.

    Args:
        folder: where its file lies when no database is named.
        name: the same name continues.
        space: what is searched.
        sampler: name of the sampler.
        seed: of the search.
        storage: `sqlite` or `journal`.
        objectives: how many, less is better.
        grid_points: of each factor.

    Raises:
        RefusedError: a study of this name searches another space.
        ConfigError: the database cannot be opened.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        space: Space,
        *,
        sampler: str = "tpe",
        seed: int = 0,
        storage: str = "sqlite",
        objectives: int = 1,
        grid_points: int = 3,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.space, self.sampler, self.seed, self.grid_points, self.objectives = space, sampler, seed, grid_points, objectives
        told = {"space": {key: one.to_json() for key, one in space.items()}, "objectives": objectives}
        try:
            self._study = optuna.create_study(
                storage=_storage(folder, storage), study_name=name, directions=["minimize"] * objectives, load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(seed=seed),
            )  # fmt: skip
        except (ImportError, optuna.exceptions.StorageInternalError, ValueError) as error:
            raise ConfigError(f"the study's database cannot be opened: {error}", where=f"${URL_VARIABLE}") from None
        known = self._study.user_attrs.get(SPACE)
        if known is None:
            self._study.set_user_attr(SPACE, told)
        elif fingerprint_of(known) != fingerprint_of(told):
            raise RefusedError(
                f"a study named {name!r} exists and searches another space: {', '.join(known['space']) or 'none'}",
                where="the study", fix="take another name, or the space that it was begun with",
            )  # fmt: skip

    def setup(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """What was fixed when the study began; `wanted` becomes that when it begins now."""
        if SETUP not in self._study.user_attrs:
            self._study.set_user_attr(SETUP, dict(wanted))
        return dict(self._study.user_attrs[SETUP])

    def close_lost(self) -> int:
        """Fail the trials that a kill left before they had a point. Only for a study that one process works on.

        Returns:
            How many.
        """
        lost = [
            one for one in self._study.get_trials(deepcopy=False) if not one.state.is_finished() and POINT not in one.user_attrs
        ]
        import optuna

        for one in lost:
            self._study.tell(one.number, state=optuna.trial.TrialState.FAIL)
        return len(lost)

    def ask(self, kind: str = "sampled", point: Point | None = None, **notes: Any) -> Entry:
        """A new trial, with this point or the sampler's.

        Args:
            kind: baseline, warm, sampled or repeat.
            point: None: the sampler proposes.
            notes: kept with the trial.
        """
        seen = [] if point else self.seen()
        trial = self._study.ask()
        attrs: dict[str, Any] = {}
        if point is None:
            proposed, attrs = propose(
                self.sampler, self.space, trial.number, seen, seed=self.seed, grid_points=self.grid_points,
                objectives=self.objectives,
            )  # fmt: skip
            point = proposed
        for name, value in {KIND: kind, SAMPLER: attrs, **notes, POINT: dict(point)}.items():  # the point last: it is the commit
            trial.set_user_attr(name, value)
        return self.entry(trial.number)

    def read(self, number: int, reading: Reading) -> None:
        """Store a reading; one that is there stays."""
        known: list[dict[str, Any]] = list(self._frozen(number).user_attrs.get(READINGS, []))
        if not any(one["rung"] == reading.rung for one in known):
            trial_id = self._frozen(number)._trial_id
            self._study._storage.set_trial_user_attr(trial_id, READINGS, [*known, asdict(reading)])
            if reading.dev_loss is not None and self.objectives == 1:
                self._study._storage.set_trial_intermediate_value(trial_id, reading.steps, reading.dev_loss)

    def end(self, number: int, state: str, values: Sequence[float] = (), **result: Any) -> None:
        """A trial is over: complete (with its values), pruned, failed or refused. What is known of it is stored first."""
        import optuna

        states = optuna.trial.TrialState
        frozen = self._frozen(number)
        if frozen.state.is_finished():
            return
        self._study._storage.set_trial_user_attr(frozen._trial_id, RESULT, {"state": state, "values": list(values), **result})
        if state == "complete":
            self._study.tell(number, list(values))
        else:
            self._study.tell(number, state=states.PRUNED if state == "pruned" and frozen.intermediate_values else states.FAIL)

    def entry(self, number: int) -> Entry:
        """What is recorded of a trial."""
        return _entry(self._frozen(number))

    def entries(self) -> list[Entry]:
        """All trials with a point, in order."""
        return [_entry(one) for one in self._study.get_trials(deepcopy=False) if POINT in one.user_attrs]

    def seen(self) -> list[Seen]:
        """The trials as samplers see them; one that waits at a rung with the loss that it would reach if it gained from there on
        what the default gained."""
        entries = [one for one in self.entries() if one["kind"] != "repeat"]
        base = next((_losses(one) for one in entries if one["kind"] == "baseline"), {})
        found = []
        for one in entries:
            values: tuple[float, ...] | None = tuple(one["result"].get("values", ())) or None
            losses = _losses(one)
            if values is None and losses and self.objectives == 1:
                at = max(losses)
                gained = base[max(base)] / base[at] if base.get(at) else 1.0
                values = (losses[at] * gained,)
            failed = one["result"].get("state") in ("failed", "refused")
            found.append(Seen(one["number"], one["point"], None if failed else values, one[SAMPLER], failed))
        return found

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        trials = self._study.get_trials(deepcopy=False)
        return trials[number]


def _entry(trial: optuna.trial.FrozenTrial) -> Entry:
    told = trial.user_attrs
    rest = {key: value for key, value in told.items() if key not in (KIND, POINT, SAMPLER, READINGS, RESULT)}
    return {
        "number": trial.number, KIND: told[KIND], POINT: told[POINT], SAMPLER: told.get(SAMPLER, {}),
        READINGS: told.get(READINGS, []), RESULT: told.get(RESULT, {}) if trial.state.is_finished() else {},
        "notes": rest,
    }  # fmt: skip


def _losses(entry: Entry) -> dict[int, float]:
    return {one["rung"]: one["dev_loss"] for one in entry[READINGS] if one["dev_loss"] is not None}


def _storage(folder: Path, kind: str) -> Any:
    if url := os.environ.get(URL_VARIABLE):
        return url
    if kind == "journal":
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        file = str(folder / "study.journal")
        return JournalStorage(JournalFileBackend(file, lock_obj=JournalFileOpenLock(file)))
    return f"sqlite:///{folder / 'study.db'}"
