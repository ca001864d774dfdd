"""How alike the goals of runs are: cosine of hashed n-gram vectors, or of sentence embeddings where a model is named.

Vectors of a text: its words' character n-grams of 3 to 5 bytes, `<` and `>` around each word, hashed into 4,096 numbers (after
fastText: Bojanowski et al. 2017), weighted down where many goals have them (inverse document frequency).
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from pathlib import Path

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
            found = self._cosines(asked)
        return np.asarray(np.clip(found, 0.0, 1.0)[self._places], np.float64)

    @functools.cached_property
    def _grams(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        return _counted(self._texts)

    def _cosines(self, asked: str) -> NDArray[np.float64]:
        """Of a text with each different goal; n-grams weigh less the more of all texts, this one among them, have them."""
        texts, codes, counts = self._grams
        _, own, times = _counted([asked])
        n = len(self._texts) + 1
        weights = 1.0 + np.log((1.0 + n) / (1.0 + np.bincount(codes, minlength=DIMENSIONS)))
        wanted = np.zeros(DIMENSIONS)
        wanted[own] = times * weights[own]
        told = counts * weights[codes]
        dots = np.bincount(texts, told * wanted[codes], minlength=n - 1)
        norms = np.sqrt(np.bincount(texts, told**2, minlength=n - 1)) * np.sqrt(np.sum(wanted**2))
        return np.asarray(np.divide(dots, norms, out=np.zeros(n - 1), where=norms > 0), np.float64)


@functools.lru_cache(maxsize=1 << 16)  # the goals of all runs, each time one has ended
def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _counted(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """n-grams of all texts: (place of the text, hashed n-gram, how often it has it), sorted by the first two.

    An n-gram is hashed by FNV-1a, folded; one that would span two words is none.
    """
    marked = [f"<{text.replace(' ', '><')}>".encode(errors="replace") if text else b"" for text in texts]
    data = np.frombuffer(b"".join(marked), np.uint8)
    places = np.repeat(np.arange(len(texts), dtype=np.int64), [len(part) for part in marked])
    ends = np.concatenate([data == ord(">"), np.ones(LONGEST, bool)])
    inside = np.ones(len(data), bool)  # the n-gram that begins here has not left its word yet
    code = np.full(len(data), 14695981039346656037, np.uint64)
    keys: list[NDArray[np.int64]] = []
    for length in range(1, LONGEST + 1):
        here = len(data) - length + 1
        if here < 1:
            break
        code, inside = code[:here], inside[:here]
        code = (code ^ data[length - 1 :].astype(np.uint64)) * np.uint64(1099511628211)
        if length >= SHORTEST:
            folded = ((code ^ (code >> np.uint64(32))) & np.uint64(DIMENSIONS - 1)).astype(np.int64)
            keys.append((places[:here] * DIMENSIONS + folded)[inside])
        inside = inside & ~ends[length - 1 : length - 1 + here]
    found, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *keys]), return_counts=True)
    return found // DIMENSIONS, found % DIMENSIONS, counts.astype(np.float64)


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
