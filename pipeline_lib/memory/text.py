"""How alike the goals of runs are: cosine of hashed n-gram vectors, or of sentence embeddings where a model is named.

Vectors of a text: its words' character n-grams of 3 to 5 bytes, `<` and `>` around each word, hashed into 4,096 numbers (after
fastText: Bojanowski et al. 2017), weighted down where many goals have them (inverse document frequency).
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numba
import numpy as np
from numpy.typing import NDArray

DIMENSIONS = 1 << 12
SHORTEST, LONGEST = 3, 5  # bytes of an n-gram


class Goals:
    """The goals of past runs, ready to be compared with many questions.

    Args of `__init__`:
        goals: many of them may be equal: each text is looked at once.
        embedding_model: folder of a sentence-embedding model (safetensors); None: n-grams.
    """

    def __init__(self, goals: Sequence[str], *, embedding_model: Path | None = None) -> None:
        known: dict[str, int] = {}
        self._places = np.array([known.setdefault(_plain(goal), len(known)) for goal in goals], np.int64)
        self._texts, self._model = list(known), embedding_model
        self._parts = [_marked(text) for text in self._texts]

    def likeness(self, asked: str) -> NDArray[np.float64]:
        """Cosine similarity (0 to 1) of a text with every goal; 0 where one of the two says nothing.

        Raises:
            NotFoundError: there is no model in the folder.
        """
        if not self._texts:
            return np.zeros(0)
        asked = _plain(asked)
        if self._model:
            wanted = vector_of(asked, self._model)
            told = [float(wanted @ vector_of(text, self._model)) if text and asked else 0.0 for text in self._texts]
            found = np.array(told)
        else:
            parts = [_marked(asked), *self._parts]
            offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
            found = _similarities(np.frombuffer(b"".join(parts), np.uint8), offsets)
        return np.asarray(np.clip(found, 0.0, 1.0)[self._places], np.float64)


@functools.lru_cache(maxsize=1 << 16)  # the goals of all runs, each time one has ended
def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


@functools.lru_cache(maxsize=1 << 16)
def _marked(text: str) -> bytes:
    return f"<{text.replace(' ', '><')}>".encode() if text else b""


@numba.njit("int64(Array(uint8, 1, 'C', readonly=True), int64, int64)", nogil=True, cache=True)
def _code(data, start, length):  # type: ignore[no-untyped-def]
    """FNV-1a of an n-gram, folded; −1 where it spans two words."""
    code = np.uint64(14695981039346656037)
    for index in range(start, start + length):
        byte = data[index]
        if byte == 62 and index != start + length - 1:  # `>` ends a word
            return -1
        code = (code ^ np.uint64(byte)) * np.uint64(1099511628211)
    return np.int64((code ^ (code >> np.uint64(32))) & np.uint64(DIMENSIONS - 1))


@numba.njit("float64[::1](Array(uint8, 1, 'C', readonly=True), int64[::1])", nogil=True, cache=True)
def _similarities(data, offsets):  # type: ignore[no-untyped-def] # noqa: PLR0912 - one pass that counts, one that compares
    """Weighted cosine of the first text with every other one."""
    n = len(offsets) - 1
    seen_in = np.zeros(DIMENSIONS, np.float64)  # texts that have an n-gram
    last = np.full(DIMENSIONS, -1, np.int64)
    asked = np.zeros(DIMENSIONS, np.float64)
    for text in range(n):
        for length in range(SHORTEST, LONGEST + 1):
            for start in range(offsets[text], offsets[text + 1] - length + 1):
                code = _code(data, start, length)
                if code < 0:
                    continue
                if text == 0:
                    asked[code] += 1.0
                elif last[code] != text:
                    last[code] = text
                    seen_in[code] += 1.0
    weights = 1.0 + np.log((1.0 + n) / (1.0 + seen_in))
    norm = np.sqrt(np.sum((asked * weights) ** 2))
    counts = np.zeros(DIMENSIONS, np.float64)
    touched = np.empty(DIMENSIONS, np.int64)
    found = np.zeros(n - 1, np.float64)
    for text in range(1, n):
        n_touched = 0
        for length in range(SHORTEST, LONGEST + 1):
            for start in range(offsets[text], offsets[text + 1] - length + 1):
                code = _code(data, start, length)
                if code < 0:
                    continue
                if counts[code] == 0.0:
                    touched[n_touched] = code
                    n_touched += 1
                counts[code] += 1.0
        dot, own = 0.0, 0.0
        for index in range(n_touched):
            code = touched[index]
            value = counts[code] * weights[code]
            dot += value * asked[code] * weights[code]
            own += value * value
            counts[code] = 0.0
        if own > 0.0 and norm > 0.0:
            found[text - 1] = dot / np.sqrt(own) / norm
    return found


@functools.lru_cache(maxsize=4096)
def vector_of(text: str, folder: Path) -> NDArray[np.float32]:
    """The unit vector of one text, kept for the process."""
    return np.asarray(_embedder(folder)([text])[0], np.float32)


@functools.lru_cache(maxsize=1)
def _embedder(folder: Path):  # type: ignore[no-untyped-def]
    from pipeline_lib.dedup.semantic import Embedder
    from pipeline_lib.errors import NotFoundError

    if not (folder / "config.json").is_file():
        fix = "a folder with config.json, model.safetensors and a tokenizer"
        raise NotFoundError(f"no model in {folder}", where="memory.embedding_model", fix=fix)
    return Embedder(folder)
