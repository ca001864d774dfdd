"""The truth about duplicates: exact Jaccard of word shingles over all pairs. It shares no code with the stage.

Words follow the definition that `pipeline_lib/dedup/kernels.py` states, by a regular expression and a translation table.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

_ALONE = "\u3040-\u9fff\uf900-\ufaff\uff21-\uffef\U00020000-\U0003ffff"  # scripts without spaces: a character is a word
_SIGNS = (  # no part of a word; capitals are translated before
    "\x00-/:-`{-\x7f\x80-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7\u2000-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20\ufeff"
)
_WORD = re.compile(f"[{_ALONE}]|[^{_ALONE}{_SIGNS}]+")
_CAPITALS = [(0x41, 0x5A, 32), (0xC0, 0xDE, 32), (0x391, 0x3A9, 32), (0x400, 0x40F, 80), (0x410, 0x42F, 32)]
_LOWER = {code: code + up for first, last, up in _CAPITALS for code in range(first, last + 1) if code != 0xD7}


def words_of(text: str) -> list[str]:
    """Lower-case words."""
    return _WORD.findall(text.translate(_LOWER))


def shingle_sets(texts: Sequence[str], width: int) -> list[NDArray[np.int64]]:
    """The sorted distinct shingles of each text as 64-bit numbers (Python's hash of the words; none for a text without words)."""
    sets = []
    for text in texts:
        words = words_of(text)
        runs = [hash(tuple(words[i : i + width])) for i in range(max(1, len(words) - width + 1))] if words else []
        sets.append(np.unique(np.array(runs, dtype=np.int64)))
    return sets


def all_pairs(
    sets: Sequence[NDArray[np.int64]], least: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Every pair (left < right) whose Jaccard similarity is at least `least`, in order, with the similarity."""
    sizes = np.array([len(one) for one in sets], dtype=np.int64)
    document = np.repeat(np.arange(len(sets)), sizes)
    shingle, place = np.unique(np.concatenate([*sets, np.empty(0, dtype=np.int64)]), return_inverse=True)
    postings = document[np.argsort(place, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(shingle)))]).astype(np.int64)
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    room = 1 << 16
    while True:
        pairs, similarity = np.empty((room, 2), dtype=np.int64), np.empty(room)
        found = _count_shared(place.astype(np.int64), bounds, postings, starts, sizes, least, pairs, similarity)
        if found <= room:
            return pairs[:found, 0], pairs[:found, 1], similarity[:found]
        room = found


@njit(nogil=True)
def _count_shared(place, bounds, postings, starts, sizes, least, pairs, similarity):  # type: ignore[no-untyped-def]
    """Of each document the shingles in common with every later one, over the lists of documents that have a shingle."""
    next_in = starts[:-1].copy()  # where, in a shingle's list, the documents after the present one begin
    shared = np.zeros(sizes.size, dtype=np.int64)
    found = 0
    for d in range(sizes.size):
        shared[d:] = 0
        for s in place[bounds[d] : bounds[d + 1]]:
            next_in[s] += 1
            for i in range(next_in[s], starts[s + 1]):
                shared[postings[i]] += 1
        for other in range(d + 1, sizes.size):
            if shared[other]:
                value = shared[other] / (sizes[d] + sizes[other] - shared[other])
                if value >= least:
                    if found < similarity.size:
                        pairs[found, 0], pairs[found, 1] = d, other
                        similarity[found] = value
                    found += 1
    return found
