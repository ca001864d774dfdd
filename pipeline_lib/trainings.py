"""The trainings of a workspace: which checkpoints there are and whose, what can be resumed, what nobody owns any more."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.errors import BusyError, ConfigError, MillraceError, NotFoundError, RefusedError
from pipeline_lib.stages import BY_NAME
from pipeline_lib.training.checkpoints import LEAST_KEPT, RECORD, Retention, committed, damage, foreign, kept, record_of
from pipeline_lib.workspace.files import remove_tree
from pipeline_lib.workspace.lease import is_free
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.stage import parameters_of, recipe_fingerprint
from pipeline_lib.workspace.usage import folder_bytes

if TYPE_CHECKING:
    from pipeline_lib.workspace.workspace import Workspace

PUBLISHED = "published"
INTACT, DAMAGED = "intact", "damaged"
LONGEST_DATA = 40  # characters of a suggested name, whose limit is 60
NAMED = "NAME@STEP names a checkpoint; `millrace checkpoints list` shows them"


@dataclass(frozen=True)
class Entry:
    """One checkpoint of a workspace, as its record tells; the record is verified, the files are not."""

    run: RunRecord | None  # whose training wrote it (the newest run, where several share it); None: nobody's
    folder: Path
    record: Mapping[str, Any]  # empty: damaged, or another version's
    date: datetime
    why: str  # why it is kept; `published` with an artifact

    @property
    def step(self) -> int:
        """Optimizer steps done; from the folder's name where the record is damaged."""
        return int(self.record["step"]) if self.record else int(self.folder.name.partition("-")[2] or 0)

    @property
    def name(self) -> str:
        """What a person types: RUN@STEP."""
        return f"{self.run.run_id if self.run else self.folder.parent.parent.name}@{self.step}"

    @property
    def published(self) -> bool:
        """Part of an artifact, not of work in progress."""
        return self.why.startswith(PUBLISHED)

    @property
    def dev_loss(self) -> str:
        """The dev loss, for people: with its step where that is another one."""
        metrics = self.record.get("metrics", {})
        if metrics.get("dev_loss") is None:
            return ""
        place = metrics.get("dev_step", self.step)  # a finished training ends with an evaluation
        return f"{metrics['dev_loss']:.4g}" + ("" if place == self.step else f" at {place:.0f}")

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        metrics = self.record.get("metrics", {})
        return {
            "name": self.name,
            "run": self.run.run_id if self.run else "",
            "pipeline": self.run.pipeline if self.run else "",
            "step": self.step,
            "steps": int(self.record["schedule"]["total_steps"]) if self.record else None,
            "dev_loss": metrics.get("dev_loss"),
            "dev_step": metrics.get("dev_step"),  # the evaluation before the checkpoint, or at it
            "train_loss": metrics.get("train_loss"),
            "date": self.date.isoformat(),
            "kept": self.why,
            "before_decay": bool(self.record.get("stable")),
            "bytes": folder_bytes(self.folder),
            "folder": str(self.folder),
            "digest": self.record.get("digest", ""),
        }


def entries(workspace: Workspace) -> list[Entry]:
    """Every checkpoint of the workspace, by run, oldest first."""
    runs = list(RunBook(workspace.runs_folder).all())
    owners = _owners(workspace, runs)
    found = [entry for folder in _unfinished(workspace) for entry in _in_work(folder, owners.get(_recipe(folder.name)))]
    seen = set()
    for run in reversed(runs):
        ref = run.ref("train")
        if ref and ref.key not in seen and workspace.store.has(ref.key):
            seen.add(ref.key)
            found += _in_artifact(workspace, ref.key, _maker(runs, ref.key))
    return sorted(found, key=lambda entry: (entry.run.run_id if entry.run else "", entry.step))


def find(workspace: Workspace, text: str) -> Entry:
    """The checkpoint that is meant: RUN@STEP, RUN (its newest), or its folder; RUN is an id, its beginning, `latest`, a name.

    Raises:
        ConfigError: a path of something else.
        NotFoundError: there is none; the nearest are named.
    """
    known = entries(workspace)
    if Path(text).exists() and ("/" in text or Path(text).suffix):
        return _at_path(known, Path(text))
    run, _, step = text.partition("@")
    meant = _meant(workspace, run)
    own = [entry for entry in known if (entry.run.run_id in meant if entry.run else entry.folder.parent.parent.name == run)]
    if not own:
        names = sorted({name for entry in known if entry.run for name in (entry.run.run_id, entry.run.pipeline)})
        near = difflib.get_close_matches(run, names, 2, cutoff=0.3) or names[-2:]
        fix = f"the nearest: {', '.join(near)}" if near else "no training has saved a checkpoint yet: `millrace run`"
        raise NotFoundError(f"no checkpoint of {run!r}", fix=f"{fix}; {NAMED}" if near else fix)
    if not step:
        return max(own, key=lambda entry: (entry.run.run_id if entry.run else "", entry.step))
    exact = [entry for entry in own if str(entry.step) == step]
    if not exact:
        wanted = int(step) if step.isdigit() else 0
        near_steps = sorted({entry.step for entry in own}, key=lambda one: abs(one - wanted))[:3]
        raise NotFoundError(
            f"{run} has no checkpoint of step {step}",
            fix="the nearest: " + ", ".join(f"{run}@{one}" for one in sorted(near_steps)),
        )
    return exact[-1]


def _at_path(known: list[Entry], path: Path) -> Entry:
    for entry in known:
        if entry.folder == path.absolute():
            return entry
    raise ConfigError(
        "is no checkpoint of this workspace", where=str(path),
        fix="to begin from weights, set model.start to a folder with config.json and *.safetensors (pickled weights are never "
        f"loaded); {NAMED}",
    )  # fmt: skip


def resumable(workspace: Workspace) -> list[Entry]:
    """The newest checkpoint of every run that stopped in mid-training and can go on."""
    newest: dict[str, Entry] = {}
    for entry in entries(workspace):
        if entry.run and entry.record and not entry.published and entry.run.outcome not in {"completed", "running"}:
            newest[entry.run.run_id] = entry
    return list(newest.values())


def orphans(workspace: Workspace) -> list[Path]:
    """Work of trainings that no run will take up again: their checkpoints, logs and metrics, with reports of unknown runs."""
    book = RunBook(workspace.runs_folder)
    runs = list(book.all())
    owners = _owners(workspace, runs)
    known = set(book.ids())
    found = [folder for folder in _unfinished(workspace) if _recipe(folder.name) not in owners and _free(workspace, folder)]
    found += [path for path in sorted(workspace.spool_folder.glob("*.jsonl")) if path.stem not in known]
    found += [path for path in sorted(workspace.reports_folder.glob("*")) if path.stem.partition(".")[0] not in known]
    return found


def delete(workspace: Workspace, entry: Entry) -> None:
    """Remove a checkpoint of a training that is not finished.

    Raises:
        RefusedError: it is part of an artifact, or one of the last two, without which a damaged one would cost the training.
        BusyError: its training is going on.
    """
    if entry.published:
        raise RefusedError(
            f"{entry.name} belongs to a published model, whose digests it is part of", fix="`millrace gc` removes it with its run"
        )
    if not _free(workspace, entry.folder.parent.parent):
        raise BusyError(f"the training of {entry.name} is going on", fix="stop it first; it removes what it does not need itself")
    others = [folder for folder in committed(entry.folder.parent) if folder != entry.folder and record_of(folder)]
    if entry.run and entry.record and len(others) < LEAST_KEPT - 1:
        raise RefusedError(
            f"{entry.name} is the only checkpoint of a training that can still be resumed",
            fix="`millrace train` in a terminal manages whole trainings; a newer checkpoint makes this one superfluous",
        )
    remove_tree(entry.folder)


def remove_orphan(workspace: Workspace, path: Path) -> None:
    """Remove one thing that `orphans` named; nothing when it is none any more."""
    if path in orphans(workspace):
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)


def verify(entry: Entry) -> str:
    """`intact`, or what a checkpoint is instead: `damaged: …`, or of another version's format. Every byte is digested."""
    if words := foreign(entry.folder):
        return words
    return f"{DAMAGED}: {reason}" if (reason := damage(entry.folder)) else INTACT


def stable_before(workspace: Workspace, entry: Entry) -> Entry | None:
    """The last checkpoint of the same training from before its decay, at or before an entry."""
    same = [one for one in entries(workspace) if one.run and entry.run and one.run.run_id == entry.run.run_id]
    held = [one for one in same if one.record.get("stable") and one.step <= entry.step]
    return held[-1] if held else None


def recipe_of(workspace: Workspace, run: RunRecord) -> str:
    """The fingerprint of a run's training, "" where the run has not come so far or its artifacts are gone."""
    stage = BY_NAME["train"]
    refs = {name: run.ref(name) for name in stage.reads}
    try:
        config = PipelineConfig.model_validate(run.config)
        manifests = {name: workspace.store.manifest(ref.key) for name, ref in refs.items() if ref}
        if len(manifests) < len(refs):
            return ""
        _, identity = parameters_of(stage, config, workspace)
    except (MillraceError, ValueError, OSError):
        return ""
    return recipe_fingerprint(stage, identity, manifests)


def _owners(workspace: Workspace, runs: list[RunRecord]) -> dict[str, RunRecord]:
    """Recipe of an unfinished training → the newest run that would go on with it."""
    if not any(_unfinished(workspace)):
        return {}
    unfinished = [run for run in runs if run.outcome not in {"completed", "nothing_new"}]
    return {recipe: run for run in unfinished if (recipe := recipe_of(workspace, run))}


def _unfinished(workspace: Workspace) -> Iterator[Path]:
    yield from (folder for folder in sorted(workspace.work_folder.glob("train-*.*")) if folder.is_dir())


def _recipe(work: str) -> str:
    return work.removeprefix("train-").partition(".")[0]


def _free(workspace: Workspace, work: Path) -> bool:
    return is_free(workspace.lease_path(f"train-{_recipe(work.name)}"))


def _in_work(folder: Path, run: RunRecord | None) -> Iterator[Entry]:
    records = {path: record_of(path) for path in committed(folder / "checkpoints")}
    reasons = kept([record for record in records.values() if record], Retention())
    for path, record in records.items():
        why = reasons.get(int(record["step"]), "newest") if record else foreign(path) or DAMAGED
        yield Entry(run, path, record, _date(path), why)


def _in_artifact(workspace: Workspace, key: str, run: RunRecord) -> Iterator[Entry]:
    for entry in workspace.store.manifest(key).files:
        if entry.path.rpartition("/")[2] == RECORD:
            path = workspace.store.place(entry.home or key, entry.path)
            if path.is_file():
                record = record_of(path.parent)
                before = ", before the decay" if record.get("stable") else ""
                yield Entry(run, path.parent, record, _date(path), PUBLISHED + before)


def _maker(runs: list[RunRecord], key: str) -> RunRecord:
    """The run that made a model, or the first that used it."""
    users = [run for run in runs if (ref := run.ref("train")) and ref.key == key]
    return next((run for run in users if run.stages["train"].state == "made"), users[0])


def _meant(workspace: Workspace, text: str) -> set[str]:
    """Ids of the runs that a text names, and of those whose finished training they took over."""
    runs = list(RunBook(workspace.runs_folder).all())
    named = (
        runs[-1:] if text == "latest" else [run for run in runs if text and (run.run_id.startswith(text) or run.pipeline == text)]
    )
    return {run.run_id for run in named} | {_maker(runs, ref.key).run_id for run in named if (ref := run.ref("train"))}


def _date(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def suggest_name(workspace: Workspace, config: PipelineConfig, parameters: int) -> str:
    """A name for a new run: size, data and length, and a number where the name is taken: `415M_openstax_512`, `…_2`."""
    sources = [source.name for source in config.ingest.sources]
    data = "-".join([*sources[:1], *([f"and-{len(sources) - 1}"] if len(sources) > 1 else [])]) or "nothing"
    data = re.sub(r"[^A-Za-z0-9.-]", "-", data)[:LONGEST_DATA]
    base = f"{_short(parameters)}_{data}_{config.pack.sequence_length}"
    taken = {run.pipeline for run in RunBook(workspace.runs_folder).all()}
    if base not in taken:
        return base
    return next(name for number in range(2, len(taken) + 3) if (name := f"{base}_{number}") not in taken)


def _short(number: int) -> str:
    """`415M`, `1.3B`, `920k`."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            value = number / size
            return f"{value:.1f}".removesuffix(".0") + unit if value < 10 else f"{value:.0f}{unit}"
    return str(number)
