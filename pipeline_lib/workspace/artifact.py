"""What a stage published: an immutable folder whose manifest names every file with size and digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline_lib.errors import DamagedError
from pipeline_lib.workspace.files import read_json, write_json
from pipeline_lib.workspace.identity import file_digest, fingerprint_of

MANIFEST_FORMAT = 1
Kind = Literal["pure", "recorded"]


@dataclass(frozen=True)
class ArtifactRef:
    """The small JSON that travels between tasks: which artifact, and its headline."""

    stage: str
    key: str  # "<stage>/<fingerprint>.<generation>"
    digest: str  # output digest over the content files
    reused: bool = False
    metrics: Mapping[str, float | int | str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """The recipe's fingerprint, without the generation."""
        return self.key.rpartition("/")[2].partition(".")[0]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ArtifactRef:
        """From `to_json`'s output."""
        return cls(**value)


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact.

    `path` is relative to the artifact's folder, always POSIX. A file of an earlier segment is not copied: `home` is the key of
    the artifact that physically holds it, and `path` is its place there.
    """

    path: str
    table: str
    size: int
    digest: str
    content: bool = True  # False: observed, digested for integrity, promising nothing
    home: str = ""


@dataclass(frozen=True)
class SummaryTable:
    """The one small table that terminal, Prefect, MLflow and report all show. Cells are text or numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | float | int]]
    title: str = ""


@dataclass(frozen=True)
class Manifest:
    """Everything known about an artifact; written last, so its presence is the commit."""

    key: str
    stage: str
    version: int
    kind: Kind
    fingerprint: str
    parameters: dict[str, Any]
    inputs: dict[str, dict[str, Any]]  # stage -> {"key": ..., "tables": {table: digest}}
    files: list[FileEntry]
    tables: dict[str, str]  # table -> digest over its content files, in order
    digest: str
    metrics: dict[str, Any]
    counts: dict[str, int]
    summary: SummaryTable
    details: dict[str, Any]  # stage-specific small JSON that later stages read (part of the output digest)
    shards: dict[str, dict[str, Any]]  # shard fingerprint -> {"files": {table: path}, "metrics": ...}
    parent: str  # output digest of the artifact whose segments are continued, "" at the start of a chain
    tombstones: list[str]  # shard fingerprints of the parent that are retired
    events: list[dict[str, Any]]
    started: str
    seconds: float
    peak_memory_bytes: int
    code: dict[str, str]  # {"revision": git, "digest": of the stage's package}
    versions: dict[str, str]
    machine: dict[str, Any]
    format: int = MANIFEST_FORMAT

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """From `to_json`'s output."""
        fields = dict(value)
        fields["files"] = [FileEntry(**entry) for entry in fields["files"]]
        fields["summary"] = SummaryTable(**fields["summary"])
        return cls(**fields)


def table_digests(files: Sequence[FileEntry]) -> dict[str, str]:
    """Digest of each table's content: its files' digests in order. Where the files lie and what they are called is not content."""
    tables: dict[str, list[str]] = {}
    for entry in files:
        if entry.content:
            tables.setdefault(entry.table, []).append(entry.digest)
    return {table: fingerprint_of(digests) for table, digests in sorted(tables.items())}


def output_digest(tables: Mapping[str, str], details: Mapping[str, Any]) -> str:
    """The promise of an artifact as one digest."""
    return fingerprint_of({"tables": dict(tables), "details": dict(details)})


@dataclass(frozen=True)
class Artifact:
    """A published artifact whose files can be read here."""

    manifest: Manifest
    roots: Mapping[str, Path]  # artifact key -> local folder, for the artifact itself and every home

    @property
    def key(self) -> str:
        """`<stage>/<fingerprint>.<generation>`."""
        return self.manifest.key

    @property
    def folder(self) -> Path:
        """The artifact's own folder."""
        return self.roots[self.manifest.key]

    @property
    def details(self) -> dict[str, Any]:
        """The stage-specific small JSON."""
        return self.manifest.details

    @property
    def metrics(self) -> dict[str, Any]:
        """The stage's metrics."""
        return self.manifest.metrics

    def ref(self, *, reused: bool = False) -> ArtifactRef:
        """The small JSON that stands for this artifact."""
        headline = {k: v for k, v in self.manifest.metrics.items() if isinstance(v, int | float | str)}
        return ArtifactRef(self.manifest.stage, self.key, self.manifest.digest, reused, headline)

    def place(self, entry: FileEntry) -> Path:
        """Where a file lies on this machine."""
        return self.roots[entry.home or self.key] / entry.path

    def files(self, table: str, *, verify: bool = True) -> list[Path]:
        """The files of a table in order, each checked against the manifest before it is handed out.

        Raises:
            KeyError: the artifact has no such table.
            DamagedError: a file is missing or is not what was committed.
        """
        entries = [entry for entry in self.manifest.files if entry.table == table]
        if not entries and table not in self.manifest.tables:
            raise KeyError(f"{self.key} has no table {table!r}; it has {sorted({e.table for e in self.manifest.files})}")
        if verify:
            for entry in entries:
                if reason := self.damage(entry):
                    raise DamagedError(reason, where=str(self.place(entry)), fix="run the pipeline again: the stage is remade")
        return [self.place(entry) for entry in entries]

    def file(self, table: str, *, verify: bool = True) -> Path:
        """The only file of a table."""
        (path,) = self.files(table, verify=verify)
        return path

    def damage(self, entry: FileEntry, *, full: bool = False) -> str:
        """What is wrong with a file, or "". Size, time and inode answer at once; a full digest when they differ or `full`."""
        path = self.place(entry)
        try:
            stat = path.stat()
        except FileNotFoundError:
            return "file is missing"
        if stat.st_size != entry.size:
            return f"size is {stat.st_size}, committed were {entry.size} bytes"
        seen = _Seen(self.roots[entry.home or self.key])
        fact = [stat.st_mtime_ns, stat.st_ino]
        if not full and seen.facts.get(entry.path) == fact:
            return ""
        if file_digest(path) != entry.digest:
            return "bytes differ from what was committed"
        seen.remember(entry.path, fact)
        return ""

    def damages(self, *, full: bool = False) -> dict[str, str]:
        """Every damaged file with its reason; empty when intact."""
        found = {entry.path: self.damage(entry, full=full) for entry in self.manifest.files}
        return {path: reason for path, reason in found.items() if reason}


class _Seen:
    """Which (time, inode) of a file had the right digest; a local convenience beside the manifest, never trusted for content."""

    NAME = ".seen.json"

    def __init__(self, folder: Path) -> None:
        self.path = folder / self.NAME
        try:
            self.facts: dict[str, list[int]] = read_json(self.path)
        except (FileNotFoundError, ValueError):
            self.facts = {}

    def remember(self, path: str, fact: list[int]) -> None:
        self.facts[path] = fact
        write_json(self.path, self.facts)


def remember_all(folder: Path, files: Sequence[FileEntry]) -> None:
    """After a commit, note time and inode of every own file: its bytes were digested a moment ago."""
    facts = {}
    for entry in files:
        if not entry.home:
            stat = (folder / entry.path).stat()
            facts[entry.path] = [stat.st_mtime_ns, stat.st_ino]
    write_json(folder / _Seen.NAME, facts)
