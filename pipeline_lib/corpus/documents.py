"""Raw records become documents: checked, normalised, identified; or rows of the quarantine with a reason."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3
from numpy.typing import NDArray

from pipeline_lib.corpus import kernels
from pipeline_lib.corpus.barred import BARRED, bar
from pipeline_lib.corpus.dates import dates, file_date
from pipeline_lib.corpus.digests import digests
from pipeline_lib.corpus.instruct import NO_PAIR, normalise_turns
from pipeline_lib.corpus.normalise import extracted, normalise
from pipeline_lib.corpus.raw import EMPTY, NOT_UTF8, SET_ASIDE, TOO_LONG
from pipeline_lib.corpus.redact import HEAD_BYTES, head
from pipeline_lib.corpus.replaced import places
from pipeline_lib.corpus.rights import canonical_column
from pipeline_lib.corpus.sources import Part
from pipeline_lib.tables.buffers import text_buffers, text_column
from pipeline_lib.tables.schemas import DOC_ID, DOCUMENTS, IDS, QUARANTINE

REPLACED = "replaced by a later record"


@dataclass(frozen=True)
class Refined:
    """What a batch of raw records became. records = documents + quarantine (replaced and barred ones included) + left_out."""

    documents: pa.RecordBatch
    ids: pa.Table  # schema IDS, a row a document
    edits: pa.Table
    quarantine: pa.Table
    left_out: int
    replaced: int
    barred: int  # forgotten, or of a licence that is not allowed
    set_aside: int  # of the quarantined ones: those that say nothing against the source


def refine(batch: pa.RecordBatch, part: Part, replaced: pa.Array) -> Refined:
    """Check, normalise and identify the records of a batch.

    Args:
        batch: schema `readers.RAW`.
        part: what the batch belongs to.
        replaced: places (`corpus.replaced`) of records that later ones with the same id replace.
    """
    data, offsets = text_buffers(batch.column("text"))
    flags, bad_at = np.empty(batch.num_rows, np.uint8), np.empty(batch.num_rows, np.int64)
    kernels.inspect(data, offsets, flags, bad_at)
    problem = _problems(batch, flags, np.diff(offsets), part)
    ids = identities(batch, part.source.name)
    if len(replaced):
        lost = pc.is_in(places(batch.column("file"), batch.column("index")), value_set=replaced)
        problem = pc.if_else(pc.and_(lost, problem.is_null()), REPLACED, problem)
    licence = canonical_column(_chosen(part.source.licence, batch.column("licence"), ""))
    problem = bar(problem, ids, licence, part.barred)
    good = problem.is_null().to_numpy(zero_copy_only=False)
    kept = good & _within_share(ids, part.share)
    quarantine = _quarantine(batch, ids, problem, ~good, part.source.name)
    rows = batch.filter(pa.array(kept))
    kept_ids = ids.filter(pa.array(kept))
    turns = rows.column("turns")
    if part.source.records == "instruct":
        text, turns, edits = normalise_turns(rows.column("text"), turns, kept_ids, partial(normalise, recipe=part.recipe))
    else:
        text, edits = normalise(rows.column("text"), kept_ids, flags[kept], part.recipe)
    made = rows.column("edit").is_valid()
    if pc.any(made).as_py():
        sizes = rows.column("length").filter(made).to_numpy()
        edits = pa.concat_tables([edits, extracted(kept_ids.filter(made), sizes, text.filter(made))])
    documents = pa.RecordBatch.from_arrays(
        [
            kept_ids,
            _constant(part.source.records, len(rows)),
            text,
            _constant(part.source.name, len(rows)),
            _chosen(part.source.domain, rows.column("domain"), part.source.name),
            licence.filter(pa.array(kept)),
            dates(_dated(rows, part.source.date_pattern)),
            _chosen("", rows.column("url"), ""),
            _metadata(rows.column("title")),
            rows.column("file"),
            rows.column("file_digest"),
            rows.column("index"),
            rows.column("offset"),
            rows.column("length"),
            text_hashes(text),
            turns,
        ],
        schema=DOCUMENTS,
    )
    named = pa.table([kept_ids, rows.column("file"), rows.column("index")], schema=IDS)
    again, out, aside = (
        int(pc.sum(pc.is_in(problem, value_set=pa.array(names)), min_count=0).as_py())
        for names in ([REPLACED], BARRED, SET_ASIDE)
    )
    return Refined(documents, named, edits, quarantine, int((good & ~kept).sum()), again, out, aside)


def _dated(rows: pa.RecordBatch, pattern: str) -> pa.Array:
    """What records say of their date, else what the names of their files do."""
    told = rows.column("date")
    if not pattern:
        return told
    names = rows.column("file").dictionary_encode()
    dated = pa.array([file_date(name, pattern) for name in names.dictionary.to_pylist()], pa.string()).take(names.indices)
    return pc.if_else(pc.equal(pc.fill_null(told, ""), ""), dated, told)


def _constant(value: str, rows: int) -> pa.Array:
    return pa.repeat(pa.scalar(value), rows)


def _chosen(configured: str, column: pa.Array, default: str) -> pa.Array:
    """The configured value, else what the record says, else a default."""
    if configured:
        return _constant(configured, len(column))
    return pc.if_else(pc.equal(pc.fill_null(column, ""), ""), default, column)


def _problems(batch: pa.RecordBatch, flags: NDArray[np.uint8], sizes: NDArray[np.int64], part: Part) -> pa.Array:
    """The reason a record cannot become a document; null: it can. What the reader found goes first."""
    found = [
        (flags & kernels.INVALID != 0, NOT_UTF8),
        (sizes > part.max_document_bytes, TOO_LONG),
        (flags & kernels.VISIBLE == 0, EMPTY),
        (np.full(batch.num_rows, part.source.records == "instruct") & _nulls(batch.column("turns")), NO_PAIR),
    ]
    reason = pa.nulls(batch.num_rows, pa.string())
    for is_so, text in found:
        reason = pc.if_else(pa.array(is_so & reason.is_null().to_numpy(zero_copy_only=False)), text, reason)
    return pc.coalesce(batch.column("problem"), reason)


def _nulls(column: pa.Array) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    return found


def _quarantine(batch: pa.RecordBatch, ids: pa.Array, problem: pa.Array, bad: NDArray[np.bool_], source: str) -> pa.Table:
    """The rows that cannot be read or must stay out; of the latter no text is kept. A loop over bad rows only: they are few, or
    the stage refuses.
    """
    rows = np.flatnonzero(bad)
    if not len(rows):
        return QUARANTINE.empty_table()
    file, index = batch.column("file"), batch.column("index")
    known = batch.column("head")
    data, offsets = text_buffers(batch.column("text"))
    heads, positions = [], []
    reasons = problem.filter(pa.array(bad))
    silent = pc.is_in(reasons, value_set=pa.array(BARRED)).to_pylist()
    for row, quiet in zip(rows, silent, strict=True):
        seen = b"" if quiet else known[row].as_py()
        heads.append(head(data[offsets[row] : offsets[row + 1]][: HEAD_BYTES + 100].tobytes()) if seen is None else seen)
        number = index[row].as_py()
        positions.append(file[row].as_py() + (f":{number + 1}" if number >= 0 else ""))
    own = pc.if_else(pc.less(index, 0), None, ids).filter(pa.array(bad))
    return pa.table([own, _constant(source, len(rows)), positions, reasons, pa.array(heads, pa.binary())], schema=QUARANTINE)


def identities(batch: pa.RecordBatch, source: str) -> pa.Array:
    """doc_id: 128-bit blake3 of (source, id) where the record has an id, else of (source, file, number in the file)."""
    own = batch.column("id")
    own = pc.if_else(pc.equal(own, ""), None, own)
    place = places(batch.column("file"), batch.column("index"))
    named = pc.binary_join_element_wise(pc.if_else(own.is_null(), "place", "id"), pc.coalesce(own, place), "\0")
    full = pc.binary_join_element_wise(_constant(source, len(own)), named, "\0")
    return _hashes(full.cast(pa.large_string()))


def named_id(source: str, own: str) -> str:
    """The doc_id, in hexadecimal digits, of the record with this id in its source's `id_column`."""
    return blake3(f"{source}\0id\0{own}".encode()).hexdigest(16)


def _hashes(column: pa.Array) -> pa.Array:
    """128-bit blake3 of each value."""
    return pa.FixedSizeBinaryArray.from_buffers(DOC_ID, len(column), [None, pa.py_buffer(digests(*text_buffers(column)))])


def _within_share(ids: pa.Array, share: float) -> NDArray[np.bool_]:
    """Whether the first 64 bits of an id, as a fraction, lie below the share."""
    if share >= 1:
        return np.ones(len(ids), bool)
    words = np.frombuffer(ids.buffers()[1], ">u8")[::2][: len(ids)]
    return words < np.uint64(share * 2**64)


def text_hashes(text: pa.Array) -> pa.Array:
    """128-bit blake3 of each text in lower case with white space collapsed: equal for texts that differ in neither."""
    return _hashes(text_column(*kernels.fold(*text_buffers(text))))


def _metadata(title: pa.Array) -> pa.Array:
    """A JSON object with the title, or `{}`."""
    safe = pc.replace_substring_regex(title, r"[\x00-\x1f]+", " ")
    safe = pc.replace_substring(pc.replace_substring(safe, "\\", "\\\\"), '"', '\\"')
    told = pc.binary_join_element_wise('{"title": "', safe, '"}', "")
    return pc.coalesce(told, _constant("{}", len(title)))
