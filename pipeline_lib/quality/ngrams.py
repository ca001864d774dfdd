"""Models of hashed word n-grams: how likely a text is in a reference and in a reject corpus, and a linear classifier.

A word is a run of ASCII letters and digits and of all bytes beyond ASCII, in small letters. Words and pairs of neighbours are
hashed (64-bit FNV-1a) into `UNIGRAMS` and `BIGRAMS` buckets.

- **Likelihood**: of each corpus, two multinomials over the buckets with add-one smoothing. A table keeps −log2 p of each bucket
  in eighths of a bit, one byte each (at most 31.9 bits), so a mean of log2 p is exact in integers and the same everywhere.
- **Classifier**: logistic regression on the frequencies of the same buckets, good examples against others, trained by gradient
  descent in a fixed order (the recipe of DCLM and of fastText's classifiers, Joulin et al. 2017, without a download).

A model is one `.npz` file, at most a megabyte. `README.md` says how the one that ships (`ngrams.npz`) was made; `millrace
fit-ngrams` fits another one.
"""

# ruff: noqa: PLR0917

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
from blake3 import blake3
from numba import njit
from numpy.typing import NDArray

from pipeline_lib.config.data import ScoreConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.quality.compiled import KERNEL, OFFSETS, TEXT
from pipeline_lib.tables.buffers import Bytes, Offsets, text_buffers

UNIGRAMS, BIGRAMS = 1 << 15, 1 << 17
STEPS = 8  # of a table's bit
SHIPPED = Path(__file__).with_name("ngrams.npz")
COLUMNS = ("reference_unigram_logp", "reference_bigram_logp", "reject_unigram_logp", "reject_bigram_logp")
PASSES, RATE = 8, 2.0  # of the classifier's training: enough to separate a few hundred examples, too few to learn them by heart

_BASIS, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_MIX, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(40)
_LAST = np.uint64(UNIGRAMS - 1), np.uint64(BIGRAMS - 1)
_UNIGRAM_MASK, _BIGRAM_MASK = _LAST


@dataclass(frozen=True)
class NgramModel:
    """Tables of a model; `classifier` has a weight for each unigram and then each bigram bucket, or is empty.

    Attributes:
        reference: −log2 p in eighths of a bit: `UNIGRAMS`, then `BIGRAMS` bytes.
        reject: the same of the reject corpus.
        classifier: float32 weights, the last one is the bias.
        digest: of the file.
    """

    reference: NDArray[np.uint8]
    reject: NDArray[np.uint8]
    classifier: NDArray[np.float32]
    digest: str


def _small() -> NDArray[np.uint8]:
    """Each byte of a word in small letters; 0: no byte of a word."""
    table = np.arange(256, dtype=np.uint8)
    table[0x41:0x5B] |= 0x20
    table[[byte for byte in range(128) if not chr(byte).isalnum()]] = 0
    return table


_SMALL = _small()


@njit(f"i8({TEXT}, i8, i8, i4[::1])", **KERNEL)
def _buckets(data, at, end, out):  # type: ignore[no-untyped-def]
    """Write two buckets a word, (unigram, bigram with the word before, or −1); returns the number of words."""
    words, previous = 0, np.uint64(0)
    while at < end:
        value, start = _BASIS, at
        while at < end:
            byte = _SMALL[np.uint64(data[np.uint64(at)])]
            if byte == 0:
                break
            value = (value ^ np.uint64(byte)) * _PRIME
            at += 1
        if at > start:
            value = (value ^ (value >> np.uint64(32))) * _MIX
            out[2 * words] = np.int32((value >> _SHIFT) & _UNIGRAM_MASK)
            both = (previous ^ value) * _MIX
            out[2 * words + 1] = np.int32((both >> _SHIFT) & _BIGRAM_MASK) if words else -1
            previous = (value ^ (value >> np.uint64(29))) * _PRIME
            words += 1
        at += 1
    return words


@njit(
    f"void({TEXT}, {OFFSETS}, {TEXT}, {TEXT}, Array(f4, 1, 'C', readonly=True), i4[::1], f8[:, ::1])",
    **KERNEL,
)
def _likelihoods(data, offsets, reference, reject, classifier, buckets, out):  # type: ignore[no-untyped-def]
    for row in range(len(offsets) - 1):
        words = _buckets(data, offsets[row], offsets[row + 1], buckets)
        first, second, third, fourth, score = 0, 0, 0, 0, 0.0
        for k in range(words):
            one, two = buckets[2 * k], buckets[2 * k + 1]
            first += reference[one]
            third += reject[one]
            if two >= 0:
                second += reference[UNIGRAMS + two]
                fourth += reject[UNIGRAMS + two]
        if len(classifier):
            for k in range(words):
                one, two = buckets[2 * k], buckets[2 * k + 1]
                score += classifier[one]
                if two >= 0:
                    score += classifier[UNIGRAMS + two]
        values = out[row]
        values[0] = -first / (STEPS * words) if words else 0.0
        values[2] = -third / (STEPS * words) if words else 0.0
        values[1] = -second / (STEPS * (words - 1)) if words > 1 else 0.0
        values[3] = -fourth / (STEPS * (words - 1)) if words > 1 else 0.0
        values[4] = 1.0 / (1.0 + np.exp(-(score / words + classifier[-1]))) if words and len(classifier) else np.nan


@njit(f"void({TEXT}, {OFFSETS}, i8[::1], i4[::1])", **KERNEL)
def _count(data, offsets, counts, buckets):  # type: ignore[no-untyped-def]
    for row in range(len(offsets) - 1):
        words = _buckets(data, offsets[row], offsets[row + 1], buckets)
        for k in range(words):
            counts[buckets[2 * k]] += 1
            if buckets[2 * k + 1] >= 0:
                counts[UNIGRAMS + buckets[2 * k + 1]] += 1


@njit(f"void({TEXT}, {OFFSETS}, i8[::1], f8[::1], f8[::1], i8, f8, i4[::1])", **KERNEL)
def _train(data, offsets, order, targets, weights, passes, rate, buckets):  # type: ignore[no-untyped-def]
    for step in range(passes):
        for row in order:
            words = _buckets(data, offsets[row], offsets[row + 1], buckets)
            if words == 0:
                continue
            score = 0.0
            for k in range(words):
                score += weights[buckets[2 * k]]
                if buckets[2 * k + 1] >= 0:
                    score += weights[UNIGRAMS + buckets[2 * k + 1]]
            slope = targets[row] - 1.0 / (1.0 + np.exp(-(score / words + weights[-1])))
            change = rate * (1.0 - step / passes) * slope
            weights[-1] += 0.1 * change
            for k in range(words):
                weights[buckets[2 * k]] += change / words * 50.0
                if buckets[2 * k + 1] >= 0:
                    weights[UNIGRAMS + buckets[2 * k + 1]] += change / words * 50.0


def _room(offsets: Offsets) -> NDArray[np.int32]:
    return np.empty(int(np.diff(offsets).max(initial=0)) + 4, np.int32)


def likelihoods(data: Bytes, offsets: Offsets, model: NgramModel) -> dict[str, NDArray[np.float64]]:
    """`COLUMNS` (mean log2 p, bits a word or pair of words, ≤ 0; 0 without any) and `classifier` (0 to 1; NaN: no classifier)."""
    out = np.empty((len(offsets) - 1, 5))
    _likelihoods(data, offsets, model.reference, model.reject, model.classifier, _room(offsets), out)
    return {name: out[:, index] for index, name in enumerate((*COLUMNS, "classifier"))}


def fit_tables(texts: pa.Array) -> NDArray[np.uint8]:
    """The tables of a corpus (large_string): −log2 p of each bucket, in eighths of a bit."""
    data, offsets = text_buffers(texts)
    counts = np.zeros(UNIGRAMS + BIGRAMS, np.int64)
    _count(data, offsets, counts, _room(offsets))
    tables = []
    for part in (counts[:UNIGRAMS], counts[UNIGRAMS:]):
        bits = -np.log2((part + 1.0) / (part.sum() + len(part)))
        tables.append(np.minimum(np.rint(bits * STEPS), 255).astype(np.uint8))
    return np.concatenate(tables)


def fit_classifier(good: pa.Array, others: pa.Array) -> NDArray[np.float32]:
    """Weights that tell good examples from other texts (large_string columns); classes count the same whatever their sizes.

    Raises:
        ConfigError: one side has no text.
    """
    if not len(good) or not len(others):
        raise ConfigError("a classifier needs good examples and other texts", fix="give files that hold texts")
    size = max(len(good), len(others))
    texts = pa.concat_arrays([good, others])
    data, offsets = text_buffers(texts)
    pairs = [(i % len(good), len(good) + i % len(others)) for i in range(size)]  # the smaller side is repeated
    order = np.array(pairs, np.int64).reshape(-1)
    targets = np.concatenate([np.ones(len(good)), np.zeros(len(others))])
    weights = np.zeros(UNIGRAMS + BIGRAMS + 1)
    _train(data, offsets, order, targets, weights, PASSES, RATE, _room(offsets))
    return weights.astype(np.float16).astype(np.float32)  # half precision is stored


def save_model(path: Path, tables: Mapping[str, NDArray[np.uint8]], classifier: NDArray[np.float32] | None = None) -> None:
    """Write a model: tables `reference` and `reject` of `fit_tables`, and a classifier."""
    weights = np.zeros(0, np.float16) if classifier is None else classifier.astype(np.float16)
    with path.open("wb") as file:
        np.savez_compressed(file, reference=tables["reference"], reject=tables["reject"], classifier=weights)


def ngram_model(path: str) -> NgramModel:
    """The model of a file; "": the one that ships.

    Raises:
        ConfigError: the file is no model.
    """
    file = Path(path).expanduser() if path else SHIPPED
    try:
        data = file.read_bytes()
        return _read(file, blake3(data).hexdigest()[:32])
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        fix = "`millrace fit-ngrams` writes one"
        raise ConfigError(f"is no n-gram model: {error}", where=f"score.ngram_model: {file}", fix=fix) from error


@lru_cache(2)
def _read(file: Path, digest: str) -> NgramModel:
    with np.load(file, allow_pickle=False) as arrays:
        reference, reject, classifier = (np.array(arrays[name]) for name in ("reference", "reject", "classifier"))
    for table in (reference, reject):
        if table.dtype != np.uint8 or table.shape != (UNIGRAMS + BIGRAMS,):
            raise ValueError("its tables have another size")
    if len(classifier) not in (0, UNIGRAMS + BIGRAMS + 1):
        raise ValueError("its classifier has another size")
    return NgramModel(reference, reject, classifier.astype(np.float32), digest)


def file_digests(*, score: ScoreConfig) -> dict[str, str]:
    """What `score` reads outside the workspace: the n-gram model and the language model."""
    from pipeline_lib.quality.language import model_digest

    return {"ngrams": ngram_model(score.ngram_model).digest, "language": model_digest()}


def shuffled(texts: Sequence[str], seed: int = 0) -> list[str]:
    """The same words in random order: what has the right words and no sentences."""
    random = np.random.default_rng(seed)
    return [" ".join(random.permutation(text.split())) for text in texts]
