"""A chunk: packed sequences of one source range as an Arrow IPC file. The format is described in README.md beside this file.

A chunk is a pure function of (texts of its range, tokenizer, `ChunkSettings`): whoever makes it, whenever, gets the same content.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from blake3 import blake3
from pyarrow import ipc

from pipeline_lib.errors import DamagedError, StageFailedError
from pipeline_lib.packing.ranges import Range, chunk_name
from pipeline_lib.packing.render import UNLEARNED, encode_documents, spans_without_loss
from pipeline_lib.packing.texts import Documents
from pipeline_lib.tokens.chat import ChatTemplate
from pipeline_lib.tokens.encode import Encoder
from pipeline_lib.workspace.faults import fault_point
from pipeline_lib.workspace.files import sync_file, sync_folder
from pipeline_lib.workspace.identity import bytes_digest, fingerprint_of

FORMAT = 2
PREFIX = "millrace."  # of the keys in a chunk's schema metadata
BATCH_TOKENS = 24_576  # a record batch: decodes in 13 µs, so that random access is fast, and its header costs < 4 %
LZ4_LEVEL = 3  # 11.5 bits a token on prose, against 13.7 at level 1; decodes as fast
WIDE = 1 << 16  # vocabularies beyond uint16 are stored as two planes
Data = bytes | memoryview


@dataclass(frozen=True)
class ChunkSettings:
    """What a chunk depends on beside its texts and the tokenizer's bytes."""

    sequence_length: int
    vocabulary_size: int
    eos_id: int
    pad_id: int
    codec: str

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> ChunkSettings:
        """From the details of the stage `pack`."""
        return cls(**{name: details[name] for name in cls.__dataclass_fields__})

    @property
    def batch_rows(self) -> int:
        """Sequences in a record batch."""
        return max(1, BATCH_TOKENS // self.sequence_length)


@dataclass(frozen=True)
class ChunkFacts:
    """What is known of a committed chunk; the columns of the table `chunks` and a few more counts."""

    side: str
    chunk: int
    file_digest: str  # see `checksum`
    content_digest: str
    size: int
    sequences: int
    tokens: int
    documents: int
    cut_documents: int = 0  # longer than a sequence; nothing else is cut
    text_bytes: int = 0  # of the documents' texts, UTF-8
    cache: str = ""  # the folder the file lies in, "" where it is the one that is asked for

    @property
    def name(self) -> str:
        """`<side>-<number>`: the same as its range's."""
        return chunk_name(self.side, self.chunk)

    def file(self, folder: Path) -> Path:
        """Where the chunk lies, given a cache folder: there, or in the folder beside (or anywhere) that the chunk names."""
        return (folder.parent / self.cache if self.cache else folder) / f"{self.name}.arrow"

    def is_whole(self, data: Data) -> bool:
        """Whether these are the bytes of the file that was committed."""
        digest = checksum if len(self.file_digest) == len(checksum(b"")) else bytes_digest  # of an earlier version: blake3
        return len(data) == self.size and digest(data) == self.file_digest


def checksum(data: Data) -> str:
    """128-bit XXH3 of a chunk's file, 32 hex digits: it tells damage at the speed of memory. What a chunk is, its content's
    digest says."""
    return str(xxhash.xxh3_128_hexdigest(data))


class Packed(NamedTuple):
    """Documents as packed sequences: a chunk's columns, not written yet."""

    table: pa.Table
    cut_documents: int  # longer than a sequence
    text_bytes: int  # of the documents' texts, UTF-8


def pack_documents(
    encoder: Encoder, documents: Documents, first_row: int, settings: ChunkSettings, chat: ChatTemplate | None = None
) -> Packed:
    """Encode, end every document with the end token, cut, pack.

    Args:
        encoder: of the tokenizer.
        documents: texts and conversations.
        first_row: row of the table `rows` of the first document.
        settings: of the cache.
        chat: the tokenizer's template; needed where there are conversations.

    Raises:
        StageFailedError: the encoder gives an id beyond the vocabulary.
        ConfigError: the template cannot write a conversation.
    """
    from pipeline_lib.packing.bestfit import best_fit, gather, split_lengths  # checking a cache must not wait for a compiler

    encoded = encode_documents(encoder, documents.texts, documents.turns, chat)
    tokens, offsets = encoded.tokens, encoded.offsets
    largest = int((tokens & ~UNLEARNED).max() if encoded.end_learned is not None else tokens.max()) if len(tokens) else 0
    if largest >= settings.vocabulary_size:
        raise StageFailedError(
            f"token {largest} does not fit a vocabulary of {settings.vocabulary_size}",
            where="tokenizer",
            fix="tokenizer.json and the packing settings do not belong together: run from `pack` with --force",
        )
    lengths = np.diff(offsets) + 1
    document, offset, length = split_lengths(lengths, settings.sequence_length)
    bins = best_fit(length, settings.sequence_length)
    order = np.argsort(bins, kind="stable")
    document, offset, length, bins = document[order], offset[order], length[order], bins[order]
    piece_targets = np.cumsum(length) - length
    out = np.empty(int(length.sum()), np.uint32)
    ends = offset + length == lengths[document]
    pieces = np.stack((offsets[document] + offset, length, piece_targets), axis=1)
    gather(np.ascontiguousarray(tokens), pieces, ends, settings.eos_id, out)

    piece_starts = np.append(0, np.cumsum(np.bincount(bins))).astype(np.int32)
    token_starts = np.append(piece_targets, len(out))[piece_starts].astype(np.int32)
    no_loss = None
    if encoded.end_learned is not None:
        out[(piece_targets + length - 1)[ends & ~encoded.end_learned[document]]] |= UNLEARNED
        no_loss = spans_without_loss(out >= UNLEARNED, token_starts)
        out &= ~UNLEARNED
    table = chunk_table(
        out,
        token_starts,
        piece_starts,
        doc_len=length.astype(np.int32),
        doc_row=document + first_row,
        doc_off=offset,
        no_loss=no_loss,
        wide=settings.vocabulary_size > WIDE,
    )
    text_bytes = int(pc.sum(pc.binary_length(documents.texts)).as_py() or 0)
    return Packed(table, int((lengths > settings.sequence_length).sum()), text_bytes)


def chunk_table(
    tokens: np.ndarray,
    token_starts: np.ndarray,
    piece_starts: np.ndarray,
    *,
    doc_len: np.ndarray,
    doc_row: np.ndarray,
    doc_off: np.ndarray,
    no_loss: pa.Array | None = None,
    wide: bool = False,
) -> pa.Table:
    """The columns of a chunk. `token_starts` and `piece_starts` (int32[sequences + 1]) cut the flat arrays into sequences;
    `no_loss` is list<int32> of (start, end) pairs of tokens that are read but not learned."""

    def lists(starts: np.ndarray, values: np.ndarray, kind: pa.DataType) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(values, kind))

    n = len(token_starts) - 1
    none = pa.ListArray.from_arrays(pa.array(np.zeros(n + 1, np.int32)), pa.array([], pa.int32()))
    columns = {"tokens": lists(token_starts, (tokens & 0xFFFF).astype(np.uint16), pa.uint16())}
    if wide:
        columns["tokens_high"] = lists(token_starts, (tokens >> 16).astype(np.uint8), pa.uint8())
    columns["doc_len"] = lists(piece_starts, doc_len, pa.int32())
    columns["doc_row"] = lists(piece_starts, doc_row, pa.int64())
    columns["doc_off"] = lists(piece_starts, doc_off, pa.int64())
    columns["no_loss"] = none if no_loss is None else no_loss
    return pa.table(columns)


def content_digest(table: pa.Table) -> str:
    """blake3 over the decoded columns: the same for every codec, batch layout and library version."""
    digest = blake3()
    for name in table.column_names:
        column = table[name]
        lengths = pc.list_value_length(column).to_numpy().astype(np.int32)
        values = pc.list_flatten(column).combine_chunks().to_numpy(zero_copy_only=False)
        digest.update(f"{name} {column.type.value_type} {len(lengths)} {len(values)}\n".encode())
        digest.update(lengths.tobytes())
        digest.update(values.tobytes())
    found: str = digest.hexdigest()
    return found


def commit_chunk(folder: Path, wanted: Range, packed: Packed, settings: ChunkSettings, *, expected: str = "") -> ChunkFacts:
    """Write a chunk beside, sync, rename into its place; what was there is replaced at once or not at all.

    Raises:
        StageFailedError: the content's digest is not the `expected` one; nothing was written.
    """
    table = packed.table
    content = content_digest(table)
    if expected and content != expected:
        raise StageFailedError(
            "a chunk made again has another content than the one that was lost",
            where=wanted.name,
            fix="run from `pack` with --force: everything after it follows the new content",
        )
    target = folder / f"{wanted.name}.arrow"
    beside = folder / f".writing-{target.name}-{uuid.uuid4().hex[:8]}"
    codec = None if settings.codec == "none" else settings.codec
    compression = pa.Codec("lz4", compression_level=LZ4_LEVEL) if codec == "lz4" else codec
    options = ipc.IpcWriteOptions(compression=compression, use_threads=False)
    header = {
        "format": FORMAT, "side": wanted.side, "chunk": wanted.chunk, "batch_rows": settings.batch_rows, **asdict(settings),
        "documents": wanted.documents, "cut_documents": packed.cut_documents, "text_bytes": packed.text_bytes,
        "content_digest": content,
    }  # fmt: skip
    texts = {key: str(value) for key, value in header.items()}
    texts["header_digest"] = fingerprint_of(texts)  # with the content's digest: a file tells by itself whether it is whole
    schema = table.schema.with_metadata({PREFIX + key: value for key, value in texts.items()})
    try:
        with ipc.new_file(beside, schema, options=options) as writer:
            writer.write_table(table.cast(schema), max_chunksize=settings.batch_rows)
        sync_file(beside)
        data = beside.read_bytes()  # what the file system has, not what was sent to it
        digest, size = checksum(data), len(data)
        fault_point("cache.before_commit")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(folder)
    tokens = int(pc.sum(pc.list_value_length(table["tokens"])).as_py() or 0)
    return ChunkFacts(
        wanted.side, wanted.chunk, digest, content, size, table.num_rows, tokens, wanted.documents,
        packed.cut_documents, packed.text_bytes, folder.name,
    )  # fmt: skip


def read_header(schema: pa.Schema, where: str) -> dict[str, str]:
    """What a chunk's schema says of it; every value as text.

    Raises:
        DamagedError: it is no chunk, of a format that this version does not know, or not what was written.
    """
    header = {key.decode().removeprefix(PREFIX): value.decode() for key, value in (schema.metadata or {}).items()}
    if header.get("format") != str(FORMAT):
        raise DamagedError(f"chunk format {header.get('format')}, this version reads {FORMAT}", where=where)
    if header.pop("header_digest", "") != fingerprint_of(header):
        raise DamagedError("the header is not what was written", where=where)
    return header


def settings_in(header: Mapping[str, str]) -> ChunkSettings:
    """The settings that a chunk was made with."""
    numbers = {name: int(header[name]) for name in ("sequence_length", "vocabulary_size", "eos_id", "pad_id")}
    return ChunkSettings(**numbers, codec=header["codec"])


def inspect_chunk(path: Path) -> tuple[ChunkFacts, ChunkSettings]:
    """What a chunk file says of itself, once all its columns were decoded and their digest found to be the one in its header.

    Raises:
        DamagedError: it is no whole chunk.
    """
    try:
        data = path.read_bytes()
        with ipc.open_file(data) as reader:
            header = read_header(reader.schema, str(path))
            table = reader.read_all()
            table.validate(full=True)
            content = content_digest(table)
            tokens = int(pc.sum(pc.list_value_length(table["tokens"])).as_py() or 0)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedError(f"cannot be read as a chunk ({type(error).__name__})", where=str(path)) from error
    if content != header["content_digest"]:
        raise DamagedError("the columns are not what was written", where=str(path))
    facts = ChunkFacts(
        header["side"], int(header["chunk"]), checksum(data), content, len(data), table.num_rows, tokens,
        int(header["documents"]), int(header["cut_documents"]), int(header["text_bytes"]), path.parent.name,
    )  # fmt: skip
    return facts, settings_in(header)
