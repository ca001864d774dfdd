"""From a training step to the lines it learned from, and from a document to the steps that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline_lib.config.data import SourceConfig
from pipeline_lib.corpus.ranges import ranges
from pipeline_lib.corpus.redact import head
from pipeline_lib.corpus.sources import list_files
from pipeline_lib.corpus.streams import is_remote
from pipeline_lib.errors import MillraceError, NotFoundError
from pipeline_lib.packing.cache import Cache, cache_behind, cache_folder, read_chunks
from pipeline_lib.packing.growth import gone_of, tombstones_of
from pipeline_lib.packing.order import positions_of, sequences_at
from pipeline_lib.packing.ranges import SIDES
from pipeline_lib.packing.sequences import SequenceReader
from pipeline_lib.selection.explain import whole_id
from pipeline_lib.tables.duck import connect
from pipeline_lib.tables.parquet import read_tables
from pipeline_lib.workspace.artifact import Artifact
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.workspace import Workspace

TRAINED = "train"  # the side that steps read
_PLACE = """SELECT doc_id, source, domain, file_digest, record_index, byte_offset, url, left(text, 300) AS head
FROM documents WHERE doc_id IN (SELECT unnest($ids::BLOB[]))"""


def trace_step(workspace: Workspace, record: RunRecord, step: int) -> dict[str, Any]:
    """What a training step read.

    Args:
        workspace: where the artifacts lie.
        record: the run.
        step: from 1.

    Returns:
        JSON values: {run_id, step, loss (None: not known), epochs: [int], sequences: [{sequence, chunk, tokens, documents:
        [{doc_id, row, offset, tokens, source, domain, file, line, byte_offset, url, head}]}]}. `offset`: where the piece begins
        in its document, in tokens. `file` is None where no local source of the run has it any more; `line` counts records from 1.

    Raises:
        NotFoundError: the run did not pack or plan, or has no such step.
        DamagedError: a chunk is not what was committed; `millrace cache fill` makes it again.
    """
    cache, readers = _open(workspace, record)
    reader, steps = readers[TRAINED], _Steps.of(workspace, record)
    first, count, loss = steps.span(step)
    chosen = sequences_at(len(reader), steps.seed, first, count)
    packed = {int(number): reader[int(number)] for number in dict.fromkeys(chosen.tolist())}
    rows = np.unique(np.concatenate([sequence.doc_row for sequence in packed.values()]))
    known = _documents(cache, rows, record)
    return {
        "run_id": record.run_id,
        "step": step,
        "loss": loss,
        "epochs": sorted({int(epoch) for epoch in np.arange(first, first + count) // len(reader)}),
        "sequences": [
            {
                "sequence": int(number),
                "chunk": reader.chunks[reader.place(int(number))[0]].name,
                "tokens": len(packed[int(number)].tokens),
                "documents": [
                    {**known[row], "row": row, "offset": offset, "tokens": tokens}
                    for row, offset, tokens in zip(
                        packed[int(number)].doc_row.tolist(),
                        packed[int(number)].doc_off.tolist(),
                        packed[int(number)].doc_len.tolist(),
                        strict=True,
                    )
                ],
            }
            for number in chosen
        ],
    }


def trace_document(workspace: Workspace, record: RunRecord, doc_id: str) -> list[dict[str, Any]]:
    """The sequences that hold a document, and the steps that read them.

    Args:
        workspace: where the artifacts lie.
        record: the run.
        doc_id: 32 hexadecimal digits, or the first of them.

    Returns:
        JSON values, a row a piece of the document: {side, sequence, chunk, pass, offset, tokens, steps: [int]}; empty when the
        document was not packed. Steps are those that were made, and all planned ones where the training has not ended.

    Raises:
        NotFoundError: no id, none or several begin so; or the run did not pack.
        DamagedError: a chunk is not what was committed.
    """
    cache, readers = _open(workspace, record)
    wanted = whole_id(_artifact(workspace, record, "ingest"), doc_id)
    steps = _Steps.of(workspace, record) if record.ref("plan") else None
    found = []
    for side, row, turn in _rows_with(cache, bytes.fromhex(wanted)):
        reader = readers[side]
        for at, facts in enumerate(reader.chunks):
            if not any(link.ranges[facts.name].holds(row) for link in cache.links if facts.name in link.ranges):
                continue
            chunk = reader.chunk(at)
            starts, (rows, offsets) = chunk.lengths[1], chunk.provenance
            for piece in np.flatnonzero(rows == row):
                number = reader.index(at, int(starts.searchsorted(piece, side="right")) - 1)
                if number is None or (reader.dead is not None and row in reader.dead):
                    continue  # a tombstone: it is packed, and no longer read
                found.append(
                    {
                        "side": side,
                        "sequence": number,
                        "chunk": facts.name,
                        "pass": turn,
                        "offset": int(offsets[piece]),
                        "tokens": int(chunk.lengths[2][piece]),
                        "steps": steps.reading(number, len(reader)) if steps and side == TRAINED else [],
                    }
                )
    return sorted(found, key=lambda row: (row["side"], row["pass"], row["offset"]))


class _Steps:
    """Which positions of the training order each step read."""

    def __init__(self, seed: int, first: np.ndarray, last: np.ndarray, loss: np.ndarray | None) -> None:
        self.seed, self.first, self.last, self.loss = seed, first, last, loss

    @classmethod
    def of(cls, workspace: Workspace, record: RunRecord) -> _Steps:
        """As the training logged them; as planned where it has not ended."""
        seed = int(record.config.get("seed", 0))
        if ref := record.ref("train"):
            table = read_tables(_observed(workspace.artifact(ref.key), "steps.parquet"))
            table = table.filter(pc.invert(table["superseded"])).sort_by("step")
            if table.num_rows:
                numbers, first, last, loss = (
                    table[name].to_numpy() for name in ("step", "first_sequence", "last_sequence", "loss")
                )
                places = np.full((int(numbers[-1]) + 1, 2), -1)
                places[numbers, 0], places[numbers, 1] = first, last
                losses = np.full(len(places), np.nan)
                losses[numbers] = loss
                return cls(seed, places[1:, 0], places[1:, 1], losses[1:])
        plan = _artifact(workspace, record, "plan").details
        first = np.arange(int(plan["steps"]), dtype=np.int64) * int(plan["batch_sequences"])
        return cls(seed, first, first + int(plan["batch_sequences"]) - 1, None)

    def span(self, step: int) -> tuple[int, int, float | None]:
        """(first position, positions, loss) of a step.

        Raises:
            NotFoundError: there is no such step.
        """
        if not 1 <= step <= len(self.first) or self.first[step - 1] < 0:
            raise NotFoundError(f"there is no step {step}", where="stage train", fix=f"steps are 1 to {len(self.first)}")
        loss = None if self.loss is None else float(self.loss[step - 1])
        return int(self.first[step - 1]), int(self.last[step - 1] - self.first[step - 1] + 1), loss

    def reading(self, sequence: int, n: int) -> list[int]:
        """The steps that read a sequence of `n`."""
        if not len(self.last):
            return []
        positions = positions_of(n, self.seed, sequence, int(self.last.max()) // n + 1)
        inside = (self.first <= positions[:, None]) & (positions[:, None] <= self.last)
        return sorted({int(step) + 1 for step in np.nonzero(inside)[1]})


def _open(workspace: Workspace, record: RunRecord) -> tuple[Cache, dict[str, SequenceReader]]:
    filled = _artifact(workspace, record, "fill_gaps")
    chunks = read_chunks(filled.files("chunks"))
    folder = cache_folder(workspace, filled.details["cache"])
    dead = tombstones_of(filled)
    readers = {side: SequenceReader(folder, chunks, side, dead=dead, gone=gone_of(filled, side)) for side in SIDES}
    return cache_behind(workspace, filled), readers


def _artifact(workspace: Workspace, record: RunRecord, stage: str) -> Artifact:
    ref = record.ref(stage)
    if ref is None:
        raise NotFoundError(
            f"the run has no finished {stage}", where=f"run {record.run_id}", fix=f"run the pipeline to `{stage}` at least"
        )
    return workspace.artifact(ref.key)


def _observed(artifact: Artifact, name: str) -> list[Path]:
    return [path for path in artifact.files("observed") if path.name == name]


def _rows_with(cache: Cache, doc_id: bytes) -> list[tuple[str, int, int]]:
    """(side, row, pass) of a document in the table `rows`."""
    found: list[tuple[str, int, int]] = []
    for link in cache.links:
        table = pq.read_table(link.recipe.rows, columns=["doc_id", "side", "pass"])
        places = pc.indices_nonzero(pc.equal(table["doc_id"], pa.scalar(doc_id, table.schema.field("doc_id").type)))
        here = table.take(places)
        numbers = (places.to_numpy().astype(np.int64) + link.recipe.first_row).tolist()
        found += zip(here["side"].to_pylist(), numbers, here["pass"].to_pylist(), strict=True)
    return found


def _documents(cache: Cache, rows: np.ndarray, record: RunRecord) -> dict[int, dict[str, Any]]:
    """What is known of the documents of some rows."""
    found: dict[int, dict[str, Any]] = {}
    for link in cache.links:
        ids = pq.read_table(link.recipe.rows, columns=["doc_id"])["doc_id"]
        mine = rows[(rows >= link.recipe.first_row) & (rows < link.recipe.first_row + len(ids))]
        wanted = ids.take(pa.array(mine - link.recipe.first_row)).to_pylist()
        with connect({"documents": link.recipe.documents}) as db:
            places = {row[0]: row[1:] for row in db.execute(_PLACE, {"ids": list(set(wanted))}).fetchall()}
        for row, doc_id in zip(mine.tolist(), wanted, strict=True):
            source, domain, digest, index, offset, url, text = places[doc_id]
            found[row] = {
                "doc_id": doc_id.hex(), "source": source, "domain": domain, "file": digest,
                "line": None if index is None else index + 1, "byte_offset": offset,
                "url": url or None, "head": head(text.encode()).decode("utf-8", "ignore"),
            }  # fmt: skip
    files = _files(record, {place["file"] for place in found.values()})
    return {row: {**place, "file": files.get(place["file"])} for row, place in found.items()}


def _files(record: RunRecord, digests: set[str]) -> Mapping[str, str]:
    """Paths of the files of the run's sources that have these digests; a source that cannot be listed any more has none."""
    found: dict[str, str] = {}
    sources: Sequence[Mapping[str, Any]] = record.config.get("ingest", {}).get("sources", [])
    for told in sources:
        source = SourceConfig.model_validate(told)
        if source.kind == "module" or is_remote(source.path) or digests <= found.keys():
            continue  # a far store is not read only to name a file
        try:
            found |= {part.digest: part.path for file in list_files(source) for part in ranges(file) if part.digest in digests}
        except (MillraceError, OSError):
            continue
    return found
