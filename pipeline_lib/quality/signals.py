"""What every signal means, and the table of signals of a batch of texts. `README.md` shows the same list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.errors import StageFailedError
from pipeline_lib.extensions import extensions
from pipeline_lib.quality.kernels import COLUMNS, measure
from pipeline_lib.tables.buffers import text_buffers
from pipeline_lib.tables.schemas import DOC_ID

CHARACTERS_PER_TOKEN = 4.0
"""Characters of English prose per token of a usual BPE vocabulary; what `est_tokens` assumes until a tokenizer is trained."""
PREFIX = "ext_"  # of signals that extensions register


@dataclass(frozen=True)
class Signal:
    """Name, range, unit, meaning and source of a signal."""

    name: str
    range: str
    unit: str
    meaning: str
    source: str = ""
    whole: bool = False  # stored as int64, else float64


def _repetition(n: int) -> Signal:
    meaning = f"characters in {n}-grams of words that occurred before, by characters"
    return Signal(f"duplicate_{n}gram_char_share", "0 to 1", "share", meaning, "Gopher")


def _top(n: int) -> Signal:
    return Signal(
        f"top_{n}gram_char_share",
        "0 to 1",
        "share",
        f"characters × count of the most frequent repeated {n}-gram, by characters",
        "Gopher",
    )


SIGNALS = (
    Signal("bytes", "≥ 1", "bytes", "size in UTF-8", whole=True),
    Signal("characters", "≥ 1", "characters", "Unicode code points", whole=True),
    Signal("words", "≥ 0", "words", "runs of characters that are no white space", "Gopher", whole=True),
    Signal("lines", "≥ 0", "lines", "lines that hold a word", whole=True),
    Signal("paragraphs", "≥ 0", "paragraphs", "groups of lines between empty lines", whole=True),
    Signal("sentences", "≥ 0", "sentences", "words that end in . ! ? or …, a closing quote allowed", "C4", whole=True),
    Signal("mean_word_length", "≥ 0", "characters", "characters that are no white space, by words", "Gopher"),
    Signal("mean_line_length", "≥ 0", "characters", "length of lines without white space at their ends", "The Stack"),
    Signal("max_line_length", "≥ 0", "characters", "longest line", "The Stack", whole=True),
    Signal("hash_per_word", "≥ 0", "per word", "`#` characters by words", "Gopher"),
    Signal("ellipsis_per_word", "≥ 0", "per word", "`...` and `…` by words", "Gopher"),
    Signal("bullet_line_share", "0 to 1", "share", "lines that begin with - * • ‣ ● · or –", "Gopher"),
    Signal("ellipsis_line_share", "0 to 1", "share", "lines that end in an ellipsis", "Gopher"),
    Signal("terminal_line_share", "0 to 1", "share", "lines that end in . ! ? … or a closing quote", "C4, FineWeb"),
    Signal("short_line_share", "0 to 1", "share", "lines of at most 30 characters", "FineWeb"),
    Signal("newlines_per_word", "≥ 0", "per word", "line feeds by words", "FineWeb"),
    Signal("alpha_word_share", "0 to 1", "share", "words with a letter", "Gopher"),
    Signal("stop_words", "0 to 8", "words", "how many of the, be, to, of, and, that, have, with occur", "Gopher", whole=True),
    Signal("letter_share", "0 to 1", "share", "letters by characters that are no white space"),
    Signal("digit_share", "0 to 1", "share", "ASCII digits by characters that are no white space"),
    Signal("upper_share", "0 to 1", "share", "ASCII capitals by letters"),
    Signal("symbol_share", "0 to 1", "share", "neither letters nor digits, by characters that are no white space"),
    Signal("code_line_share", "0 to 1", "share", "lines that end in ; { } [ ( = \\ () or ):"),
    Signal("braces", "≥ 0", "characters", "`{` and `}`", "C4", whole=True),
    Signal("duplicate_line_share", "0 to 1", "share", "lines that occurred before", "Gopher"),
    Signal("duplicate_line_char_share", "0 to 1", "share", "characters in lines that occurred before", "Gopher, FineWeb"),
    Signal("duplicate_paragraph_share", "0 to 1", "share", "paragraphs that occurred before", "Gopher"),
    Signal("duplicate_paragraph_char_share", "0 to 1", "share", "characters in paragraphs that occurred before", "Gopher"),
    *(_top(n) for n in (2, 3, 4)),
    *(_repetition(n) for n in range(5, 11)),
    Signal("compression_ratio", "> 0", "ratio", "estimated size after LZ4 (greedy parse), by bytes", "Compel"),
    Signal("emails", "≥ 0", "finds", "what looks like an e-mail address", whole=True),
    Signal("ip_addresses", "≥ 0", "finds", "what looks like an IPv4 address", whole=True),
    Signal("lorem_ipsum", "≥ 0", "finds", "`lorem ipsum` in any case", "C4", whole=True),
    Signal("est_tokens", "≥ 1", "tokens", f"characters / {CHARACTERS_PER_TOKEN:g}, rounded", whole=True),
    Signal("quality", "0 to 1", "score", "mean of length, distinctness, compressibility, words and language (`quality`)"),
)  # fmt: skip
NAMES = tuple(signal.name for signal in SIGNALS)


def signal_names() -> tuple[str, ...]:
    """All columns of `signals` beside doc_id: the built-in ones, then those of the loaded extensions."""
    return (*NAMES, *(PREFIX + name for name in extensions("signal")))


def signal_table(doc_ids: pa.Array, texts: pa.Array) -> pa.Table:
    """The signals of a batch: doc_id and one column a signal, rows in the order of the texts.

    Args:
        doc_ids: binary(16).
        texts: large_string without nulls.

    Raises:
        StageFailedError: an extension's signal raises or does not give one number a document.
    """
    data, offsets = text_buffers(texts)
    matrix = np.empty((len(texts), len(COLUMNS)))
    measure(data, offsets, matrix)
    columns = {name: matrix[:, index] for index, name in enumerate(COLUMNS)}
    columns["est_tokens"] = np.maximum(1.0, np.rint(columns["characters"] / CHARACTERS_PER_TOKEN))
    columns["quality"] = quality(columns)
    arrays = [pa.array(columns[s.name].astype(np.int64) if s.whole else columns[s.name]) for s in SIGNALS]
    for name, function in extensions("signal").items():
        arrays.append(_own_signal(name, function, texts))
    fields = [pa.field("doc_id", DOC_ID), *(pa.field(name, a.type) for name, a in zip(signal_names(), arrays, strict=True))]
    return pa.Table.from_arrays([doc_ids, *arrays], schema=pa.schema(fields))


def quality(signals: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """A score in [0, 1] that does not depend on other documents: the mean of five parts, each 0 (bad) to 1 (good).

    - length: ln(1 + words) / ln(301), at most 1: full from 300 words
    - distinctness: 1 − the larger of duplicate_line_char_share and duplicate_5gram_char_share
    - compressibility: 1 for compression ratios in [0.3, 0.85], falling to 0 at 0.1 (repetition) and 1.05 (noise)
    - words: alpha_word_share
    - language: stop_words / 8

    A combination by hand, to rank documents of one domain; a document without words has quality 0.
    """
    repeated = np.maximum(signals["duplicate_line_char_share"], signals["duplicate_5gram_char_share"])
    parts = (
        np.minimum(np.log1p(signals["words"]) / np.log(301.0), 1.0),
        np.clip(1.0 - repeated, 0.0, 1.0),
        np.interp(signals["compression_ratio"], (0.1, 0.3, 0.85, 1.05), (0.0, 1.0, 1.0, 0.0)),
        signals["alpha_word_share"],
        signals["stop_words"] / 8.0,
    )
    mean: NDArray[np.float64] = np.mean(parts, axis=0)
    return np.where(signals["words"] > 0, mean, 0.0)


def _own_signal(name: str, function: object, texts: pa.Array) -> pa.Array:
    where = f"signal {name}"
    try:
        values = function(texts)  # type: ignore[operator]
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        values = pc.cast(pa.array(values), pa.float64())
    except Exception as error:
        raise StageFailedError(
            f"the extension raised {type(error).__name__}: {error}", where=where, fix="mend the module"
        ) from error
    if len(values) != len(texts):
        raise StageFailedError(f"{len(values)} values for {len(texts)} documents", where=where, fix="return one value a document")
    return values
