"""Lines that many documents share: menus, notices, signatures. Reported; and, as set, cut out of all documents but one.

A line counts once a document, by a 64-bit hash of its bytes without the white space around it. It is cut where that breaks no
sentence: from the end of a sentence or paragraph to the end of one; neighbours that are cut count together. The copy that stays
is that of the document with the smallest id among those that nothing else drops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from blake3 import blake3
from numpy.typing import NDArray

from pipeline_lib.config.data import DedupConfig
from pipeline_lib.dedup import kernels
from pipeline_lib.dedup.texts import Texts, read_texts
from pipeline_lib.tables.duck import connect
from pipeline_lib.tables.ids import Ids, id_column, ids_of
from pipeline_lib.tables.parquet import read_tables, write_batches
from pipeline_lib.tables.schemas import BOILERPLATE, DOC_ID, EDITS
from pipeline_lib.workspace.stage import StageRun

SHOWN_BYTES = 400  # of a line in the table `boilerplate`
LINES = pa.schema([("hash", pa.uint64()), ("documents", pa.int64())])
OCCURRENCES = pa.schema(
    [
        ("doc_id", DOC_ID),
        ("hash", pa.uint64()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("whole", pa.bool_()),  # can be cut without breaking a sentence
        ("text", pa.large_binary()),  # of the first one in its piece of the file
    ]
)


@dataclass(frozen=True)
class Lines:
    """Long lines of some texts, in order; see `kernels.long_lines`."""

    hash: NDArray[np.uint64]
    places: NDArray[np.int64]
    ends: NDArray[np.bool_]

    @classmethod
    def of(cls, texts: Texts, least: int) -> Lines:
        """All lines of at least `least` bytes."""
        room = int(texts.offsets[-1] - texts.offsets[0]) // least + 1
        hashes, places, ends = np.empty(room, np.uint64), np.empty((room, 4), np.int64), np.zeros((room, 2), bool)
        count = kernels.long_lines(texts.data, texts.offsets, least, hashes, places, ends)
        return cls(hashes[:count], places[:count], ends[:count])


def count_lines(item: tuple[str, str], folder: Path, *, least: int) -> dict[str, Any]:
    """Shard work: write `lines.parquet` of one documents file (path, digest): in how many documents each long line is."""

    def batches() -> Iterator[pa.RecordBatch]:
        for texts in read_texts(Path(item[0])):
            lines = Lines.of(texts, least)
            order = np.lexsort((lines.places[:, 0], lines.hash))
            hashes, document = lines.hash[order], lines.places[order, 0]
            once = np.ones(len(order), dtype=bool)
            once[1:] = (hashes[1:] != hashes[:-1]) | (document[1:] != document[:-1])
            found, count = np.unique(hashes[once], return_counts=True)
            yield pa.record_batch([pa.array(found), pa.array(count.astype(np.int64))], schema=LINES)

    return {"lines": write_batches(batches(), LINES, folder / "lines.parquet")}


def common_lines(files: Sequence[Path], documents: int) -> pa.Table:
    """Lines in at least so many documents: hash, documents; by hash."""
    query = """
        SELECT hash, sum(documents)::BIGINT AS documents FROM lines
        GROUP BY hash HAVING sum(documents) >= $least ORDER BY hash
    """
    with connect({"lines": files}) as db:
        found = db.sql(query, params={"least": documents}).to_arrow_table() if files else LINES.empty_table()
    return found.cast(LINES)


def find_lines(item: tuple[str, str], folder: Path, *, hashes: NDArray[np.uint64], least: int) -> dict[str, Any]:
    """Shard work: write `occurrences.parquet` of one documents file (path, digest): where the lines with these hashes are.

    Lines of conversations are never whole: their turns stand together.
    """
    spoken = pc.equal(pq.read_table(Path(item[0]), columns=["kind"])["kind"], "instruct").fill_null(False).to_numpy()

    def batches() -> Iterator[pa.RecordBatch]:
        at = 0
        for texts in read_texts(Path(item[0])):
            lines = Lines.of(texts, least)
            common = np.isin(lines.hash, hashes)
            places, hash_ = np.ascontiguousarray(lines.places[common]), lines.hash[common]
            whole = np.zeros(len(places), dtype=bool)
            kernels.whole_sentences(places, np.ascontiguousarray(lines.ends[common]), whole)
            document, _, start, end = places.T
            whole &= ~spoken[at + document]
            at += len(texts)
            shown: list[bytes | None] = [None] * len(places)
            for i in np.unique(hash_, return_index=True)[1]:  # one a line, not a document
                begin = texts.offsets[document[i]]
                shown[i] = texts.data[begin + start[i] : begin + end[i]].tobytes()
            columns = [id_column(texts.ids[document]), pa.array(hash_), start, end, whole, pa.array(shown, pa.large_binary())]
            yield pa.record_batch([pa.array(column) for column in columns], schema=OCCURRENCES)

    return {"occurrences": write_batches(batches(), OCCURRENCES, folder / "occurrences.parquet")}


@dataclass(frozen=True)
class Boilerplate:
    """What was found: the table `boilerplate`, most frequent first, and the rows of `edits`."""

    table: pa.Table
    edits: pa.Table


def settle_lines(common: pa.Table, files: Sequence[Path], dropped: Ids, *, trim: bool) -> Boilerplate:
    """Decide which occurrences go.

    Args:
        common: hash and documents of each line, by hash.
        files: the tables of occurrences.
        dropped: documents that do not stay, so that they cannot keep the copy.
        trim: whether anything is cut.
    """
    found = read_tables(files) if files else OCCURRENCES.empty_table()
    known = common["hash"].to_numpy()
    line = np.searchsorted(known, found["hash"].to_numpy())
    ids = ids_of(found["doc_id"])
    names, document = np.unique(ids, return_inverse=True)
    stays = ~np.isin(names, dropped)[document]
    keeper = np.full(len(known), len(names), dtype=np.int64)
    np.minimum.at(keeper, line[stays], document[stays])
    goes = found["whole"].to_numpy() & stays & (document != keeper[line])
    goes = np.flatnonzero(goes) if trim else np.empty(0, dtype=np.int64)
    start, end = (found[name].to_numpy()[goes] for name in ("start", "end"))
    goes = goes[order := np.lexsort((start, document[goes]))]
    edits = {
        "doc_id": id_column(ids[goes]),
        "stage": pa.repeat(pa.scalar("dedup"), len(goes)),
        "start": start[order],
        "end": end[order],
        "kind": pa.repeat(pa.scalar("boilerplate"), len(goes)),
        "length": np.zeros(len(goes), dtype=np.int64),
    }
    shown = np.flatnonzero(~pc.is_null(found["text"]).to_numpy())
    first = shown[np.unique(line[shown], return_index=True)[1]]
    texts = [text.strip()[:SHOWN_BYTES].decode("utf-8", "replace") for text in found["text"].take(pa.array(first)).to_pylist()]
    table = {"text": texts, "documents": common["documents"], "trimmed": np.bincount(line[goes], minlength=len(known))}
    ordered = pa.table(table, schema=BOILERPLATE).sort_by([("documents", "descending"), ("text", "ascending")])
    return Boilerplate(ordered, pa.table(edits).select(EDITS.names).cast(EDITS))


def shared_lines(run: StageRun, config: DedupConfig, files: Sequence[tuple[str, str]], dropped: Ids) -> Boilerplate:
    """Find shared lines in the documents files (path, digest), and say what goes; nothing where they are not looked for."""
    if config.boilerplate == "off":
        return Boilerplate(BOILERPLATE.empty_table(), EDITS.empty_table())
    least = config.boilerplate_bytes
    counted = run.shards(
        files,
        partial(count_lines, least=least),
        key=lambda item: {"part": "lines", "least": least, "file": item[1]},
        unit="files",
    )
    common = common_lines([shard.files["lines"] for shard in counted], config.boilerplate_documents)
    hashes = common["hash"].to_numpy()
    search = {"part": "occurrences", "least": least, "lines": blake3(hashes.tobytes()).hexdigest()}
    found = run.shards(
        files, partial(find_lines, hashes=hashes, least=least), key=lambda item: {**search, "file": item[1]}, unit="files"
    )
    told = settle_lines(common, [shard.files["occurrences"] for shard in found], dropped, trim=config.boilerplate == "trim")
    if len(told.table):
        run.event("boilerplate", lines=len(told.table), trimmed=len(told.edits), most=told.table.slice(0, 1).to_pylist()[0])
    return told
