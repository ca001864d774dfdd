"""Packings without forgotten documents: the ranges that hold one are packed again, under a new content digest.

Row numbers are what chunks know documents by, so they must hold: the row of a forgotten document is given to the next document of
its side (to the one before, at the end; to one of another side where its own has none), which so is packed twice, and its `pass`
becomes -1: a cache that continues this one buries it. A tombstone takes no one's place while its side has a living document.
A packing without any document left is removed with its cache and with those that continue it. Positions in the documents table
move when a document leaves it, and are looked up again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline_lib.errors import DamagedError, NotFoundError
from pipeline_lib.forgetting.segments import brought, manifests, revised, successor
from pipeline_lib.packing.cache import Recipe, ancestry, cache_behind, cache_folder, chunks_table, facts_of, remember
from pipeline_lib.packing.chunk import ChunkFacts, ChunkSettings
from pipeline_lib.packing.fill import SUMS
from pipeline_lib.packing.growth import NO_ROWS, bury, tombstones_of
from pipeline_lib.packing.manifest import append_chunk
from pipeline_lib.packing.ranges import SIDES, Range, locate, ranges_of
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import ROWS
from pipeline_lib.workspace.artifact import FileEntry, Manifest
from pipeline_lib.workspace.files import remove_tree
from pipeline_lib.workspace.resolve import key_of
from pipeline_lib.workspace.workspace import Workspace

STAND_IN = -1  # `pass` of a row that another document took


@dataclass(frozen=True)
class Packing:
    """What must be done to one packing."""

    key: str
    ranges: Sequence[str]  # chunks that hold something of it
    trained: bool  # something of it lies on the training side
    empty: bool  # no document is left


def packings(workspace: Workspace, ids: pa.Array) -> list[Packing]:
    """The packings that hold a forgotten document."""
    found = []
    for manifest in manifests(workspace.store):
        if manifest.stage != "pack":
            continue
        try:
            rows = _table(workspace, manifest, "rows")
            gone = _gone(rows, ids)
            held = [wanted.name for wanted in _ranges(workspace, manifest) if gone[_own(manifest, wanted)].any()]
        except DamagedError:
            continue  # `search` says so of every artifact
        if gone.any():
            trained = pc.any(pc.equal(rows.filter(pa.array(gone))["side"], "train")).as_py()
            found.append(Packing(manifest.key, held, bool(trained), bool(gone.all())))
    return found


def pack_again(workspace: Workspace, packing: Packing, ids: pa.Array, work: Path) -> None:
    """Make the chunks of the ranges concerned anew, then name them and the new rows in one step.

    Args:
        workspace: whose documents tables are already without the documents.
        packing: of `packings`.
        ids: the forgotten documents.
        work: an empty folder for new files.
    """
    if not workspace.store.has(packing.key):
        return  # continued one that was removed
    manifest = workspace.store.manifest(packing.key)
    if packing.empty:
        _remove(workspace, manifest)
        return
    rows_file = work / "rows.parquet"
    rows = _replaced(_table(workspace, manifest, "rows"), ids, _dead(workspace, manifest))
    write_table(_located(workspace, manifest, rows), rows_file)
    folder = cache_folder(workspace, manifest.details["cache"])
    folder.mkdir(parents=True, exist_ok=True)
    settings, first = ChunkSettings.of(manifest.details), manifest.details["first_row"]
    recipe = Recipe(folder, _tokenizer(workspace, manifest), _documents(workspace, manifest), rows_file, settings, first)
    concerned = [wanted for wanted in _ranges(workspace, manifest) if wanted.name in set(packing.ranges)]
    made = {facts.name: facts for one in concerned for facts in recipe.make([one])}
    for facts in made.values():
        append_chunk(folder, facts)
    remember(folder, list(made.values()))
    chunks = [made.get(facts.name, facts) for facts in _chunks(workspace, manifest)]
    sums = {name: {side: sum(getattr(c, name) for c in chunks if c.side == side) for side in SIDES} for name in SUMS}
    files = {"rows": rows_file, "chunks": _written(chunks_table(chunks), work / "chunks.parquet")}
    _publish(workspace, manifest, files, {**manifest.details, **sums})


def settle(workspace: Workspace, work: Path) -> None:
    """What follows from documents tables and packings that changed: positions in `rows`, and the chunks that `fill_gaps` trusts.

    Looks at what is there, not at what was done, so that it completes what a killed attempt left.
    """
    for number, manifest in enumerate(list(manifests(workspace.store))):
        place = work / f"settle-{number}"
        with contextlib.suppress(NotFoundError):  # what it was made from was collected as garbage: nothing more can come of it
            if manifest.stage == "pack":
                _settle_rows(workspace, manifest, place)
            if manifest.stage == "fill_gaps":
                _settle_chunks(workspace, manifest, place)


def _settle_rows(workspace: Workspace, manifest: Manifest, place: Path) -> None:
    rows = _table(workspace, manifest, "rows")
    located = _located(workspace, manifest, rows)
    if not located["document"].equals(rows["document"]):
        _publish(workspace, manifest, {"rows": _written(located, place / "rows.parquet")}, None)


def _settle_chunks(workspace: Workspace, manifest: Manifest, place: Path) -> None:
    """The chunks as the packings have them now, and which sequences hold nothing that lives."""
    pack = workspace.store.artifact(str(manifest.inputs["pack"]["key"]))
    theirs = {f.name: f for one in ancestry(workspace, pack) for f in _chunks(workspace, one.manifest)}
    mine = _chunks(workspace, manifest)
    now = [f if f.content_digest == theirs[f.name].content_digest else theirs[f.name] for f in mine]
    if now == mine:
        return
    sums = {
        name: {side: sum(getattr(f, name) for f in now if f.side == side) for side in SIDES} for name in ("sequences", "tokens")
    }
    files = {"chunks": _written(chunks_table(now), place / "chunks.parquet")}
    filled = workspace.store.artifact(manifest.key)
    if len(dead := tombstones_of(filled)):
        cache = cache_behind(workspace, filled)
        buried = bury(replace(cache, chunks={facts.name: facts for facts in now}), dead)
        files["gone"] = _written(buried.gone, place / "gone.parquet")
        for side in SIDES:
            sums["sequences"][side] -= buried.sequences[side]
            sums["tokens"][side] -= buried.tokens[side]
    _publish(workspace, manifest, files, {**manifest.details, **sums})


def _gone(rows: pa.Table, ids: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(pc.is_in(rows["doc_id"], value_set=ids).to_numpy(), dtype=bool)


def _dead(workspace: Workspace, manifest: Manifest) -> NDArray[np.int64]:
    """Which rows of a packing are tombstones in one that continues it."""
    heirs = _continuing(manifest.key, list(manifests(workspace.store)))
    found = [tombstones_of(workspace.store.artifact(heir.key)) for heir in heirs]
    return np.unique(np.concatenate([NO_ROWS, *found])) - int(manifest.details["first_row"])


def _replaced(rows: pa.Table, ids: pa.Array, dead: NDArray[np.int64]) -> pa.Table:
    """`rows` with each forgotten document's place taken by a neighbour, by one of `dead` only where no other is left."""
    gone = _gone(rows, ids)
    living = np.ones(len(gone), bool)
    living[dead[(dead >= 0) & (dead < len(gone))]] = False
    sides = pc.index_in(rows["side"], value_set=pa.array(SIDES)).to_numpy()
    taken = np.arange(rows.num_rows)
    for side in np.unique(sides[gone]):
        choices = ((sides == side) & ~gone & living, (sides == side) & ~gone, ~gone)
        stay = next(found for found in map(np.flatnonzero, choices) if len(found))
        lost = np.flatnonzero((sides == side) & gone)
        taken[lost] = stay[np.minimum(np.searchsorted(stay, lost), len(stay) - 1)]
    columns = {name: rows[name] if name == "side" else rows[name].take(pa.array(taken)) for name in rows.column_names}
    columns["pass"] = pa.array(np.where(gone, STAND_IN, rows["pass"].to_numpy()), pa.int32())
    return pa.table(columns, rows.schema)


def _located(workspace: Workspace, manifest: Manifest, rows: pa.Table) -> pa.Table:
    """`rows` with the positions that the documents have now."""
    positions = locate(rows["doc_id"].combine_chunks(), _documents(workspace, manifest))
    return rows.set_column(rows.column_names.index("document"), ROWS.field("document"), pa.array(positions, pa.int64()))


def _documents(workspace: Workspace, manifest: Manifest) -> tuple[Path, ...]:
    """Files of the documents that a packing was made of.

    Raises:
        NotFoundError: they are gone.
    """
    documents = workspace.store.manifest(str(manifest.inputs["ingest"]["key"]))
    entries = [entry for entry in documents.files if entry.table == "documents"]
    return tuple(brought(workspace.store, entry.home or documents.key, entry) for entry in entries)


def _table(workspace: Workspace, manifest: Manifest, name: str) -> pa.Table:
    (entry,) = [entry for entry in manifest.files if entry.table == name]
    return pq.read_table(brought(workspace.store, entry.home or manifest.key, entry))


def _ranges(workspace: Workspace, manifest: Manifest) -> list[Range]:
    return ranges_of(_table(workspace, manifest, "ranges"))


def _own(manifest: Manifest, wanted: Range) -> slice:
    """The rows of a range in the table `rows` of its packing."""
    first = int(manifest.details["first_row"])
    return slice(wanted.first_row - first, wanted.last_row - first + 1)


def _chunks(workspace: Workspace, manifest: Manifest) -> list[ChunkFacts]:
    return facts_of(_table(workspace, manifest, "chunks"))


def _tokenizer(workspace: Workspace, manifest: Manifest) -> Path:
    """tokenizer.json, with the files beside it that say how conversations are written."""
    entries = [entry for entry in manifest.files if entry.table == "tokenizer"]
    places = [brought(workspace.store, entry.home or manifest.key, entry) for entry in entries]
    return next(path for path in places if path.name == "tokenizer.json")


def _written(table: pa.Table, path: Path) -> Path:
    write_table(table, path)
    return path


def _publish(workspace: Workspace, manifest: Manifest, files: Mapping[str, Path], details: dict[str, Any] | None) -> None:
    """Revise an artifact whose tables `files` have one file each."""
    old: dict[str, FileEntry] = {entry.table: entry for entry in manifest.files if entry.table in files}
    fresh = {table: successor(old[table], path) for table, path in files.items()}
    instead = {(manifest.key, old[table].path): entry for table, entry in fresh.items()}
    workspace.store.revise(revised(manifest, instead, details), {fresh[table].path: path for table, path in files.items()})


def _remove(workspace: Workspace, manifest: Manifest) -> None:
    """A packing that cannot be: with what continues it, what vouches for their caches, and the caches."""
    known = list(manifests(workspace.store))
    doomed = {manifest.key, *(heir.key for heir in _continuing(manifest.key, known))}
    caches = {m.details["cache"] for m in known if m.key in doomed}
    filled = [m.key for m in known if m.stage == "fill_gaps" and m.details["cache"] in caches]
    for key in [*filled, *sorted(doomed)]:
        if folder := workspace.store.take_away(key):
            remove_tree(folder)
    for cache in caches:
        remove_tree(cache_folder(workspace, cache))


def _continuing(key: str, known: Sequence[Manifest]) -> list[Manifest]:
    """The packings that continue one, directly or not."""
    found: dict[str, Manifest] = {}
    while more := [m for m in known if m.stage == "pack" and m.key not in found and key_of(m.details["parent"]) in {key, *found}]:
        found.update((m.key, m) for m in more)
    return list(found.values())
