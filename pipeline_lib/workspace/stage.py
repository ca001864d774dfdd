"""The stage contract: (input artifacts, parameters) → one artifact. One function, `execute`, is the only door to it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline_lib.config.identity import identity_of
from pipeline_lib.errors import DamagedError, NotFoundError, StageFailedError
from pipeline_lib.extensions import digests as extension_digests
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
from pipeline_lib.workspace.files import link_or_copy, remove_tree
from pipeline_lib.workspace.identity import file_digest, fingerprint_of, tree_digest
from pipeline_lib.workspace.machine import code_revision, machine_identity, versions
from pipeline_lib.workspace.peak import PeakMemory
from pipeline_lib.workspace.services import Progress, Services
from pipeline_lib.workspace.shards import Counter, Known, Shard, ShardWork, published_shards, salvage, shard_at
from pipeline_lib.workspace.stoppable import stoppable

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pipeline_lib.workspace.workspace import Workspace

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """A row of the table of stages (`pipeline_lib/stages.py`).

    `reads` names, for each input stage, the tables whose digests enter the fingerprint ("details" is a table of its own).
    `sections` are the configuration sections (or dotted single values) that the function gets as keyword arguments, named by
    their last component; they are its parameters. `uses` are functions from subjects to the right, injected by name so that
    the import order holds. `intact` is an extra test of reuse: `(artifact, workspace) -> reason it cannot be reused, or ""`.
    `outside` names what the stage reads beside artifacts (source files): `(**sections) -> JSON` with digests of their content,
    part of the fingerprint; without it a new file would go unnoticed. `forgets` names what the stage must leave out:
    `(workspace, **sections) -> digest, or "" for nothing`, part of the fingerprint where it is something.
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
    forgets: str = ""
    stoppable: bool = False  # looks at `services.should_stop`: a signal lets it save what is done before it ends
    extends: Sequence[str] = ()  # kinds of extensions the stage uses; their modules' digests enter the fingerprint

    def code_digest(self) -> str:
        """Digest of the package (of the file, for a lone module) whose code does the work; nothing of it is imported."""
        spec = importlib.util.find_spec(self.function.partition(":")[0])
        if spec is None or not spec.origin:
            return ""
        source = Path(spec.origin)
        return tree_digest(source.parent) if spec.parent else file_digest(source)


@dataclass
class Outcome:
    """What a stage function returns beside its files."""

    metrics: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # "in" and "out" must be equal where both are given
    summary: SummaryTable = field(default_factory=lambda: SummaryTable((), ()))
    details: dict[str, Any] = field(default_factory=dict)


def load(target: str) -> Any:
    """Import "module:name"."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


@dataclass
class StageRun:
    """What a stage function works with: its inputs, its folders, and the services around it.

    `parent` is the earlier artifact whose segments this one continues. `shards` sets it to the newest artifact that a
    shard was taken over from; a stage may set it itself. It is recorded in the manifest and never part of the output digest.
    """

    stage: Stage
    fingerprint: str
    workspace: Workspace
    inputs: Mapping[str, Artifact]
    work: Path  # survives a kill; named by the fingerprint and the generation
    services: Services
    seed: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    parent: Artifact | None = None
    key: str = ""  # of the artifact that is being made
    fresh: bool = False  # forced: nothing of earlier artifacts is taken over
    _shards: dict[str, Known] = field(default_factory=dict)

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
        folders = {mark: self.work / "shards" / mark for mark in marks}
        known = {mark: shard for mark, folder in folders.items() if (shard := shard_at(folder))}
        if not self.fresh:
            published, parent = published_shards(self.workspace, self.stage.name, folders.keys() - known.keys())
            known |= published
            self.parent = self.parent or parent
        todo = [(item, folders[mark]) for mark, item in dict(zip(marks, items, strict=True)).items() if mark not in known]
        started, total = len(folders) - len(todo), len(folders)
        self.progress(started, total, unit)
        counter = Counter(lambda done: self.progress(started + done, total, unit))
        self.services.mapper(ShardWork(work, counter), todo)
        for _, folder in todo:
            made = shard_at(folder)
            if made is None:
                raise DamagedError("a shard changed after it was made", where=str(folder), fix="run again; check the disk")
            known[folder.name] = made
        result = []
        for mark in marks:
            shard = self._shards[mark] = known[mark]
            if shard.folder:
                places = {table: shard.folder / entry.path for table, entry in shard.entries.items()}
            else:
                places = {}
                for table, entry in shard.entries.items():
                    self.workspace.store.bring(entry.home, [entry])
                    places[table] = self.workspace.store.place(entry.home, entry.path)
            result.append(Shard(mark, places, shard.metrics, reused=shard.folder is None))
        return result


def parameters_of(stage: Stage, config: BaseModel, workspace: Workspace) -> tuple[dict[str, Any], dict[str, Any]]:
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
    modules = getattr(getattr(config, "execution", None), "extensions", ())
    if registered := extension_digests(stage.extends, modules):  # loads the modules, so that the stage finds their objects
        identity["extensions"] = registered
    if stage.outside:
        identity["outside"] = load(stage.outside)(**arguments)
    if stage.forgets and (forgotten := load(stage.forgets)(workspace, **arguments)):
        identity["forgotten"] = forgotten
    return arguments, identity


def input_digests(stage: Stage, inputs: Mapping[str, Manifest]) -> dict[str, dict[str, Any]]:
    """What a stage reads: input stage → {"key", "tables": {table: digest}}."""
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
        "inputs": {name: read["tables"] for name, read in input_digests(stage, inputs).items()},
    }
    if stage.machine:
        value["machine"] = {"identity": machine_identity(), "versions": versions()}
    return fingerprint_of(value)


@dataclass(frozen=True)
class Look:
    """What a look for a reusable artifact found."""

    artifact: Artifact | None
    reason: str  # why there is none, "" when there is one
    damaged: Mapping[str, Mapping[str, str]]  # key -> damaged file -> what is wrong


def look(workspace: Workspace, stage: Stage, fingerprint: str, *, sample: bool = False) -> Look:
    """The newest intact artifact that can stand for a run of this recipe. Changes nothing but the memory of checked files."""
    reason = "not made yet"
    damaged: dict[str, dict[str, str]] = {}
    for key in reversed(workspace.store.generations(stage.name, fingerprint)):
        try:
            artifact = workspace.store.artifact(key)
            damages = artifact.damages(sample=sample)
        except NotFoundError:  # garbage collection was faster
            continue
        except DamagedError as error:
            damages = {"manifest.json": error.what}
        else:
            if artifact.manifest.supersedes:  # only its own recipe's bytes may stand for a recipe
                reason = "documents of it were forgotten"
                continue
        if damages:
            path, what = next(iter(damages.items()))
            more = f" and {len(damages) - 1} more" if len(damages) > 1 else ""
            reason, damaged[key] = f"damaged: {path}: {what}{more}", damages
            continue
        if stage.intact and (unfit := load(stage.intact)(artifact, workspace)):
            return Look(None, str(unfit), damaged)
        return Look(artifact, "", damaged)
    return Look(None, reason, damaged)


def _reusable(workspace: Workspace, stage: Stage, fingerprint: str) -> Look:
    """`look`, with the artifact protected from garbage collection."""
    found = look(workspace, stage, fingerprint, sample=True)
    if found.artifact and found.artifact.key not in workspace.use(found.artifact.key):
        return Look(None, "taken away by garbage collection", found.damaged)
    return found


def _heal(workspace: Workspace, stage: Stage, found: Look, services: Services) -> None:
    """Move what is damaged to quarantine; its intact shards become work in progress. The caller holds the stage's lease."""
    for key, damages in found.damaged.items():
        if key not in workspace.use(key):
            continue
        with contextlib.suppress(DamagedError):  # the manifest itself: nothing can be told apart
            salvage(workspace.store, workspace.store.manifest(key), damages, _work_folder(workspace, key))
        reason = "; ".join(f"{path}: {what}" for path, what in list(damages.items())[:10])
        aside = workspace.store.quarantine(key, reason, damages)
        services.log(f"{stage.name}: damaged ({reason}); moved to {aside}, will be made again")


def _work_folder(workspace: Workspace, key: str) -> Path:
    return workspace.work_folder / key.replace("/", "-")


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

    What comes back, and all it was made from, is protected from garbage collection until this process ends.

    Args:
        workspace: where artifacts and work in progress lie.
        stage: the row of the table of stages.
        config: the whole (resolved) pipeline configuration; the stage sees its sections only.
        inputs: refs of the stages it reads.
        services: mapper, tracker, clock, progress.
        force: make it again, as a new generation of the same recipe, taking over nothing from earlier ones.
        wait: wait for another run that makes the same artifact, instead of leaving.

    Raises:
        BusyError: another run makes the same artifact and `wait` is false.
        MillraceError: whatever the stage has to tell.
    """
    services = services or Services()
    arguments, identity = parameters_of(stage, config, workspace)
    artifacts = {name: workspace.artifact(inputs[name].key) for name in stage.reads}
    fingerprint = recipe_fingerprint(stage, identity, {name: artifact.manifest for name, artifact in artifacts.items()})
    if not force and (artifact := _reusable(workspace, stage, fingerprint).artifact):
        _warn_of_changed_code(stage, artifact, services)
        return artifact.ref(reused=True)
    with workspace.lease(f"{stage.name}-{fingerprint}", wait=wait, log=services.log):
        found = look(workspace, stage, fingerprint)
        _heal(workspace, stage, found, services)
        if not force:  # another run may have made it while this one waited
            if artifact := _reusable(workspace, stage, fingerprint).artifact:
                return artifact.ref(reused=True)
            if found.reason != "not made yet":
                services.log(f"{stage.name}: {found.reason}")
        generations = workspace.store.generations(stage.name, fingerprint)
        generation = int(generations[-1].rpartition(".")[2]) + 1 if generations else 0
        key = f"{stage.name}/{fingerprint}.{generation}"
        workspace.use(key)
        work = _work_folder(workspace, key)
        run = StageRun(
            stage, fingerprint, workspace, artifacts, work, services, seed=getattr(config, "seed", 0), key=key, fresh=force
        )
        remove_tree(run.out)
        run.out.mkdir(parents=True)
        started, begin = services.clock(), time.monotonic()
        with PeakMemory() as peak:
            outcome = _work(run, arguments)
            _check_counts(stage, outcome)
            files, shards = _gather(run)
        tables = table_digests(files)
        digest = output_digest(tables, outcome.details)
        _compare_generations(run, generations, digest)
        manifest = Manifest(
            key=key,
            stage=stage.name,
            version=stage.version,
            kind=stage.kind,
            fingerprint=fingerprint,
            parameters=identity,
            inputs=input_digests(stage, {name: artifact.manifest for name, artifact in artifacts.items()}),
            files=files,
            tables=tables,
            digest=digest,
            metrics=outcome.metrics,
            counts=outcome.counts,
            summary=outcome.summary,
            details=outcome.details,
            shards=shards,
            parent=run.parent.manifest.digest if run.parent else "",
            tombstones=sorted(run.parent.manifest.shards.keys() - shards.keys()) if run.parent else [],
            events=run.events,
            started=started.isoformat(),
            seconds=round(time.monotonic() - begin, 3),
            peak_memory_bytes=peak.bytes,
            code={"revision": code_revision(), "digest": stage.code_digest()},
            versions=versions(),
            machine=machine_identity(),
        )
        artifact = workspace.store.commit(run.out, manifest)
        remove_tree(work)
        return artifact.ref()


def _work(run: StageRun, arguments: Mapping[str, Any]) -> Outcome:
    function: Callable[..., Outcome] = load(run.stage.function)
    if not run.stage.stoppable:
        return function(run, **arguments)
    given = run.services

    def work(asked: Callable[[], bool]) -> Outcome:
        run.services = replace(given, should_stop=lambda: asked() or given.should_stop())
        return function(run, **arguments)

    return stoppable(work, log=given.log)


def _check_counts(stage: Stage, outcome: Outcome) -> None:
    if {"in", "out"} <= outcome.counts.keys() and outcome.counts["in"] != outcome.counts["out"]:
        raise StageFailedError(
            f"{outcome.counts['in']} went in, {outcome.counts['out']} are accounted for: {outcome.counts}",
            where=f"stage {stage.name}",
            fix="this is a bug in the stage; nothing was published",
        )


def _compare_generations(run: StageRun, generations: Sequence[str], digest: str) -> None:
    """A pure stage made again must give the same bytes; when it does not, the run says so."""
    if run.stage.kind == "pure" and generations:
        before = run.workspace.store.manifest(generations[-1]).digest
        if before != digest:
            run.event("output_differs", earlier=generations[-1], note="same recipe, other bytes: the code or the machine changed")


def _warn_of_changed_code(stage: Stage, artifact: Artifact, services: Services) -> None:
    if artifact.manifest.code.get("digest") not in {"", stage.code_digest()}:
        services.log(
            f"{stage.name}: the code changed since this artifact was made, its version ({stage.version}) did not; "
            f"reused. `millrace run --from {stage.name} --force` makes it again"
        )


def _gather(run: StageRun) -> tuple[list[FileEntry], dict[str, dict[str, Any]]]:
    """Bring the new shards' files into `out`, refer to the old ones, and digest the rest."""
    entries: list[FileEntry] = []
    shards: dict[str, dict[str, Any]] = {}
    for mark, shard in run._shards.items():
        homes = set()
        places = {}
        for table, given in sorted(shard.entries.items()):
            entry = given
            if shard.folder or entry.home == run.key:  # made now, or what is left of this very artifact, made again
                source = shard.folder / entry.path if shard.folder else run.workspace.store.place(run.key, entry.path)
                target = run.path(table, mark + "".join(source.suffixes))
                link_or_copy(source, target)  # the shard stays until the commit: a kill costs nothing
                entry = replace(entry, path=target.relative_to(run.out).as_posix(), home="")
            entries.append(entry)
            homes.add(entry.home)
            places[table] = entry.path
        (home,) = homes or {""}
        shards[mark] = {"files": places, "metrics": dict(shard.metrics), "home": home}
    gathered = {entry.path for entry in entries if not entry.home}
    for path in sorted(path for path in run.out.rglob("*") if path.is_file()):
        relative = path.relative_to(run.out)
        if relative.as_posix() not in gathered:
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
