"""Segments without forgotten documents: which files of the artifacts hold one, and the file that takes the place of each.

Rows are taken out of every Parquet table that knows documents by id. Two tables are special: of a `quarantine` row only the
excerpt goes, so that the records still add up; `rows` and `chunks` of a packing are a matter of `packed.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.errors import DamagedError, MillraceError
from pipeline_lib.tables.parquet import write_batches
from pipeline_lib.tables.schemas import DOC_ID
from pipeline_lib.workspace.artifact import FileEntry, Manifest, output_digest, table_digests
from pipeline_lib.workspace.identity import file_digest
from pipeline_lib.workspace.store import Store

ID_COLUMNS = ("doc_id", "doc_id_a", "doc_id_b")
ASKED = ("scores", "overlap")  # documents by hexadecimal id in suite `language`
PACKED = ("rows", "chunks")
WHOLE = ("boilerplate",)  # lines of texts, without the ids of the documents they come from


@dataclass(frozen=True)
class Wanted:
    """What is looked for."""

    ids: pa.Array  # doc_id
    sources: frozenset[str]  # of these documents
    whole: frozenset[str]  # sources of which everything goes

    @property
    def hexes(self) -> pa.Array:
        """The ids as the table `scores` has them."""
        return pa.array([doc_id.hex() for doc_id in self.ids.to_pylist()], pa.string())


@dataclass(frozen=True)
class Segment:
    """A file that holds something of it. A file that several artifacts share is one segment, of the artifact that has it."""

    key: str
    entry: FileEntry  # as its own artifact names it, without home
    rows: int  # that go

    @property
    def place(self) -> tuple[str, str]:
        """Where it lies: artifact and path."""
        return self.key, self.entry.path


@dataclass
class Found:
    """What a search of all artifacts found."""

    segments: list[Segment] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)  # artifact → what is wrong with it: nobody knows what it holds


def search(store: Store, wanted: Wanted) -> Found:
    """Every file of every artifact that holds a wanted document; each file is read once, its ids only."""
    found = Found()
    seen: set[tuple[str, str]] = set()
    for manifest in manifests(store):
        for entry in manifest.files:
            home = entry.home or manifest.key
            if (home, entry.path) in seen or not entry.path.endswith(".parquet"):
                continue
            seen.add((home, entry.path))
            own = replace(entry, home="")
            try:
                rows = rows_of(brought(store, home, own), own.table, wanted)
            except (MillraceError, pa.ArrowException, OSError) as error:
                found.unreadable[home] = f"{entry.path}: {error}"
                continue
            if rows:
                found.segments.append(Segment(home, own, rows))
        lines = [entry for entry in manifest.files if entry.table in WHOLE and not entry.home]
        if lines and _holds(manifest.files, manifest.key, found):
            found.segments += [Segment(manifest.key, entry, rows) for entry in lines if (rows := _length(store, manifest, entry))]
    return found


def _length(store: Store, manifest: Manifest, entry: FileEntry) -> int:
    return int(pq.read_metadata(brought(store, manifest.key, entry)).num_rows)


def _holds(entries: Sequence[FileEntry], key: str, found: Found) -> bool:
    places = {segment.place for segment in found.segments}
    return any((entry.home or key, entry.path) in places for entry in entries)


def manifests(store: Store) -> Iterator[Manifest]:
    """All manifests that can be read."""
    for key in list(store.keys()):
        try:
            yield store.manifest(key)
        except MillraceError:
            continue


def brought(store: Store, key: str, entry: FileEntry) -> Path:
    """A file of an artifact, here and intact.

    Raises:
        DamagedError: it is missing, or not what was committed.
    """
    store.bring(key, [entry])
    for reason in store.damages(key, [entry]).values():
        raise DamagedError(reason, where=f"{key}/{entry.path}")
    return store.place(key, entry.path)


def rows_of(path: Path, table: str, wanted: Wanted) -> int:
    """How many rows of a file hold something wanted."""
    if table in PACKED or table in WHOLE:
        return 0
    with pq.ParquetFile(path) as parquet:
        names = [name for name in _columns(parquet.schema_arrow, table) if name in parquet.schema_arrow.names]
        if not names:
            return 0
        batches = parquet.iter_batches(columns=names, use_threads=False)
        return sum(int(pc.sum(hits(pa.Table.from_batches([b]), table, wanted), min_count=0).as_py()) for b in batches)


def _columns(schema: pa.Schema, table: str) -> tuple[str, ...]:
    if table == "quarantine":
        return ("doc_id", "source", "head")
    if table in ASKED:
        return ("suite", "item")
    known = (schema.field(name) for name in ID_COLUMNS if name in schema.names)
    return tuple(column.name for column in known if column.type == DOC_ID)


def hits(rows: pa.Table, table: str, wanted: Wanted) -> pa.ChunkedArray:
    """Which rows hold something wanted: a boolean each, no nulls."""
    if table == "quarantine":
        named = pc.is_in(rows["source"], value_set=pa.array(sorted(wanted.whole), pa.string()))
        if "doc_id" in rows.column_names:
            named = pc.or_(named, pc.is_in(rows["doc_id"], value_set=wanted.ids))
        else:  # of a time before quarantine knew ids: every excerpt of the source may be of it
            named = pc.is_in(rows["source"], value_set=pa.array(sorted(wanted.sources), pa.string()))
        return pc.and_(named, pc.greater(pc.fill_null(pc.binary_length(rows["head"]), 0), 0))
    if table in WHOLE:
        return pa.chunked_array([pa.repeat(pa.scalar(True), rows.num_rows)])
    if table in ASKED:
        return pc.and_(pc.equal(rows["suite"], "language"), pc.is_in(rows["item"], value_set=wanted.hexes))
    found = pa.chunked_array([pa.repeat(pa.scalar(False), rows.num_rows)])
    for name in _columns(rows.schema, table):
        found = pc.or_(found, pc.is_in(rows[name], value_set=wanted.ids))
    return found


def rewrite(source: Path, target: Path, table: str, wanted: Wanted) -> None:
    """Write a file again without what is wanted, row group by row group."""

    def batches() -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(source) as parquet:
            for group in range(parquet.num_row_groups):
                rows = parquet.read_row_group(group, use_threads=False)
                gone = hits(rows, table, wanted)
                if table == "quarantine":
                    silent = pc.if_else(gone, b"", rows["head"])
                    rows = rows.set_column(rows.column_names.index("head"), "head", silent.cast(pa.binary()))
                else:
                    rows = rows.filter(pc.invert(gone))
                yield from rows.combine_chunks().to_batches()

    write_batches(batches(), pq.read_schema(source).remove_metadata(), target)


def successor(entry: FileEntry, path: Path) -> FileEntry:
    """The entry of the file that takes an entry's place: same table and name, in a folder of its own."""
    digest, parts = file_digest(path), PurePosixPath(entry.path).parts
    return replace(entry, path=f"{parts[0]}/{digest[:8]}/{parts[-1]}", size=path.stat().st_size, digest=digest)


def revised(
    manifest: Manifest, instead: Mapping[tuple[str, str], FileEntry], details: Mapping[str, object] | None = None
) -> Manifest:
    """A manifest that names the successors. Its digest is a new one, and the old one is remembered; a shard that changed is no
    shard any more, because its recipe would give other bytes.

    Args:
        manifest: as it is.
        instead: (artifact, path) of a file → the entry of its successor in the same artifact, without home.
        details: new details; None: as they are.
    """

    def place(home: str, path: str) -> tuple[str, str]:
        return home or manifest.key, path

    files = [
        replace(instead[place(entry.home, entry.path)], home=entry.home) if place(entry.home, entry.path) in instead else entry
        for entry in manifest.files
    ]
    shards = {
        mark: record
        for mark, record in manifest.shards.items()
        if not any(place(record["home"], path) in instead for path in record["files"].values())
    }
    told = dict(manifest.details if details is None else details)
    tables = table_digests(files)
    return replace(
        manifest,
        files=files,
        shards=shards,
        tables=tables,
        details=told,
        digest=output_digest(tables, told),
        supersedes=[*manifest.supersedes, manifest.digest],
    )


def cut(store: Store, segments: Sequence[Segment], wanted: Wanted, work: Path) -> list[str]:
    """Write the successors of segments and let every artifact that names one name its successor; returns these artifacts' keys.

    Args:
        store: where the artifacts lie.
        segments: of `search`.
        wanted: what goes.
        work: an empty folder for new files.
    """
    instead: dict[tuple[str, str], FileEntry] = {}
    for number, segment in enumerate(segments):
        path = work / str(number) / PurePosixPath(segment.entry.path).name
        rewrite(brought(store, segment.key, segment.entry), path, segment.entry.table, wanted)
        instead[segment.place] = successor(segment.entry, path)
        store.add(segment.key, {instead[segment.place].path: path})
    keys = []
    for manifest in list(manifests(store)):
        if any((entry.home or manifest.key, entry.path) in instead for entry in manifest.files):
            store.revise(revised(manifest, instead), {})
            keys.append(manifest.key)
    return keys
