"""One packed sequence for people: its documents, and every token as training sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline_lib.errors import NotFoundError
from pipeline_lib.packing.cache import ancestry, cache_folder, read_chunks
from pipeline_lib.packing.growth import gone_of, tombstones_of
from pipeline_lib.packing.sequences import SequenceReader

if TYPE_CHECKING:
    from pipeline_lib.workspace.artifact import Artifact
    from pipeline_lib.workspace.workspace import Workspace


@dataclass(frozen=True)
class Piece:
    """A document's part in a sequence."""

    document: str  # hexadecimal doc_id
    domain: str
    row: int
    first_token: int  # of the document
    tokens: int


@dataclass(frozen=True)
class Token:
    """A token as training sees it."""

    id: int
    text: str
    piece: int  # place in `Sight.pieces`
    learned: bool  # it is predicted: not the first of a piece, not in a span without loss
    special: bool


@dataclass(frozen=True)
class Sight:
    """A packed sequence, looked at."""

    side: str
    sequence: int
    length: int  # tokens it could hold
    pieces: list[Piece]
    tokens: list[Token]


def look_at(workspace: Workspace, filled: Artifact, side: str, sequence: int) -> Sight:
    """A sequence of the cache that a `fill_gaps` artifact vouches for.

    Raises:
        NotFoundError: the side has no such sequence.
        DamagedError: its chunk is not what was committed.
    """
    folder = cache_folder(workspace, filled.details["cache"])
    chunks = read_chunks(filled.files("chunks"))
    reader = SequenceReader(folder, chunks, side, dead=tombstones_of(filled), gone=gone_of(filled, side))
    if not 0 <= sequence < len(reader):
        raise NotFoundError(
            f"the side {side!r} has no sequence {sequence}",
            fix=f"0 … {len(reader) - 1}" if len(reader) else "--side train, dev or test",
        )
    found = reader[sequence]
    packs = ancestry(workspace, workspace.artifact(filled.manifest.inputs["pack"]["key"]))
    table = pa.concat_tables([pq.read_table(pack.file("rows"), columns=["doc_id", "domain"]) for pack in packs])
    rows = table.take(pa.array(found.doc_row)).to_pylist()
    pieces = [
        Piece(row["doc_id"].hex(), row["domain"], int(number), int(first), int(tokens))
        for row, number, first, tokens in zip(rows, found.doc_row, found.doc_off, found.doc_len, strict=True)
    ]
    learned = np.ones(len(found.tokens), bool)
    learned[np.cumsum(found.doc_len) - found.doc_len] = False
    for start, end in found.no_loss:
        learned[start:end] = False
    texts, special = _texts(packs[-1], np.split(found.tokens, np.cumsum(found.doc_len)[:-1]))
    owner = np.repeat(np.arange(len(pieces)), found.doc_len).tolist()
    tokens = [Token(*values) for values in zip(found.tokens.tolist(), texts, owner, learned.tolist(), special, strict=True)]
    return Sight(side, sequence, reader.settings.sequence_length, pieces, tokens)


def _texts(pack: Artifact, pieces: Sequence[np.ndarray]) -> tuple[list[str], list[bool]]:
    """What each token spells where it stands, and whether it is a special one.

    A character of several tokens is spelled by its last one; where a piece ends inside of a character, its last token is U+FFFD.
    """
    from tokenizers import Tokenizer
    from tokenizers.decoders import DecodeStream

    path = next(path for path in pack.files("tokenizer") if path.name == "tokenizer.json")
    tokenizer = Tokenizer.from_str(path.read_text("utf-8"))
    special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    texts: list[str] = []
    for piece in pieces:
        stream = DecodeStream(skip_special_tokens=False)
        spelled = [stream.step(tokenizer, token) for token in piece.tolist()]
        texts += [text or "" for text in spelled[:-1]]
        texts.append("\ufffd" if spelled[-1] is None else spelled[-1])
    return texts, [token in special for piece in pieces for token in piece.tolist()]
