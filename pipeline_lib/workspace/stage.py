"""The stage contract: (input artifacts, parameters) → one artifact. One function, `execute`, is the only door to it."""

from __future__ import annotations

import importlib
import resource
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline_lib.config.identity import identity_of
from pipeline_lib.errors import StageFailedError
from pipeline_lib.workspace.artifact import (
    Artifact,
    ArtifactRef,
    FileEntry,
    Kind,
    Manifest,
    SummaryTable,
    output_digest,
    table_digests,
)
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.files import link_or_copy, read_json, remove_tree, write_json
from pipeline_lib.workspace.identity import file_digest, fingerprint_of, tree_digest
from pipeline_lib.workspace.machine import code_revision, machine_identity, versions
from pipeline_lib.workspace.services import Progress, Services

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pipeline_lib.workspace.workspace import Workspace

T = TypeVar("T")
PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class Stage:
    """A row of the table of stages (`pipeline_lib/stages.py`).

    `reads` names, for each input stage, the tables whose digests enter the fingerprint ("details" is a table of its own).
    `sections` are the configuration sections (or dotted single values) that the function gets as keyword arguments, named by
    their last component; they are its parameters. `uses` are functions from subjects to the right, injected by name so that
    the import order holds. `intact` is an extra test of reuse: `(artifact, workspace) -> reason it cannot be reused, or ""`.
    `outside` names what the stage reads beside artifacts (source files): `(**sections) -> JSON` with digests of their content,
    part of the fingerprint; without it a new file would go unnoticed.
    """

    name: str
    version: int
    kind: Kind
    function: str  # "package.module:function", imported only when the stage really runs
    reads: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sections: Sequence[str] = ()
    seeded: bool = False
    machine: bool = False  # the machine and the library versions are part of the key
    uses: Mapping[str, str] = field(default_factory=dict)
    intact: str = ""
    outside: str = ""

    @property
    def package(self) -> Path:
        """The folder whose code does the work."""
        return PACKAGE.parent.joinpath(*self.function.partition(":")[0].split(".")[:-1])


@dataclass
class Outcome:
    """What a stage function returns beside its files."""

    metrics: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # "in" and "out" must be equal where both are given
    summary: SummaryTable = field(default_factory=lambda: SummaryTable((), ()))
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shard:
    """The committed output of one unit of data work."""

    fingerprint: str
    files: Mapping[str, Path]  # table -> file
    metrics: Mapping[str, Any]
    reused: bool


def load(target: str) -> Any:
    """Import "module:name"."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass
class StageRun:
    """What a stage function works with: its inputs, its folders, and the services around it."""

    stage: Stage
    fingerprint: str
    workspace: Workspace
    inputs: Mapping[str, Artifact]
    work: Path  # survives a kill; named by the fingerprint
    services: Services
    seed: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    parent: Artifact | None = None
    _shards: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """The folder whose files become the artifact. Emptied at the start of every attempt."""
        return self.work / "out"

    def input(self, stage: str) -> Artifact:
        """An input artifact, by stage name."""
        return self.inputs[stage]

    def path(self, table: str, name: str) -> Path:
        """Where to write a content file of a table: `out/<table>/<name>`."""
        path = self.out / table / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def observed(self, name: str) -> Path:
        """Where to write an observed file (logs, rates, times): kept and digested, promising nothing."""
        path = self.out / "observed" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def keep(self, name: str) -> Path:
        """A folder of work in progress that survives a kill and is removed after publishing (checkpoints, partial results)."""
        path = self.work / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def use(self, name: str) -> Any:
        """A function injected by the table of stages."""
        return load(self.stage.uses[name])

    def event(self, kind: str, **detail: Any) -> None:
        """Record that something happened; shown in the manifest, the report and the log."""
        self.events.append({"time": self.services.clock().isoformat(), "kind": kind, "detail": detail})
        self.services.log(f"{self.stage.name}: {kind} {detail}" if detail else f"{self.stage.name}: {kind}")

    def progress(self, done: float, total: float, unit: str, note: str = "") -> None:
        """Say how far the work is."""
        self.services.announce(Progress(self.stage.name, done, total, unit, note))

    def shards(
        self,
        items: Sequence[T],
        work: Callable[[T, Path], dict[str, Any]],
        *,
        key: Callable[[T], Any],
        unit: str = "shards",
    ) -> list[Shard]:
        """Do sharded work: only what is missing, in any order, with the results in the items' order.

        `work(item, folder)` writes `<table>.<ext>` files into an empty folder and returns small metrics; it must be a
        module-level function (or a `partial` of one) and depend on nothing but the item and the identity in `key(item)`.
        A shard that this attempt, a killed attempt or an earlier artifact of the same stage has already made is not made again.
        The files become tables of the artifact, by their stem.
        """
        base = {"stage": self.stage.name, "version": self.stage.version}
        marks = [fingerprint_of({**base, "shard": key(item)}) for item in items]
        known = self.workspace.known_shards(self.stage.name, set(marks))
        todo = [
            (item, self.work / "shards" / mark)
            for mark, item in dict(zip(marks, items, strict=True)).items()
            if mark not in known and not (self.work / "shards" / mark / "shard.json").exists()
        ]
        started, total = len(marks) - len(todo), len(marks)
        counter = _Counter(lambda done: self.progress(started + done, total, unit))
        self.services.mapper(_ShardWork(work, counter), todo)
        result = []
        for mark in marks:
            if mark in known:
                record = known[mark]
                places = {table: self.workspace.shard_file(record, table) for table in record["files"]}
            else:
                record = read_json(self.work / "shards" / mark / "shard.json")
                places = {table: self.work / "shards" / mark / name for table, name in record["files"].items()}
            self._shards.append((mark, record))
            result.append(Shard(mark, places, record["metrics"], mark in known))
        return result


class _Counter:
    """Counts finished shards across threads; in another process it is a copy that nobody reads."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell, self.done, self.lock = tell, 0, threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Counter, (_silent,))

    def __call__(self) -> None:
        with self.lock:
            self.done += 1
            self.tell(self.done)


def _silent(done: int) -> None:
    """No one to tell in another process."""


@dataclass(frozen=True)
class _ShardWork:
    """Runs one shard in a fresh folder and commits it by writing `shard.json` last."""

    work: Callable[[Any, Path], dict[str, Any]]
    finished: Callable[[], None]

    def __call__(self, task: tuple[Any, Path]) -> None:
        item, folder = task
        remove_tree(folder)
        folder.mkdir(parents=True)
        metrics = self.work(item, folder)
        names = sorted(path.name for path in folder.iterdir())
        fault_point("shard.before_commit")
        record = {"files": {name.partition(".")[0]: name for name in names}, "metrics": metrics}
        write_json(folder / "shard.json", record)
        fault_point("shard.after_commit")
        self.finished()


def parameters_of(stage: Stage, config: BaseModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keyword arguments of the stage's function, and their identity (machine facts left out)."""
    arguments: dict[str, Any] = {}
    identity: dict[str, Any] = {}
    for section in stage.sections:
        value: Any = config
        for part in section.split("."):
            value = getattr(value, part)
        arguments[section.rpartition(".")[2]] = value
        identity[section] = identity_of(value)
    if stage.seeded:
        identity["seed"] = getattr(config, "seed", 0)
    if stage.outside:
        identity["outside"] = load(stage.outside)(**arguments)
    return arguments, identity


def _read_digests(stage: Stage, inputs: Mapping[str, Manifest]) -> dict[str, dict[str, Any]]:
    read: dict[str, dict[str, Any]] = {}
    for name, tables in stage.reads.items():
        manifest = inputs[name]
        digests = {t: fingerprint_of(manifest.details) if t == "details" else manifest.tables.get(t, "") for t in tables}
        read[name] = {"key": manifest.key, "tables": digests}
    return read


def recipe_fingerprint(stage: Stage, identity: Mapping[str, Any], inputs: Mapping[str, Manifest]) -> str:
    """The fingerprint of a recipe: stage, version, parameters that matter, digests of the tables that are read."""
    value: dict[str, Any] = {
        "stage": stage.name,
        "version": stage.version,
        "parameters": dict(identity),
        "inputs": {name: read["tables"] for name, read in _read_digests(stage, inputs).items()},
    }
    if stage.machine:
        value["machine"] = {"identity": machine_identity(), "versions": versions()}
    return fingerprint_of(value)


def find_reusable(
    workspace: Workspace, stage: Stage, fingerprint: str, *, log: Callable[[str], None], heal: bool = True
) -> tuple[Artifact | None, str]:
    """The artifact that can stand for a run of this recipe, or None and the reason. With `heal`, damaged ones go to quarantine."""
    reason = "not made yet"
    for key in reversed(workspace.store.generations(stage.name, fingerprint)):
        artifact = workspace.store.artifact(key)
        if damages := artifact.damages():
            path, what = next(iter(damages.items()))
            reason = f"damaged: {path}: {what}" + (f" and {len(damages) - 1} more" if len(damages) > 1 else "")
            if heal:
                aside = workspace.store.quarantine(key, workspace.quarantine_folder, reason)
                log(f"{stage.name}: {reason}; moved to {aside}, will be made again")
            continue
        if stage.intact and (reason := load(stage.intact)(artifact, workspace)):
            log(f"{stage.name}: {reason}")
            return None, str(reason)
        return artifact, ""
    return None, reason


def execute(
    workspace: Workspace,
    stage: Stage,
    config: BaseModel,
    inputs: Mapping[str, ArtifactRef],
    *,
    services: Services | None = None,
    force: bool = False,
    wait: bool = True,
) -> ArtifactRef:
    """Reuse or run a stage; the result is published, verified and small enough to travel.

    Args:
        workspace: where artifacts and work in progress lie.
        stage: the row of the table of stages.
        config: the whole (resolved) pipeline configuration; the stage sees its sections only.
        inputs: refs of the stages it reads.
        services: mapper, tracker, clock, progress.
        force: make it again, as a new generation of the same recipe.
        wait: wait for another run that makes the same artifact, instead of leaving.

    Raises:
        BusyError: another run makes the same artifact and `wait` is false.
        MillraceError: whatever the stage has to tell.
    """
    services = services or Services()
    arguments, identity = parameters_of(stage, config)
    artifacts = {name: workspace.store.artifact(inputs[name].key) for name in stage.reads}
    manifests = {name: artifact.manifest for name, artifact in artifacts.items()}
    fingerprint = recipe_fingerprint(stage, identity, manifests)
    if not force:
        found, _ = find_reusable(workspace, stage, fingerprint, log=services.log)
        if found:
            _warn_of_changed_code(stage, found, services)
            return found.ref(reused=True)
    with workspace.lease(f"{stage.name}-{fingerprint}", wait=wait, log=services.log):
        if not force:  # another run may have made it while this one waited
            found, _ = find_reusable(workspace, stage, fingerprint, log=services.log)
            if found:
                return found.ref(reused=True)
        generations = workspace.store.generations(stage.name, fingerprint)
        generation = int(generations[-1].rpartition(".")[2]) + 1 if generations else 0
        work = workspace.work_folder / f"{stage.name}-{fingerprint}.{generation}"
        run = StageRun(stage, fingerprint, workspace, artifacts, work, services, seed=getattr(config, "seed", 0))
        remove_tree(run.out)
        run.out.mkdir(parents=True)
        started, begin = services.clock(), time.monotonic()
        outcome: Outcome = load(stage.function)(run, **arguments)
        if {"in", "out"} <= outcome.counts.keys() and outcome.counts["in"] != outcome.counts["out"]:
            raise StageFailedError(
                f"{outcome.counts['in']} went in, {outcome.counts['out']} are accounted for: {outcome.counts}",
                where=f"stage {stage.name}",
                fix="this is a bug in the stage; nothing was published",
            )
        files, shards = _gather(run)
        tables = table_digests(files)
        manifest = Manifest(
            key=f"{stage.name}/{fingerprint}.{generation}",
            stage=stage.name,
            version=stage.version,
            kind=stage.kind,
            fingerprint=fingerprint,
            parameters=identity,
            inputs=_read_digests(stage, manifests),
            files=files,
            tables=tables,
            digest=output_digest(tables, outcome.details),
            metrics=outcome.metrics,
            counts=outcome.counts,
            summary=outcome.summary,
            details=outcome.details,
            shards=shards,
            parent=run.parent.manifest.digest if run.parent else "",
            tombstones=sorted(set(run.parent.manifest.shards) - set(shards)) if run.parent else [],
            events=run.events,
            started=started.isoformat(),
            seconds=round(time.monotonic() - begin, 3),
            peak_memory_bytes=peak_memory_bytes(),
            code={"revision": code_revision(), "digest": tree_digest(stage.package)},
            versions=versions(),
            machine=machine_identity(),
        )
        artifact = workspace.store.commit(run.out, manifest)
        remove_tree(work)
        return artifact.ref()


def _warn_of_changed_code(stage: Stage, artifact: Artifact, services: Services) -> None:
    if artifact.manifest.code.get("digest") not in {"", tree_digest(stage.package)}:
        services.log(
            f"{stage.name}: the code changed since this artifact was made, its version ({stage.version}) did not; "
            f"reused. `millrace run --from {stage.name} --force` makes it again"
        )


def _gather(run: StageRun) -> tuple[list[FileEntry], dict[str, dict[str, Any]]]:
    """Bring the new shards' files into `out`, refer to the old ones, and digest everything once."""
    entries: list[FileEntry] = []
    shards: dict[str, dict[str, Any]] = {}
    for mark, record in run._shards:
        if mark in shards:
            continue
        home = record.get("home", "")
        places = {}
        for table, name in sorted(record["files"].items()):
            if home:
                entries.append(FileEntry(**record["entries"][table]))
                places[table] = name
                continue
            target = run.path(table, mark + name[name.index(".") :])
            link_or_copy(run.work / "shards" / mark / name, target)  # the shard stays until the commit: a kill costs nothing
            places[table] = target.relative_to(run.out).as_posix()
            entries.append(_entry(run.out, target, table))
        shards[mark] = {"files": places, "metrics": record["metrics"], "home": home}
    seen = {entry.path for entry in entries if not entry.home}
    for path in sorted(path for path in run.out.rglob("*") if path.is_file()):
        relative = path.relative_to(run.out)
        if relative.as_posix() not in seen:
            entries.append(_entry(run.out, path, relative.parts[0]))
    return entries, shards


def _entry(root: Path, path: Path, table: str) -> FileEntry:
    return FileEntry(
        path=path.relative_to(root).as_posix(),
        table=table,
        size=path.stat().st_size,
        digest=file_digest(path),
        content=table != "observed",
    )


def peak_memory_bytes() -> int:
    """Peak resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def with_services(services: Services, **changes: Any) -> Services:
    """A copy with some services replaced."""
    return replace(services, **changes)
