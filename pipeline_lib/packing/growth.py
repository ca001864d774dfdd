"""Growth: a `pack` that continues an earlier one adds chunks for what is new and leaves every earlier chunk as it is.

Rows and chunks of the earlier cache keep their numbers. A row of it that is selected no more is a tombstone: from this era on
no reader returns its tokens, and a sequence that holds nothing else leaves the order. The bytes go when a later `pack` starts
afresh.
An *era* is the number of times a cache was continued; an earlier era stays what it was for whoever reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.errors import DamagedError, StageFailedError
from pipeline_lib.packing.cache import ancestry
from pipeline_lib.packing.manifest import glance
from pipeline_lib.packing.ranges import SIDES
from pipeline_lib.packing.sequences import Chunk
from pipeline_lib.tables.ids import ids_of, is_in_sorted
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.tables.schemas import GONE, ROWS, TOMBSTONES
from pipeline_lib.workspace.resolve import PREFIX, key_of, reference

if TYPE_CHECKING:
    from pipeline_lib.packing.cache import Cache
    from pipeline_lib.packing.chunk import ChunkFacts
    from pipeline_lib.workspace.artifact import Artifact
    from pipeline_lib.workspace.workspace import Workspace

DEAD_SHARE = 0.25  # of the estimated tokens of all rows; with more tombstones a cache is packed afresh, without them
KEY = np.dtype([("doc_id", "S16"), ("text_hash", "S16"), ("cuts", "<u8"), ("pass", "<i4"), ("side", "i1")])
NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True)
class Start:
    """What `pack` packs now, and where its numbers begin."""

    rows: pa.Table  # schema ROWS, to pack now
    era: int = 0
    parent: str = ""  # reference of the pack that is continued
    first_row: int = 0
    first_chunks: Mapping[str, int] | None = None
    tombstones: np.ndarray = field(default_factory=lambda: NO_ROWS)  # int64, rows of the parents, ascending


def parent_named(workspace: Workspace, named: str) -> Artifact | None:
    """The `pack` artifact that `pack.parent` names, or None.

    Raises:
        StageFailedError: the name was not resolved, or the artifact is another one than at the start of the run.
        NotFoundError: it is gone.
    """
    if named == "none":
        return None
    if not named.startswith(PREFIX):
        fix = "use `previous` or `none`; a run resolves `previous` when it starts"
        raise StageFailedError(f"pack.parent = {named!r} is not an artifact", where="stage pack", fix=fix)
    parent = workspace.artifact(key_of(named))
    if not parent.manifest.was(named.partition("#")[2]):
        raise StageFailedError(
            f"{parent.key} is not what it was when this run started", where="stage pack", fix="start a new run"
        )
    return parent


def start_from(workspace: Workspace, parent: Artifact | None, planned: pa.Table) -> tuple[Start, str]:
    """What is to pack when a cache is continued; everything that is planned, without a parent or where too much of it is dead.

    Args:
        workspace: where earlier packs lie.
        parent: the `pack` artifact that is continued.
        planned: rows of the selection, schema ROWS.

    Returns:
        The start, and why the parent is not continued ("" when it is, or when there is none).
    """
    if parent is None:
        return Start(planned), ""
    packs = ancestry(workspace, parent)
    before = pa.concat_tables([pq.read_table(pack.file("rows")).cast(ROWS) for pack in packs])
    dead = np.zeros(before.num_rows, bool)
    dead[tombstones_of(parent)] = True
    alive = np.flatnonzero(~dead)
    old, new = _keys(before).take(pa.array(alive)), _keys(planned)
    dead[alive[pc.is_null(pc.index_in(old, value_set=new)).to_numpy(zero_copy_only=False)]] = True
    tokens = before["est_tokens"].to_numpy()
    share = float(tokens[dead].sum() / max(tokens.sum(), 1))
    if share > DEAD_SHARE:
        return Start(planned), f"{share:.0%} of its tokens are of documents that are no longer selected"
    ranges = pa.concat_tables([pq.read_table(pack.file("ranges")) for pack in packs])
    next_chunks = {side: ranges.filter(pc.equal(ranges["side"], side)).num_rows for side in SIDES}
    added = planned.filter(pc.is_null(pc.index_in(new, value_set=old)))
    return Start(
        added,
        int(parent.details["era"]) + 1,
        reference(parent.key, parent.manifest.digest),
        before.num_rows,
        next_chunks,
        np.flatnonzero(dead),
    ), ""


def _keys(rows: pa.Table) -> pa.Array:
    """What makes a row the same one: side, pass, document, text and what is left out of it; fixed-size binary."""
    keys = np.zeros(rows.num_rows, KEY)
    keys["doc_id"] = ids_of(rows["doc_id"])
    keys["text_hash"] = ids_of(pc.fill_null(rows["text_hash"], bytes(16)))
    keys["cuts"] = _list_hashes(rows["cuts"].combine_chunks())
    keys["pass"] = rows["pass"].to_numpy()
    keys["side"] = pc.index_in(rows["side"], value_set=pa.array(SIDES)).to_numpy()
    return pa.Array.from_buffers(pa.binary(KEY.itemsize), rows.num_rows, [None, pa.py_buffer(keys.tobytes())])


def _list_hashes(lists: pa.ListArray) -> np.ndarray:
    """A number for each list of int64, uint64[n]; 0 for null. Numbers and their places are mixed as splitmix64 does."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    values = lists.flatten().to_numpy().astype(np.uint64)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(values)) - (np.cumsum(lengths) - lengths)[owner]
    mixed = values + (place.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    found = np.zeros(len(lengths), np.uint64)
    np.add.at(found, owner, mixed)
    return found


def tombstones_of(artifact: Artifact) -> np.ndarray:
    """Rows that are dead as of a `pack` or `fill_gaps` artifact, int64, ascending."""
    return np.asarray(_table(artifact, "tombstones", TOMBSTONES)["row"].to_numpy())


def tombstones_table(rows: np.ndarray) -> pa.Table:
    """Schema TOMBSTONES."""
    return pa.table({"row": pa.array(rows, pa.int64())}, schema=TOMBSTONES)


def gone_of(artifact: Artifact, side: str) -> np.ndarray:
    """Sequences of a side that left the order, as of a `fill_gaps` artifact, int64, ascending."""
    gone = _table(artifact, "gone", GONE)
    return np.asarray(gone.filter(pc.equal(gone["side"], side))["sequence"].to_numpy())


def _table(artifact: Artifact, name: str, schema: pa.Schema) -> pa.Table:
    """A table that is only there where a cache has tombstones."""
    return read_tables(artifact.files(name)) if name in artifact.manifest.tables else schema.empty_table()


@dataclass(frozen=True)
class Buried:
    """What tombstones take out of a cache."""

    gone: pa.Table  # schema GONE
    sequences: Mapping[str, int]  # by side
    tokens: Mapping[str, int]


def bury(cache: Cache, dead: np.ndarray) -> Buried:
    """Find the sequences that hold nothing but tombstones, reading only chunks whose range has one.

    Args:
        cache: a chunk that turns out to be damaged, although size and time did not tell, is made again.
        dead: int64, ascending: rows that are tombstones.
    """
    spans = {name: (r.first_row, r.last_row) for link in cache.links for name, r in link.ranges.items()}
    gone: dict[str, list[np.ndarray]] = {side: [] for side in SIDES}
    tokens = dict.fromkeys(SIDES, 0)
    first = dict.fromkeys(SIDES, 0)
    for name, facts in cache.chunks.items():
        low, high = np.searchsorted(dead, spans[name][0]), np.searchsorted(dead, spans[name][1], side="right")
        if high > low:
            chunk = _opened(cache, facts)
            _, starts, lengths = chunk.lengths
            buried = is_in_sorted(chunk.provenance[0], dead)
            living = np.add.reduceat(~buried, starts[:-1], dtype=np.int64)
            gone[facts.side].append(np.flatnonzero(living == 0) + first[facts.side])
            tokens[facts.side] += int(lengths[buried].sum())
        first[facts.side] += facts.sequences
    found = {side: np.concatenate([NO_ROWS, *parts]) for side, parts in gone.items()}
    table = pa.table(
        {"side": np.repeat(SIDES, [len(found[side]) for side in SIDES]), "sequence": np.concatenate(list(found.values()))}
    )
    return Buried(table.cast(GONE), {side: len(found[side]) for side in SIDES}, tokens)


def _opened(cache: Cache, facts: ChunkFacts) -> Chunk:
    try:
        return Chunk(facts, cache.folder)
    except DamagedError:
        (healed,) = cache.heal([facts.name])
        return Chunk(healed, cache.folder)


def eras_after(folder: Path) -> list[Mapping[str, Any]]:
    """The caches that continue the one in `folder`, oldest first: {"era", "cache", "sequences", "tokens"}.

    Cheap enough to ask between steps: it looks at a file an era, and reads it when it has changed. Where two continue the same
    cache, the later one counts.
    """
    found: list[Mapping[str, Any]] = []
    while grown := glance(folder).grown:
        found.append(grown[-1])
        folder = folder.with_name(str(grown[-1]["cache"]))
    return found
