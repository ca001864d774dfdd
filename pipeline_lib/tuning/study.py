"""The study: an Optuna study that survives a kill. Every reading is stored as it comes; Optuna's states are the truth.

A trial is RUNNING until it ended for good, also while it waits at a rung. A killed process leaves trials that were asked for and
not yet read (they go on from their checkpoint, or begin) and trials without a point (they are failed: nothing is lost, since
nothing was known of them).
"""

from __future__ import annotations

import json
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
ASKED, READINGS, RESULT = "asked", "readings", "result"  # of trials
KIND, POINT, SAMPLER, NOTES = "kind", "point", "sampler", "notes"  # what was asked
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
        storage: `journal` or `sqlite`.
        objectives: how many, less is better.
        grid_points: of each factor.
        shared: other processes work on it too: what they did is read before every look. Else this process remembers everything,
            so that a thousand trials that wait cost no more than ten.

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
        storage: str = "journal",
        objectives: int = 1,
        grid_points: int = 3,
        shared: bool = False,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        self.space, self.sampler, self.seed, self.grid_points, self.objectives = space, sampler, seed, grid_points, objectives
        self.shared, self._known = shared, dict[int, Entry]()
        told = {"space": {key: one.to_json() for key, one in space.items()}, "objectives": objectives}
        try:
            self._study = optuna.create_study(
                storage=_storage(folder, storage, shared), study_name=name, directions=["minimize"] * objectives,
                load_if_exists=True,
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
        self._look()

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
            one for one in self._study.get_trials(deepcopy=False) if not one.state.is_finished() and ASKED not in one.user_attrs
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
        storage = self._study._storage
        trial_id = storage.create_new_trial(self._study._study_id)
        number = storage.get_trial_number_from_id(trial_id)
        attrs: dict[str, Any] = {}
        if point is None:
            point, attrs = propose(
                self.sampler, self.space, number, seen, seed=self.seed, grid_points=self.grid_points, objectives=self.objectives
            )
        asked = _plain({KIND: kind, POINT: dict(point), SAMPLER: attrs, NOTES: notes})
        storage.set_trial_user_attr(trial_id, ASKED, asked)  # one write: it is the commit
        self._known[number] = {"number": number, **asked, READINGS: [], RESULT: {}}
        return self._known[number]

    def read(self, number: int, reading: Reading) -> None:
        """Store a reading; one that is there stays."""
        one = self.entry(number)
        if any(known["rung"] == reading.rung for known in one[READINGS]):
            return
        readings = [*one[READINGS], _plain(asdict(reading))]
        storage, trial_id = self._study._storage, self._trial_id(number)
        storage.set_trial_user_attr(trial_id, READINGS, readings)
        if reading.dev_loss is not None and self.objectives == 1:
            storage.set_trial_intermediate_value(trial_id, reading.steps, reading.dev_loss)
        self._known[number] = {**one, READINGS: readings}

    def end(self, number: int, state: str, values: Sequence[float] = (), **result: Any) -> None:
        """A trial is over: complete (with its values), pruned, failed or refused. What is known of it is stored first."""
        from optuna.trial import TrialState

        one = self.entry(number)
        if one[RESULT]:
            return
        told = _plain({"state": state, "values": list(values), **result})
        self._study._storage.set_trial_user_attr(self._trial_id(number), RESULT, told)
        if state == "complete":
            self._study.tell(number, list(values))
        else:
            read = state == "pruned" and self.objectives == 1 and bool(_losses(one))
            self._study.tell(number, state=TrialState.PRUNED if read else TrialState.FAIL)
        self._known[number] = {**one, RESULT: told}

    def entry(self, number: int) -> Entry:
        """What is recorded of a trial."""
        if self.shared:
            self._look()
        return self._known[number]

    def entries(self) -> list[Entry]:
        """All trials with a point, in order."""
        if self.shared:
            self._look()
        return [self._known[number] for number in sorted(self._known)]

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

    def _look(self) -> None:
        """Read the storage."""
        trials = self._study.get_trials(deepcopy=False)
        self._known = {one.number: _entry(one) for one in trials if ASKED in one.user_attrs}

    def _trial_id(self, number: int) -> int:
        return int(self._study._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number))


def _entry(trial: optuna.trial.FrozenTrial) -> Entry:
    told = trial.user_attrs
    result = told.get(RESULT, {}) if trial.state.is_finished() else {}
    return {"number": trial.number, **told[ASKED], READINGS: told.get(READINGS, []), RESULT: result}


def _plain(value: Any) -> Any:
    """As it will be read from the storage."""
    return json.loads(json.dumps(value))


def _losses(entry: Entry) -> dict[int, float]:
    return {one["rung"]: one["dev_loss"] for one in entry[READINGS] if one["dev_loss"] is not None}


def _storage(folder: Path, kind: str, shared: bool) -> Any:
    if url := os.environ.get(URL_VARIABLE):
        return url
    if kind == "sqlite":
        return f"sqlite:///{folder / 'study.db'}"
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    file = folder / "study.journal"
    if not shared:
        _mend(file)
    return JournalStorage(JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file))))


def _mend(file: Path) -> None:
    """Take away what a kill leaves of a journal: the lock, and a line that was not written to its end."""
    file.with_name(f"{file.name}.lock").unlink(missing_ok=True)
    if file.exists() and not (text := file.read_bytes()).endswith(b"\n"):
        with file.open("r+b") as opened:
            opened.truncate(text.rfind(b"\n") + 1)
