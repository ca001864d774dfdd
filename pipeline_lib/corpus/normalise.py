"""The recipe that makes a text out of a record's bytes. `VERSION` names it; every change it makes is a row of `edits`.

1. `mojibake` (only where asked for): text that was decoded with a wrong encoding, repaired line by line by ftfy.
2. `line_ends`: CRLF, CR, VT and FF become LF. `control`: other control characters (C0 but tab, DEL, C1) and U+FEFF go.
3. `nfc`: Unicode normalisation form C.
4. `email`, `ip`, `phone`, `key` (those that are asked for): personal data and secrets (`personal.py`) become `[email]` and so on.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.corpus import kernels, personal
from pipeline_lib.corpus.changes import KINDS, NOTHING, Changes, by_line, one_kind, spliced, then
from pipeline_lib.errors import ConfigError
from pipeline_lib.tables.buffers import text_buffers, text_column

VERSION = 2
_TOKENS = [f"[{kind}]".encode() if kind in personal.KINDS else b"" for kind in KINDS]


@dataclass(frozen=True)
class Recipe:
    """What is asked for beyond what is always done."""

    mojibake: bool = False
    redact: tuple[str, ...] = ()  # of `personal.KINDS`

    def key(self) -> dict[str, Any]:
        """Identity."""
        return {"version": VERSION, "mojibake": self.mojibake, "redact": sorted(self.redact)}

    def need(self) -> None:
        """Raise when something that is asked for is not installed.

        Raises:
            ConfigError: says what to install.
        """
        if self.mojibake:
            try:
                import ftfy  # noqa: F401
            except ImportError as error:
                raise ConfigError(
                    "needs the extra `web`", where="ingest.mojibake", fix="pip install 'millrace[web]', or switch it off"
                ) from error


def normalise(column: pa.Array, ids: pa.Array, flags: NDArray[np.uint8], recipe: Recipe = Recipe()) -> tuple[pa.Array, pa.Table]:
    """Texts after the recipe, and a row of `edits` for every change.

    Args:
        column: large_binary, valid UTF-8, no nulls.
        ids: doc_id of each text.
        flags: of `kernels.inspect`.
        recipe: what is asked for.

    Returns:
        The texts (large_string) and the edits (in bytes of the original).
    """
    text, made = column.view(pa.large_string()), NOTHING
    if recipe.mojibake:
        text, made = _unscrambled(text)
        if len(made):
            flags, bad_at = np.empty(len(text), np.uint8), np.empty(len(text), np.int64)
            kernels.inspect(*text_buffers(text), flags, bad_at)
    if (flags & (kernels.LINE_ENDS | kernels.CONTROL)).any():
        text, step = _cleaned(text, flags)
        made = then(made, step)
    if (flags & kernels.COMPOSE).any():
        text, step = _composed(text, flags & kernels.COMPOSE != 0)
        made = then(made, step)
    if recipe.redact:
        text, step = _redacted(text, recipe.redact)
        made = then(made, step)
    return text, made.edits(ids)


def _cleaned(text: pa.Array, flags: NDArray[np.uint8]) -> tuple[pa.Array, Changes]:
    data, offsets = text_buffers(text)
    out, out_offsets = np.empty(len(data), np.uint8), np.empty(len(offsets), np.int64)
    spans, counts = np.empty((kernels.count_unwanted(data), 5), np.int64), np.empty(1, np.int64)
    written = kernels.clean(data, offsets, flags, out, out_offsets, spans, counts)
    row, start, end, length, control = spans[: counts[0]].T.copy()
    kind = np.where(control == 1, KINDS.index("control"), KINDS.index("line_ends")).astype(np.uint8)
    return text_column(out[:written], out_offsets), Changes(row, start, end, length, kind)


def _composed(text: pa.Array, ask: NDArray[np.bool_]) -> tuple[pa.Array, Changes]:
    """One C call for each text that may change: pyarrow 25 decomposes where it should compose, DuckDB 2.0 loses U+11A7."""
    before = text.filter(pa.array(ask)).to_pylist()
    return _replaced(text, ask, before, [unicodedata.normalize("NFC", value) for value in before], "nfc")


def _unscrambled(text: pa.Array) -> tuple[pa.Array, Changes]:
    """ftfy, for texts beyond ASCII only."""
    import ftfy

    ask = ~pc.string_is_ascii(text).to_numpy(zero_copy_only=False)
    if not ask.any():
        return text, NOTHING
    before = text.filter(pa.array(ask)).to_pylist()
    after = ["\n".join(ftfy.fix_encoding(line) for line in value.split("\n")) for value in before]
    return _replaced(text, ask, before, after, "mojibake")


def _replaced(text: pa.Array, ask: NDArray[np.bool_], before: list[str], after: list[str], kind: str) -> tuple[pa.Array, Changes]:
    step = by_line(before, after, np.flatnonzero(ask), kind)
    if len(step):
        text = pc.replace_with_mask(text, pa.array(ask), pa.array(after, pa.large_string()))
    return text, step


def _redacted(text: pa.Array, wanted: Sequence[str]) -> tuple[pa.Array, Changes]:
    data, offsets = text_buffers(text)
    row, start, end, found = personal.find(data, offsets, sum(1 << personal.KINDS.index(kind) for kind in wanted))
    if not len(row):
        return text, NOTHING
    kind = (KINDS.index(personal.KINDS[0]) + np.log2(found)).astype(np.uint8)
    length = np.array([len(token) for token in _TOKENS], np.int64)[kind]
    step = Changes(row, start, end, length, kind)
    return text_column(*spliced(data, offsets, step, _TOKENS)), step


def extracted(ids: pa.Array, sizes: NDArray[np.int64], texts: pa.Array) -> pa.Table:
    """Rows of `edits` for texts that were made out of whole records (a page's main text).

    Args:
        ids: doc_id of each.
        sizes: bytes of the records.
        texts: what they became.
    """
    rows = np.arange(len(ids))
    lengths = pc.binary_length(texts).to_numpy().astype(np.int64)
    return one_kind(rows, np.zeros_like(rows), sizes, lengths, "extract").edits(ids)
