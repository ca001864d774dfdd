"""Raw records become documents: checked, normalised, identified; or rows of the quarantine with a reason."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from blake3 import blake3
from numpy.typing import NDArray

from pipeline_lib.corpus import kernels
from pipeline_lib.corpus.barred import BARRED, bar
from pipeline_lib.corpus.redact import HEAD_BYTES, head
from pipeline_lib.corpus.replaced import places
from pipeline_lib.corpus.rights import canonical_column
from pipeline_lib.corpus.sources import Part
from pipeline_lib.tables.buffers import text_buffers, text_column
from pipeline_lib.tables.schemas import DOC_ID, DOCUMENTS, EDITS, IDS, QUARANTINE

NOT_UTF8, EMPTY, TOO_LONG = "not UTF-8", "empty text", "longer than max_document_mb"
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
    text, edits = normalise(rows.column("text"), kept_ids, flags[kept])
    documents = pa.RecordBatch.from_arrays(
        [
            kept_ids,
            _constant("text", len(rows)),
            text,
            _constant(part.source.name, len(rows)),
            _chosen(part.source.domain, rows.column("domain"), part.source.name),
            licence.filter(pa.array(kept)),
            dates(rows.column("date")),
            _chosen("", rows.column("url"), ""),
            _metadata(rows.column("title")),
            rows.column("file_digest"),
            rows.column("index"),
            rows.column("offset"),
            rows.column("length"),
            text_hashes(text),
        ],
        schema=DOCUMENTS,
    )
    named = pa.table([kept_ids, rows.column("file"), rows.column("index")], schema=IDS)
    again, out = (pc.sum(pc.is_in(problem, value_set=pa.array(names)), min_count=0).as_py() for names in ([REPLACED], BARRED))
    return Refined(documents, named, edits, quarantine, int((good & ~kept).sum()), int(again), int(out))


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
    ]
    reason = pa.nulls(batch.num_rows, pa.string())
    for is_so, text in found:
        reason = pc.if_else(pa.array(is_so & reason.is_null().to_numpy(zero_copy_only=False)), text, reason)
    return pc.coalesce(batch.column("problem"), reason)


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
    place = places(batch.column("file"), batch.column("index"))
    named = pc.binary_join_element_wise(pc.if_else(own.is_null(), "place", "id"), pc.coalesce(own, place), "\0")
    full = pc.binary_join_element_wise(_constant(source, len(own)), named, "\0")
    return _hashes(full.cast(pa.large_string()))


def _hashes(column: pa.Array) -> pa.Array:
    """128-bit blake3 of each value. One C call a row (0.35 µs): numba has no blake3."""
    data, offsets = text_buffers(column)
    view, bounds = data.data, offsets.tolist()
    digests = [blake3(view[a:b]).digest(16) for a, b in pairwise(bounds)]
    return pa.FixedSizeBinaryArray.from_buffers(DOC_ID, len(digests), [None, pa.py_buffer(b"".join(digests))])


def _within_share(ids: pa.Array, share: float) -> NDArray[np.bool_]:
    """Whether the first 64 bits of an id, as a fraction, lie below the share."""
    if share >= 1:
        return np.ones(len(ids), bool)
    words = np.frombuffer(ids.buffers()[1], ">u8")[::2][: len(ids)]
    return words < np.uint64(share * 2**64)


def normalise(column: pa.Array, ids: pa.Array, flags: NDArray[np.uint8]) -> tuple[pa.Array, pa.Table]:
    """Texts in NFC with LF line ends and without control characters, and a row of `edits` for every change.

    Args:
        column: large_binary, valid UTF-8, no nulls.
        ids: doc_id of each text.
        flags: of `kernels.inspect`.

    Returns:
        The texts (large_string) and the edits: byte range in the original from the first to the last change of a kind.
    """
    data, offsets = text_buffers(column)
    rows, edits = len(column), []
    if (flags & (kernels.LINE_ENDS | kernels.CONTROL)).any():
        out, out_offsets = np.empty(len(data), np.uint8), np.empty(rows + 1, np.int64)
        spans = np.empty((rows, 4), np.int64)
        written = kernels.clean(data, offsets, flags, out, out_offsets, spans)
        text = text_column(out[:written], out_offsets)
        for first, kind in ((0, "line_ends"), (2, "control")):
            edits.append(_edits(ids, spans[:, first], spans[:, first + 1], kind))
    else:
        text = column.view(pa.large_string())
    if (flags & kernels.COMPOSE).any():
        ask = pa.array(flags & kernels.COMPOSE != 0)
        before = text.filter(ask)
        # One C call for each text beyond U+0300: pyarrow 25 decomposes where it should compose, DuckDB 2.0 loses U+11A7
        after = pa.array([unicodedata.normalize("NFC", value) for value in before.to_pylist()], pa.large_string())
        changed = pc.not_equal(before, after)
        text = pc.replace_with_mask(text, ask, after)
        lengths = np.diff(offsets)[flags & kernels.COMPOSE != 0]
        ends = np.where(changed.to_numpy(zero_copy_only=False), lengths, -1)
        edits.append(_edits(ids.filter(ask), np.where(ends < 0, -1, 0), ends, "nfc"))
    return text, pa.concat_tables(edits) if edits else EDITS.empty_table()


def _edits(ids: pa.Array, starts: NDArray[np.int64], ends: NDArray[np.int64], kind: str) -> pa.Table:
    changed = starts >= 0
    rows = int(changed.sum())
    columns = [ids.filter(pa.array(changed)), _constant("ingest", rows), starts[changed], ends[changed], _constant(kind, rows)]
    return pa.table(columns, schema=EDITS)


def text_hashes(text: pa.Array) -> pa.Array:
    """128-bit blake3 of each text in lower case with white space collapsed: equal for texts that differ in neither."""
    data, offsets = text_buffers(pc.utf8_lower(text))
    out, out_offsets = np.empty(len(data), np.uint8), np.empty(len(offsets), np.int64)
    written = kernels.fold(data, offsets, out, out_offsets)
    return _hashes(text_column(out[:written], out_offsets))


def dates(column: pa.Array) -> pa.Array:
    """Timestamps (UTC, to the day) from texts that begin with YYYY, YYYY-MM or YYYY-MM-DD; null for anything else.

    An offset behind the time is not applied.
    """
    parts = pc.extract_regex(column, r"^(?P<y>(?:1[5-9]|20)\d\d)(?:-(?P<m>\d\d)(?:-(?P<d>\d\d)(?:[T ].*)?)?)?$")
    year, month, day = (pc.struct_field(parts, name) for name in ("y", "m", "d"))
    month, day = (pc.if_else(pc.equal(part, ""), "01", part) for part in (month, day))
    told = pc.binary_join_element_wise(year, month, day, "-")
    stamp = pc.strptime(told, format="%Y-%m-%d", unit="s", error_is_null=True)
    real = pc.equal(pc.strftime(stamp, format="%Y-%m-%d"), told)  # strptime takes 31 February for 2 March
    return pc.if_else(real, stamp, None).cast(pa.timestamp("s", tz="UTC"))


def _metadata(title: pa.Array) -> pa.Array:
    """A JSON object with the title, or `{}`."""
    safe = pc.replace_substring_regex(title, r"[\x00-\x1f]+", " ")
    safe = pc.replace_substring(pc.replace_substring(safe, "\\", "\\\\"), '"', '\\"')
    told = pc.binary_join_element_wise('{"title": "', safe, '"}', "")
    return pc.coalesce(told, _constant("{}", len(title)))
