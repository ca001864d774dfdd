"""What every signal means, and the table of signals of a batch of texts. `README.md` shows the same list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline_lib.corpus.personal import EMAIL, IP, KEY, PHONE, find
from pipeline_lib.errors import StageFailedError
from pipeline_lib.extensions import extensions
from pipeline_lib.quality import rule_kernel
from pipeline_lib.quality.compression import compression_ratios
from pipeline_lib.quality.language import identify, installed_model
from pipeline_lib.quality.ngrams import NgramModel, likelihoods, ngram_model
from pipeline_lib.tables.buffers import Bytes, Offsets, text_buffers
from pipeline_lib.tables.schemas import DOC_ID

CHARACTERS_PER_TOKEN = 4.0
"""Characters of English prose per token of a usual BPE vocabulary; what `est_tokens` assumes until a tokenizer is trained."""
PAIRS = 8.0
"""Pairs of words that `likeness` takes for independent evidence: a text has hundreds, and they depend on each other."""
PREFIX = "ext_"  # of signals that extensions register
PERSONAL = {"emails": EMAIL, "ip_addresses": IP, "phone_numbers": PHONE, "keys": KEY}


@dataclass(frozen=True)
class Signal:
    """Name, range, unit, formula and source of a signal. Stored as int64 (`whole`), float64 (`real`) or string (`text`)."""

    name: str
    range: str
    unit: str
    meaning: str
    source: str = ""
    form: Literal["whole", "real", "text"] = "real"


def _count(name: str, range_: str, unit: str, meaning: str, source: str = "") -> Signal:
    return Signal(name, range_, unit, meaning, source, "whole")


def _share(name: str, meaning: str, source: str = "") -> Signal:
    return Signal(name, "0 to 1", "share", meaning, source)


SIGNALS = (
    _count("bytes", "≥ 1", "bytes", "size in UTF-8"),
    _count("characters", "≥ 1", "characters", "Unicode code points"),
    _count("words", "≥ 0", "words", "words with a character that is no punctuation", "Gopher"),
    _count("words_and_marks", "≥ 0", "words", "words and punctuation marks, as the splitter gives them"),
    _count("lines", "≥ 0", "lines", "lines that hold a word"),
    _count("paragraphs", "≥ 0", "paragraphs", "parts of the text between two or more line feeds", "Gopher"),
    _count(
        "sentences",
        "≥ 0",
        "sentences",
        "full stops, question and exclamation marks before another word or the end of a line",
        "C4",
    ),
    Signal("mean_word_length", "≥ 0", "characters", "characters of `words`, by `words`", "Gopher"),
    Signal(
        "mean_line_length",
        "≥ 0",
        "characters",
        "characters of `lines` without white space at their ends, by `lines`",
        "The Stack",
    ),
    _count("max_line_length", "≥ 0", "characters", "longest line, without white space at its ends", "The Stack"),
    Signal("hash_per_word", "≥ 0", "per word", "`#` characters by `words_and_marks`", "Gopher"),
    Signal("ellipsis_per_word", "≥ 0", "per word", "`...` and `…` by `words_and_marks`", "Gopher"),
    _share("bullet_line_share", "lines that begin with `-` or `•`, by all lines", "Gopher"),
    _share("ellipsis_line_share", "lines that end in `...` or `…`, by all lines", "Gopher"),
    _share("terminal_line_share", "lines whose last character ends a sentence in some script, by `lines`", "FineWeb"),
    _share("short_line_share", "lines of at most 30 characters, by `lines`", "FineWeb"),
    Signal("newlines_per_word", "≥ 0", "per word", "line feeds by `words_and_marks`", "FineWeb"),
    _share("alpha_word_share", "words with a letter, by `words_and_marks`", "Gopher"),
    _count("stop_words", "0 to 8", "words", "how many of the, be, to, of, and, that, have, with occur", "Gopher"),
    _share("letter_share", "letters by characters that are no white space", "The Stack"),
    _share("digit_share", "digits 0 to 9 by characters that are no white space"),
    _share("upper_share", "capitals A to Z by letters"),
    _share("symbol_share", "neither letters nor digits, by characters that are no white space"),
    _share("code_line_share", "lines that end in `;` `{` `}` `[` `(` `=` `\\` `()` or `):`, by `lines`"),
    _count("braces", "≥ 0", "characters", "`{` and `}`", "C4"),
    _share("duplicate_line_share", "lines that occurred before, by lines between line feeds", "Gopher"),
    _share("duplicate_line_char_share", "characters in lines that occurred before, by `characters`", "Gopher"),
    _share(
        "duplicate_text_line_char_share", "the same for lines that hold a word, by characters that are no line feed", "FineWeb"
    ),
    _share("duplicate_paragraph_share", "paragraphs that occurred before, by `paragraphs`", "Gopher"),
    _share("duplicate_paragraph_char_share", "characters in paragraphs that occurred before, by `characters`", "Gopher"),
    *(
        _share(f"top_{n}gram_char_share", f"characters × count of the most frequent {n}-gram of words, by `characters`", "Gopher")
        for n in (2, 3, 4)
    ),
    *(
        _share(
            f"duplicate_{n}gram_char_share", f"characters in {n}-grams of words that occurred before, by `characters`", "Gopher"
        )
        for n in range(5, 11)
    ),
    _count(
        "clean_lines",
        "≥ 0",
        "lines",
        "lines that C4 keeps: end in `.` `?` `!` `\"` or `'`, three words, no script or policy notice",
        "C4",
    ),
    _count("clean_sentences", "≥ 0", "sentences", "sentences in `clean_lines`", "C4"),
    _count("clean_brace_lines", "≥ 0", "lines", "lines that end well and hold a `{`", "C4"),
    _count("clean_lorem_ipsum", "≥ 0", "lines", "lines that end well and hold `lorem ipsum`", "C4"),
    Signal("compression_ratio", "> 0", "ratio", "estimated size after LZ4 (greedy parse), by `bytes`", "Compel"),
    _count("emails", "≥ 0", "finds", "e-mail addresses"),
    _count("ip_addresses", "≥ 0", "finds", "IPv4 and IPv6 addresses"),
    _count("phone_numbers", "≥ 0", "finds", "telephone numbers"),
    _count("keys", "≥ 0", "finds", "access keys, web tokens and private keys"),
    Signal(
        "language", "code", "ISO 639", "most probable language; empty without the extra `language`", "fastText lid.176", "text"
    ),
    Signal("language_confidence", "0 to 1", "probability", "of that language", "fastText lid.176"),
    Signal("reference_unigram_logp", "≤ 0", "bits per word", "mean log2 p of words in the reference corpus", "arXiv 2409.09613"),
    Signal(
        "reference_bigram_logp",
        "≤ 0",
        "bits per pair",
        "mean log2 p of pairs of words in the reference corpus",
        "arXiv 2409.09613",
    ),
    Signal("reject_unigram_logp", "≤ 0", "bits per word", "mean log2 p of words in the reject corpus", "arXiv 2409.09613"),
    Signal(
        "reject_bigram_logp", "≤ 0", "bits per pair", "mean log2 p of pairs of words in the reject corpus", "arXiv 2409.09613"
    ),
    Signal(
        "likeness",
        "0 to 1",
        "score",
        "1 / (1 + 2^(8 × (reject − reference))) of the two signals of pairs; low: words in no order",
    ),
    Signal(
        "classifier",
        "0 to 1, null",
        "probability",
        "of being a good example; null without a trained classifier",
        "DCLM, fastText",
    ),
    _count("turns", "≥ 0", "turns", "turns of an instruction record; 0 for texts"),
    _count("prompt_bytes", "≥ 0", "bytes", "what the user says in an instruction record"),
    _count("response_bytes", "≥ 0", "bytes", "what the assistant says in an instruction record"),
    _count("est_tokens", "≥ 1", "tokens", f"characters / {CHARACTERS_PER_TOKEN:g}, rounded"),
    Signal(
        "quality", "0 to 1", "score", "mean of length, distinctness, compressibility, words, language and likeness, see below"
    ),
)
NAMES = tuple(signal.name for signal in SIGNALS)
TEXT_NAMES = tuple(signal.name for signal in SIGNALS if signal.form == "text")


def signal_names() -> tuple[str, ...]:
    """All columns of `signals` beside doc_id: the built-in ones, then those of the loaded extensions."""
    return (*NAMES, *(PREFIX + name for name in extensions("signal")))


def signal_table(
    doc_ids: pa.Array, texts: pa.Array, turns: pa.Array | None = None, *, ngrams: NgramModel | None = None
) -> pa.Table:
    """The signals of a batch: doc_id and one column a signal, rows in the order of the texts.

    Args:
        doc_ids: binary(16).
        texts: large_string without nulls.
        turns: `schemas.TURNS`, null for documents that are no instruction records; not given: none is.
        ngrams: model of the n-gram signals; not given: the one that ships.

    Raises:
        StageFailedError: an extension's signal raises or does not give one number a document.
    """
    data, offsets = text_buffers(texts)
    matrix = rule_kernel.measure_rules(data, offsets)
    columns: dict[str, Any] = {name: matrix[:, index] for index, name in enumerate(rule_kernel.COLUMNS)}
    columns["compression_ratio"] = compression_ratios(data, offsets)
    columns |= _personal(data, offsets)
    columns["language"], columns["language_confidence"] = identify(data, offsets, installed_model())
    shipped = ngram_model("")
    model = ngrams or shipped
    columns |= likelihoods(data, offsets, model)
    columns["likeness"] = 1.0 / (1.0 + np.exp2(PAIRS * (columns["reject_bigram_logp"] - columns["reference_bigram_logp"])))
    if model.digest == shipped.digest:  # it has read English only
        columns["likeness"] = np.where(_foreign(columns["language"]), 0.5, columns["likeness"])
    columns |= _conversation(turns, len(texts))
    columns["est_tokens"] = np.maximum(1.0, np.rint(columns["characters"] / CHARACTERS_PER_TOKEN))
    columns["quality"] = quality(columns)
    arrays = [_column(signal, columns[signal.name]) for signal in SIGNALS]
    for name, function in extensions("signal").items():
        arrays.append(_own_signal(name, function, texts))
    fields = [pa.field("doc_id", DOC_ID), *(pa.field(name, a.type) for name, a in zip(signal_names(), arrays, strict=True))]
    return pa.Table.from_arrays([doc_ids, *arrays], schema=pa.schema(fields))


def signals_ready() -> None:
    """Load compiled code and models, so that the first batch is measured as fast as the others."""
    signal_table(pa.nulls(1, pa.binary(16)), pa.array(["The mill."], pa.large_string()))


def _column(signal: Signal, values: Any) -> pa.Array:
    if signal.form == "text":
        return values
    return pa.array(values.astype(np.int64)) if signal.form == "whole" else pa.array(values, from_pandas=True)  # NaN: null


def _personal(data: Bytes, offsets: Offsets) -> dict[str, NDArray[np.int64]]:
    rows, _, _, kinds = find(data, offsets, sum(PERSONAL.values()))
    return {name: np.bincount(rows[kinds == kind], minlength=len(offsets) - 1) for name, kind in PERSONAL.items()}


def _conversation(turns: pa.Array | None, rows: int) -> dict[str, NDArray[np.int64]]:
    """How many turns, and how long what the user and what the assistant say."""
    if turns is None or turns.null_count == rows:
        return {name: np.zeros(rows, np.int64) for name in ("turns", "prompt_bytes", "response_bytes")}
    counts = pc.fill_null(pc.list_value_length(turns), 0).to_numpy().astype(np.int64)
    record, said = np.repeat(np.arange(rows), counts), turns.flatten()
    sizes = pc.subtract(said.field("end"), said.field("start")).to_numpy()
    found = {"turns": counts}
    for name, role in (("prompt_bytes", "user"), ("response_bytes", "assistant")):
        is_role = pc.equal(said.field("role"), role).to_numpy(zero_copy_only=False)
        found[name] = np.bincount(record[is_role], sizes[is_role], minlength=rows).astype(np.int64)
    return found


def quality(signals: Mapping[str, Any]) -> NDArray[np.float64]:
    """A score in [0, 1] that does not depend on other documents: the mean of six parts, each 0 (bad) to 1 (good).

    - length: ln(1 + words) / ln(301), at most 1: full from 300 words
    - distinctness: 1 − the largest of duplicate_line_char_share, duplicate_5gram_char_share and top_2gram_char_share
    - compressibility: 1 for compression ratios in [0.3, 0.85], falling to 0 at 0.1 (repetition) and 1.05 (noise)
    - words: alpha_word_share
    - language: stop_words / 8 for English and where the language is not known, else language_confidence
    - likeness: how much likelier the pairs of words are in the reference than in the reject corpus

    With a classifier, the mean of this and of `classifier`. A combination by hand, to rank documents of one domain; a document
    without words has quality 0.
    """
    repeated = np.max([signals[f"{name}_char_share"] for name in ("duplicate_line", "duplicate_5gram", "top_2gram")], axis=0)
    parts = (
        np.minimum(np.log1p(signals["words"]) / np.log(301.0), 1.0),
        np.clip(1.0 - repeated, 0.0, 1.0),
        np.interp(signals["compression_ratio"], (0.1, 0.3, 0.85, 1.05), (0.0, 1.0, 1.0, 0.0)),
        signals["alpha_word_share"],
        np.where(_foreign(signals["language"]), signals["language_confidence"], signals["stop_words"] / 8.0),
        signals["likeness"],
    )
    mean: NDArray[np.float64] = np.mean(parts, axis=0)
    learned = signals["classifier"]
    mean = np.where(np.isnan(learned), mean, (mean + learned) / 2)
    return np.where(signals["words"] > 0, mean, 0.0)


def _foreign(language: pa.Array) -> NDArray[np.bool_]:
    """Whether a text is in another language than English, as far as that is known."""
    is_known: NDArray[np.bool_] = pc.is_in(language, value_set=pa.array(["en", ""])).to_numpy(zero_copy_only=False)
    return ~is_known


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
