"""Compiled kernels of selection. Similarities are sums of whole numbers, so that every machine gets the same ones.

**Words** are runs of letters and digits, ASCII capitals made small. Beyond ASCII every character belongs to a word, except those
of the blocks of punctuation; Han, kana and full-width characters stand as a word each, because their scripts have no spaces.
A word's hash is a rotated sum of a random number a byte (Cohen 1997), which a processor computes faster than it reads the words.
"""

from __future__ import annotations

# ruff: noqa: PLR0917 — a kernel's signature is positional
import numpy as np
from numba import njit, types

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_I64 = types.Array(types.int64, 1, "C", readonly=True)
_F64 = types.Array(types.float64, 1, "C", readonly=True)
_CENTRES = types.Array(types.float32, 2, "C", readonly=True)
_VECTORS = types.Array(types.int8, 2, "C", readonly=True)
_U64_OUT = types.uint64[::1]

_STEP = np.uint64(0x9E3779B97F4A7C15)  # splitmix64 (Steele, Lea & Flood 2014)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_SEEN = 2048  # slots of the table that tells whether an n-gram occurred before in its document
_PLANES = 12  # binary digits of a count of up to 4,095 n-grams
WORD_BYTES = 16  # a document's first n words are looked for in its first 16 n bytes


def _letters() -> tuple[np.ndarray, np.ndarray]:
    """For each byte: a random number (the same one for a capital and its small letter), and all ones where a word may hold it."""
    with np.errstate(over="ignore"):
        x = np.arange(1, 257, dtype=np.uint64) * _STEP
        x = (x ^ (x >> np.uint64(30))) * _M1
        x = (x ^ (x >> np.uint64(27))) * _M2
    inside = np.array([chr(c).isalnum() if c < 128 else False for c in range(256)])
    small = np.array([ord(chr(c).lower()) if c < 128 else c for c in range(256)])
    return (x ^ (x >> np.uint64(31)))[small], np.where(inside, ~np.uint64(0), np.uint64(0))


_NUMBER, _INSIDE = _letters()


@njit(types.uint64(types.uint64), nogil=True, cache=True, inline="always")
def _mix(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


@njit(nogil=True, cache=True, inline="always")
def _add(a, b, c):  # type: ignore[no-untyped-def]
    """64 one-bit full adders: carry and sum."""
    u = a ^ b
    return (a & b) | (u & c), u ^ c


@njit(types.void(types.uint64[::1], types.int64, types.uint64), nogil=True, cache=True, inline="always")
def _carry(planes, plane, bits):  # type: ignore[no-untyped-def]
    """Add `bits` to 64 counters, whose binary digits are the planes, at the digit `plane`."""
    while bits:
        left = planes[plane] & bits
        planes[plane] ^= bits
        bits = left
        plane += 1


@njit(types.int64(_BYTES, types.int64, types.int64, _U64_OUT), nogil=True, cache=True)
def words_into(data, start, end, out):  # type: ignore[no-untyped-def]
    """Word hashes of `data[start:end]` into `out` (at least `end - start + 2` long); returns how many."""
    n = np.int64(0)
    h = was = np.uint64(0)
    i = start
    while i < end:
        c = data[i]
        i += 1
        if c < 0x80:  # without a branch a letter: every byte writes, the end of a word moves on
            out[n] = h
            now = _INSIDE[c]
            n += np.int64(was & ~now & np.uint64(1))
            h = (((h << np.uint64(5)) | (h >> np.uint64(59))) ^ _NUMBER[c]) & now
            was = now
            continue
        code, more = np.int64(c), 0
        if 0xC2 <= c < 0xE0:
            more, code = 1, np.int64(c & 0x1F)
        elif 0xE0 <= c < 0xF0:
            more, code = 2, np.int64(c & 0x0F)
        elif 0xF0 <= c < 0xF5:
            more, code = 3, np.int64(c & 0x07)
        while more and i < end and (data[i] & 0xC0) == 0x80:
            code = (code << 6) | np.int64(data[i] & 0x3F)
            i += 1
            more -= 1
        between = (
            code < 0xC0 or 0x2000 <= code <= 0x206F or 0x3000 <= code <= 0x303F or 0xFF00 <= code <= 0xFF0F or code == 0xFEFF
        )
        alone = 0x3040 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0xFF10 <= code <= 0xFFEF or 0x20000 <= code <= 0x3FFFF
        if between or alone:
            out[n] = h
            n += np.int64(was & np.uint64(1))
            h = was = np.uint64(0)
            if alone:
                out[n] = _mix(np.uint64(code))
                n += 1
        else:
            h = ((h << np.uint64(5)) | (h >> np.uint64(59))) ^ _mix(np.uint64(code))
            was = ~np.uint64(0)
    out[n] = h
    return n + np.int64(was & np.uint64(1))


@njit(types.void(_BYTES, _I64, types.int64, types.float64, types.int8[:, ::1]), nogil=True, cache=True)
def project(data, offsets, most, unit, out):  # type: ignore[no-untyped-def]
    """Sum, over the words and word pairs of each document, of a random ±1 vector that is the n-gram's hash; scaled to `unit`.

    An n-gram counts once, unless another one took its slot of a small table in between. The 64 sums are counted in binary
    digits, one 64-bit word a digit, eight n-grams at a time (the population count of Harley and Seal).

    Args:
        data: text bytes.
        offsets: document boundaries in `data`.
        most: words of a document that count, its first ones; at most 2,000.
        unit: length of a vector.
        out: [documents, 64] int8, written; zeros for a document without words.
    """
    words = np.empty(most * WORD_BYTES + 2, dtype=np.uint64)
    found = np.empty(2 * most + 8, dtype=np.uint64)
    seen = np.zeros(_SEEN, dtype=np.uint64)
    planes = np.empty(_PLANES + 1, dtype=np.uint64)
    total = np.empty(64, dtype=np.int64)
    mask = np.uint64(_SEEN - 1)
    zero = np.uint64(0)
    for d in range(offsets.size - 1):
        n = min(most, words_into(data, offsets[d], min(offsets[d + 1], offsets[d] + most * WORD_BYTES), words))
        salt = np.uint64(d + 1) * _STEP  # what earlier documents left in the table is not this one's
        distinct = np.int64(0)
        before = zero
        for i in range(n):
            word = words[i]
            for x in (_mix(word), _mix(before * _STEP + word + _M1)):
                key, slot = x + salt, x & mask
                found[distinct] = x
                distinct += seen[slot] != key
                seen[slot] = key
            before = word
        found[distinct : distinct + 8] = zero
        planes[:] = zero
        ones = twos = fours = zero
        for i in range(0, distinct, 8):
            two_a, ones = _add(ones, found[i], found[i + 1])
            two_b, ones = _add(ones, found[i + 2], found[i + 3])
            four_a, twos = _add(twos, two_a, two_b)
            two_a, ones = _add(ones, found[i + 4], found[i + 5])
            two_b, ones = _add(ones, found[i + 6], found[i + 7])
            four_b, twos = _add(twos, two_a, two_b)
            eight, fours = _add(fours, four_a, four_b)
            _carry(planes, 3, eight)
        planes[0], planes[1], planes[2] = ones, twos, fours
        total[:] = -distinct  # ones minus zeros
        for p in range(_PLANES):
            bits = planes[p]
            if bits:
                for k in range(64):
                    total[k] += np.int64((bits >> np.uint64(k)) & np.uint64(1)) << (p + 1)
        norm = 0
        for k in range(64):
            norm += total[k] * total[k]
        scale = unit / np.sqrt(np.float64(max(norm, 1)))
        for k in range(64):
            out[d, k] = np.int8(max(-127.0, min(127.0, np.rint(total[k] * scale))))


@njit(types.void(_VECTORS, _CENTRES, types.int64[::1]), nogil=True, cache=True)
def nearest(vectors, centres, out):  # type: ignore[no-untyped-def]
    """The centre with the largest inner product for each vector (the first one of equals).

    Args:
        vectors: [documents, 64] int8.
        centres: [64, centres] float32, whole numbers: a component a row.
        out: [documents] int64, written.
    """
    count = centres.shape[1]
    products = np.empty(count, dtype=np.float32)
    for d in range(vectors.shape[0]):
        products[:] = np.float32(0.0)
        for k in range(0, 64, 4):
            a, b = np.float32(vectors[d, k]), np.float32(vectors[d, k + 1])
            e, f = np.float32(vectors[d, k + 2]), np.float32(vectors[d, k + 3])
            for c in range(count):
                products[c] += a * centres[k, c] + b * centres[k + 1, c] + (e * centres[k + 2, c] + f * centres[k + 3, c])
        most = np.int64(-(2**62))
        for c in range(count):  # the place in the last digits: a maximum of whole numbers needs no branch
            most = max(most, (np.int64(products[c]) << 16) | np.int64(0xFFFF - c))
        out[d] = 0xFFFF - (most & 0xFFFF)


@njit(
    types.void(_VECTORS, _I64, _I64, types.int64, _F64, _F64, types.float64, types.float64, types.float64[::1]),
    nogil=True,
    cache=True,
)
def greedy_gains(vectors, order, bounds, largest, quality, recency, weight, unit, gains):  # type: ignore[no-untyped-def]
    """In each cluster choose all documents one after the other, each time the one with the largest marginal gain.

    Gains are compared to 40 binary digits; of equal ones the first document in `order` is chosen.

    Args:
        vectors: [documents, 64] int8 of length `unit`.
        order: documents, cluster after cluster.
        bounds: cluster `c` is `order[bounds[c]:bounds[c + 1]]`.
        largest: a larger cluster is cut into parts of this many; at most 1,024.
        quality: 0 … 1.
        recency: 0 … 1.
        weight: of novelty; quality has the rest.
        unit: length of the vectors, a power of two.
        gains: [documents] float64, written: the gain at the moment of choice.
    """
    columns = np.empty((64, largest), dtype=np.float32)  # the vectors of what is left of a cluster, a component a row
    cosine = np.empty(largest, dtype=np.float32)
    novelty = np.empty(largest, dtype=np.float32)
    by_quality = np.empty(largest)
    age = np.empty(largest)
    place = np.empty(largest, dtype=np.int64)
    scale = np.float32(1.0 / (unit * unit))  # a power of two: the products stay exact
    one, nothing = np.float32(1.0), np.float32(0.0)
    for c in range(bounds.size - 1):
        for start in range(bounds[c], bounds[c + 1], largest):
            left = min(largest, bounds[c + 1] - start)
            for i in range(left):
                d = order[start + i]
                for k in range(64):
                    columns[k, i] = np.float32(vectors[d, k])
                by_quality[i], age[i] = (1.0 - weight) * quality[d], recency[d]
                novelty[i], place[i] = one, i
            while left:
                most = np.int64(-1)
                for i in range(left):
                    gain = (by_quality[i] + weight * np.float64(novelty[i])) * age[i]
                    most = max(most, (np.int64(gain * 2.0**40) << 10) | (1023 - place[i]))
                first = 1023 - (most & 1023)
                best = np.int64(0)
                for i in range(left):
                    best += i * np.int64(place[i] == first)
                gains[order[start + first]] = (by_quality[best] + weight * np.float64(novelty[best])) * age[best]
                cosine[:left] = nothing
                for k in range(0, 64, 4):
                    a, b = columns[k, best] * scale, columns[k + 1, best] * scale
                    e, f = columns[k + 2, best] * scale, columns[k + 3, best] * scale
                    for i in range(left):
                        cosine[i] += a * columns[k, i] + b * columns[k + 1, i] + (e * columns[k + 2, i] + f * columns[k + 3, i])
                for i in range(left):
                    novelty[i] = min(novelty[i], one - max(nothing, min(one, cosine[i])))
                left -= 1  # the last one takes the place of the chosen one
                for k in range(64):
                    columns[k, best] = columns[k, left]
                by_quality[best], age[best], novelty[best] = by_quality[left], age[left], novelty[left]
                place[best] = place[left]


@njit(types.int64(_I64, types.int64, types.boolean[::1]), nogil=True, cache=True)
def take_within(costs, budget, taken):  # type: ignore[no-untyped-def]
    """Take documents in order as long as they fit; one that does not fit is passed over. Returns what was spent."""
    used = 0
    for i in range(costs.size):
        taken[i] = used + costs[i] <= budget
        if taken[i]:
            used += costs[i]
    return used


@njit(types.void(_BYTES, _I64, types.int64, types.int64[::1]), nogil=True, cache=True)
def count_ngrams(data, offsets, most, counts):  # type: ignore[no-untyped-def]
    """Add the words and word pairs of each document's first words to the counts of their buckets.

    Args:
        data: text bytes.
        offsets: document boundaries in `data`.
        most: words of a document that count.
        counts: [buckets] int64, added to.
    """
    words = np.empty(most * WORD_BYTES + 2, dtype=np.uint64)
    buckets = np.uint64(counts.size)
    for d in range(offsets.size - 1):
        n = min(most, words_into(data, offsets[d], min(offsets[d + 1], offsets[d] + most * WORD_BYTES), words))
        for i in range(n):
            counts[_mix(words[i]) % buckets] += 1
            if i:
                counts[_mix(words[i - 1] * _STEP + words[i] + _M1) % buckets] += 1


@njit(types.void(_BYTES, _I64, types.int64, types.int64, _I64, types.float64, types.float64[::1]), nogil=True, cache=True)
def weigh_ngrams(data, offsets, most, window, ratios, unit, out):  # type: ignore[no-untyped-def]
    """Mean of the ratios of each document's n-grams, times their number, at most `window`.

    Args:
        data: text bytes.
        offsets: document boundaries in `data`.
        most: words of a document that count.
        window: n-grams that a document has at most.
        ratios: [buckets] whole numbers, added up exactly.
        unit: what 1 in `ratios` stands for.
        out: [documents] float64, written; 0 for a document without words.
    """
    words = np.empty(most * WORD_BYTES + 2, dtype=np.uint64)
    buckets = np.uint64(ratios.size)
    for d in range(offsets.size - 1):
        n = min(most, words_into(data, offsets[d], min(offsets[d + 1], offsets[d] + most * WORD_BYTES), words))
        total = 0
        for i in range(n):
            total += ratios[_mix(words[i]) % buckets]
            if i:
                total += ratios[_mix(words[i - 1] * _STEP + words[i] + _M1) % buckets]
        ngrams = max(1, 2 * n - 1)
        out[d] = np.float64(total) * unit * np.float64(min(ngrams, window)) / np.float64(ngrams)
