"""What a stage published: an immutable folder whose manifest names every file with size and digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline_lib.errors import ConfigError, DamagedError
from pipeline_lib.workspace.identity import fingerprint_of

if TYPE_CHECKING:
    from pipeline_lib.workspace.store import Store

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
    supersedes: list[str] = field(default_factory=list)  # its digests of before documents in it were forgotten

    def was(self, digest: str) -> bool:
        """Whether this is the artifact that had this output digest, forgotten documents aside."""
        return digest == self.digest or digest in self.supersedes

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Manifest:
        """From `to_json`'s output.

        Raises:
            ConfigError: a newer version of millrace wrote it.
        """
        fields = dict(value)
        if fields["format"] > MANIFEST_FORMAT:
            raise ConfigError(
                f"{fields['key']} has manifest format {fields['format']}, this version knows up to {MANIFEST_FORMAT}",
                fix="install the version of millrace that wrote it, or newer",
            )
        fields["files"] = [FileEntry(**entry) for entry in fields["files"]]
        fields["summary"] = SummaryTable(**fields["summary"])
        return cls(**fields)


def table_digests(files: Sequence[FileEntry]) -> dict[str, str]:
    """Digest of each table's content: its files' digests in order. Where files lie and what they are called is not content."""
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
    store: Store

    @property
    def key(self) -> str:
        """`<stage>/<fingerprint>.<generation>`."""
        return self.manifest.key

    @property
    def folder(self) -> Path:
        """The artifact's own folder on this machine, complete."""
        own = [entry for entry in self.manifest.files if not entry.home]
        self.store.bring(self.key, own)
        return self.store.folder(self.key)

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
        """Where a file lies (or will lie, once brought) on this machine."""
        return self.store.place(entry.home or self.key, entry.path)

    def files(self, table: str, *, verify: bool = True) -> list[Path]:
        """The files of a table in order, each checked against the manifest before it is handed out.

        Raises:
            KeyError: the artifact has no such table.
            DamagedError: a file is missing or is not what was committed.
        """
        entries = [entry for entry in self.manifest.files if entry.table == table]
        if not entries and table not in self.manifest.tables:
            raise KeyError(f"{self.key} has no table {table!r}; it has {sorted({e.table for e in self.manifest.files})}")
        self.store.bring(self.key, entries)
        if verify:
            for path, reason in self.store.damages(self.key, entries).items():
                fix = f"run the pipeline again: stage {self.manifest.stage} is remade"
                raise DamagedError(reason, where=f"{self.key}/{path}", fix=fix)
        return [self.place(entry) for entry in entries]

    def file(self, table: str, *, verify: bool = True) -> Path:
        """The only file of a table."""
        (path,) = self.files(table, verify=verify)
        return path

    def damages(self, *, full: bool = False, sample: bool = False) -> dict[str, str]:
        """Every damaged file with its reason; empty when intact.

        Args:
            full: digest every file.
            sample: digest one file even if it looks unchanged, another one each time.
        """
        return self.store.damages(self.key, self.manifest.files, full=full, sample=sample)
