"""Compiled kernels of selection. Similarities are sums of whole numbers, so that every machine gets the same ones."""

from __future__ import annotations

import numpy as np
from numba import njit, types

# ruff: noqa: PLR0917 — a kernel's signature is positional

_I64 = types.Array(types.int64, 1, "C", readonly=True)
_F64 = types.Array(types.float64, 1, "C", readonly=True)
_VECTORS = types.Array(types.int16, 2, "C", readonly=True)
_WORDS = types.Array(types.uint64, 2, "C", readonly=True)

_STEP = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


@njit(types.void(_WORDS, _I64, types.int16[:, ::1]), nogil=True, cache=True)
def project(words, counts, out):  # type: ignore[no-untyped-def]
    """Sum, over the distinct words and word pairs of each document, of a random ±1 vector that is the n-gram's hash.

    Args:
        words: [documents, most] uint64 word hashes.
        counts: words of each document.
        out: [documents, 64] int16, written.
    """
    features = np.empty(2 * words.shape[1], dtype=np.uint64)
    total = np.empty(64, dtype=np.int64)
    for d in range(counts.size):
        n = 0
        for i in range(counts[d]):
            features[n] = words[d, i]
            n += 1
            if i:
                features[n] = words[d, i - 1] * _STEP + words[d, i]
                n += 1
        ordered = np.sort(features[:n])
        distinct = 0
        total[:] = 0
        for i in range(n):
            if i and ordered[i] == ordered[i - 1]:
                continue
            distinct += 1
            x = ordered[i] + _STEP
            x = (x ^ (x >> np.uint64(30))) * _M1
            x = (x ^ (x >> np.uint64(27))) * _M2
            x ^= x >> np.uint64(31)
            for k in range(64):
                total[k] += np.int64((x >> np.uint64(k)) & np.uint64(1))
        for k in range(64):  # ones minus zeros
            out[d, k] = np.int16(2 * total[k] - distinct)


@njit(types.int64(_VECTORS, types.int64, _VECTORS, types.int64), nogil=True, cache=True, inline="always")
def _dot(a, i, b, j):  # type: ignore[no-untyped-def]
    total = np.int32(0)
    for k in range(64):
        total += np.int32(a[i, k]) * np.int32(b[j, k])
    return np.int64(total)


@njit(types.void(_VECTORS, _VECTORS, types.int64[::1]), nogil=True, cache=True)
def nearest(vectors, centres, out):  # type: ignore[no-untyped-def]
    """The centre with the largest inner product for each vector (the first one of equals)."""
    for i in range(vectors.shape[0]):
        best, most = 0, _dot(vectors, i, centres, 0)
        for c in range(1, centres.shape[0]):
            value = _dot(vectors, i, centres, c)
            if value > most:
                best, most = c, value
        out[i] = best


@njit(types.void(_VECTORS, _F64, _F64, types.float64, types.float64, types.float64[::1]), nogil=True, cache=True)
def greedy_scores(vectors, quality, recency, quality_weight, unit, scores):  # type: ignore[no-untyped-def]
    """Choose all documents of a cluster one after the other, each time the one with the largest marginal gain.

    gain = (w · quality + (1 - w) · novelty) · recency, where novelty is 1 - the largest cosine (not below 0) with a document
    that was chosen before, and 1 for the first. Novelty only falls, so the gains fall too: sorting by them merges clusters
    into the order in which a greedy choice over all of them would go.

    Args:
        vectors: [documents, 64] int16 of length `unit`.
        quality: 0 … 1.
        recency: 0 … 1.
        quality_weight: w.
        unit: length of the vectors.
        scores: [documents] float64, written: the gain at the moment of choice.
    """
    count = vectors.shape[0]
    novelty = np.ones(count)
    left = np.ones(count, dtype=np.bool_)
    for _ in range(count):
        best, most = -1, -1.0
        for i in range(count):
            if left[i]:
                gain = (quality_weight * quality[i] + (1.0 - quality_weight) * novelty[i]) * recency[i]
                if gain > most:
                    best, most = i, gain
        left[best] = False
        scores[best] = most
        for i in range(count):
            if left[i]:
                distance = 1.0 - max(0.0, np.float64(_dot(vectors, i, vectors, best)) / (unit * unit))
                novelty[i] = max(0.0, min(novelty[i], distance))


@njit(types.int64(_I64, types.int64, types.boolean[::1]), nogil=True, cache=True)
def take_within(tokens, budget, taken):  # type: ignore[no-untyped-def]
    """Take documents in order as long as they fit; one that does not fit is passed over. Returns the tokens taken."""
    used = 0
    for i in range(tokens.size):
        taken[i] = used + tokens[i] <= budget
        if taken[i]:
            used += tokens[i]
    return used
