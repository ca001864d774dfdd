"""Every compiled kernel of near-duplicate search. They stay in one file: numba's cache does not notice a change in another one.

**Words.** A word is a maximal run of word characters, lower-cased. ASCII: letters and digits. Beyond ASCII every character is a
word character except U+0080–U+00BF without ª µ º (controls, Latin-1 signs), × ÷, U+2000–U+206F (spaces, dashes, quotes),
U+3000–U+303F (CJK signs), U+FF00–U+FF0F and U+FF1A–U+FF20 (full-width signs) and U+FEFF. Han, kana and full-width characters
stand as a word each, because their scripts have no spaces. Lower-casing covers ASCII, Latin-1, Greek and Cyrillic capitals; other
letters stay as they are. A broken byte counts as a character of its own: nothing here raises on any input.

**Shingles.** N words in a row, as a polynomial hash of the word hashes; or N characters in a row, where every run of characters
that are not in words is one space. A text with fewer is one shingle, a text without any word has none.

**MinHash.** For each of K functions the smallest `a·x + b` modulo 2^64 (multiply-shift, Dietzfelbinger et al. 1997); its upper
32 bits are the value. All hashing is unsigned: numba lets LLVM assume that signed numbers never overflow, and it then compares
`a·x + b` with `a·y + b` by leaving out `b`.

Text comes as an Arrow string column: `data` (uint8) and `offsets` (int64, one more than documents).
"""

from __future__ import annotations

# ruff: noqa: PLR0911, PLR0917, PLW3301 — a compiled loop stays in one piece
import numpy as np
from numba import njit, types

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_OFFSETS = types.Array(types.int64, 1, "C", readonly=True)
_U64 = types.Array(types.uint64, 1, "C", readonly=True)
_I64 = types.Array(types.int64, 1, "C", readonly=True)
_U64_OUT = types.uint64[::1]

_PRIME = np.uint64(0x100000001B3)  # FNV-1a, 64 bits
_BASIS = np.uint64(0xCBF29CE484222325)
_STEP = np.uint64(0x9E3779B97F4A7C15)  # splitmix64; odd, so multiplication by it is a permutation
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


@njit(types.uint64(types.uint64), nogil=True, cache=True, inline="always")
def _mix(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> np.uint64(30))) * _M1
    x = (x ^ (x >> np.uint64(27))) * _M2
    return x ^ (x >> np.uint64(31))


@njit(types.int64(types.int64), nogil=True, cache=True)
def _folded(code):  # type: ignore[no-untyped-def]
    """Lower case of a code point beyond ASCII; 0: not a word character; negative: a word of its own."""
    if code < 0xC0:
        return code if code in (0xAA, 0xB5, 0xBA) else 0
    if code < 0x100:
        if code in (0xD7, 0xF7):
            return 0
        return code + 32 if code < 0xDF else code
    if 0x391 <= code <= 0x3A9:
        return code + 32
    if 0x400 <= code <= 0x40F:
        return code + 80
    if 0x410 <= code <= 0x42F:
        return code + 32
    if 0x2000 <= code <= 0x206F or 0x3000 <= code <= 0x303F or code == 0xFEFF:
        return 0
    if 0xFF00 <= code <= 0xFF0F or 0xFF1A <= code <= 0xFF20:
        return 0
    if 0x3040 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0xFF21 <= code <= 0xFFEF or 0x20000 <= code <= 0x3FFFF:
        return -code
    return code


@njit(types.UniTuple(types.int64, 2)(_BYTES, types.int64, types.int64), nogil=True, cache=True)  # type: ignore[no-untyped-call]
def _wide(data, i, end):  # type: ignore[no-untyped-def]
    """The character beyond ASCII that begins at `data[i]`, folded, and where the next one begins."""
    code = np.int64(data[i])
    more = 0
    if 0xC2 <= code < 0xE0:
        more, code = 1, code & 0x1F
    elif 0xE0 <= code < 0xF0:
        more, code = 2, code & 0x0F
    elif 0xF0 <= code < 0xF5:
        more, code = 3, code & 0x07
    i += 1
    taken = 0
    while taken < more and i < end and (data[i] & 0xC0) == 0x80:
        code = (code << 6) | np.int64(data[i] & 0x3F)
        i += 1
        taken += 1
    return _folded(code), i


@njit(types.int64(_BYTES, types.int64, types.int64, _U64_OUT), nogil=True, cache=True)
def words_into(data, start, end, out):  # type: ignore[no-untyped-def]
    """Word hashes of `data[start:end]` into `out` (at least `(end - start) // 2 + 1` long); returns how many."""
    n = 0
    inside = False
    h = _BASIS
    i = start
    while i < end:
        c = np.int64(data[i])
        if c < 0x80:
            i += 1
            if 65 <= c <= 90:
                c += 32
            elif not (97 <= c <= 122 or 48 <= c <= 57):
                c = np.int64(0)
        else:
            c, i = _wide(data, i, end)
            if c < 0:
                if inside:
                    out[n] = _mix(h)
                    n += 1
                    inside = False
                out[n] = _mix((_BASIS ^ np.uint64(-c)) * _PRIME)
                n += 1
                continue
        if c == 0:
            if inside:
                out[n] = _mix(h)
                n += 1
                inside = False
        else:
            if not inside:
                h = _BASIS
                inside = True
            h = (h ^ np.uint64(c)) * _PRIME
    if inside:
        out[n] = _mix(h)
        n += 1
    return n


@njit(types.int64(_U64_OUT, types.int64, types.int64), nogil=True, cache=True)
def shingles_inplace(words, n, width):  # type: ignore[no-untyped-def]
    """Turn `n` word hashes into shingle hashes, in place; returns how many."""
    if n == 0:
        return 0
    power = np.uint64(1)
    for _ in range(width):
        power *= _STEP
    h = np.uint64(0)
    first = min(width, n)
    for i in range(first):
        h = h * _STEP + words[i]
    for i in range(first, n):
        leaving = words[i - width]
        words[i - width] = _mix(h)
        h = h * _STEP + words[i] - leaving * power
    words[n - first] = _mix(h)
    return n - first + 1


@njit(types.int64(_BYTES, types.int64, types.int64, _U64_OUT), nogil=True, cache=True)
def characters_into(data, start, end, out):  # type: ignore[no-untyped-def]
    """Hashes of the characters of `data[start:end]` into `out` (`end - start` long); returns how many. Words as above."""
    n = 0
    space = False
    i = start
    while i < end:
        c = np.int64(data[i])
        i += 1
        if c < 0x80:
            if 65 <= c <= 90:
                c += 32
            elif not (97 <= c <= 122 or 48 <= c <= 57):
                c = np.int64(0)
        else:
            c, i = _wide(data, i - 1, end)
            c = abs(c)
        if c == 0:
            space = n > 0
            continue
        if space:
            out[n] = _mix(_BASIS ^ np.uint64(32))
            n += 1
            space = False
        out[n] = _mix(_BASIS ^ np.uint64(c))
        n += 1
    return n


@njit(types.int64(_BYTES, types.int64, types.int64, types.int64, types.boolean, _U64_OUT), nogil=True, cache=True)
def _shingles_into(data, start, end, width, characters, out):  # type: ignore[no-untyped-def]
    """Shingle hashes of a document, in order, with repetitions; returns how many."""
    n = characters_into(data, start, end, out) if characters else words_into(data, start, end, out)
    return shingles_inplace(out, n, width)


@njit(types.int64(_OFFSETS, types.boolean), nogil=True, cache=True)
def _most_shingles(offsets, characters):  # type: ignore[no-untyped-def]
    """More shingles than the longest document can have."""
    longest = 0
    for d in range(offsets.size - 1):
        longest = max(longest, offsets[d + 1] - offsets[d])
    return longest + 1 if characters else longest // 2 + 1


@njit(types.int64(_OFFSETS), nogil=True, cache=True)
def _most_words(offsets):  # type: ignore[no-untyped-def]
    """More words than the longest document can have: a word takes two bytes, with the one that ends it."""
    return _most_shingles(offsets, False)


@njit(
    types.void(_BYTES, _OFFSETS, types.int64, types.boolean, types.int64, types.int64, _U64, _U64, types.uint64[:, ::1]),
    nogil=True,
    cache=True,
)
def band_hashes(data, offsets, width, characters, bands, rows, a, b, out):  # type: ignore[no-untyped-def]
    """Band hashes of each document.

    Args:
        data: text bytes.
        offsets: document boundaries in `data`.
        width: words (or characters) in a shingle.
        characters: shingles of characters instead of words.
        bands: LSH bands.
        rows: MinHash values in a band.
        a: odd multipliers, one a MinHash value (bands × rows).
        b: added constants.
        out: [bands, documents] uint64, written; 0 where the document has no word, and nowhere else.
    """
    scratch = np.empty(_most_shingles(offsets, characters), dtype=np.uint64)
    signature = np.empty(bands * rows, dtype=np.uint64)
    size = signature.size
    for d in range(offsets.size - 1):
        n = _shingles_into(data, offsets[d], offsets[d + 1], width, characters, scratch)
        if n == 0:
            out[:, d] = np.uint64(0)
            continue
        signature[:] = np.uint64(0xFFFFFFFFFFFFFFFF)
        i = 0
        while i + 4 <= n:  # four at a time: the constants are loaded once
            x0, x1, x2, x3 = scratch[i], scratch[i + 1], scratch[i + 2], scratch[i + 3]
            for k in range(size):
                low = min(a[k] * x0 + b[k], a[k] * x1 + b[k])
                high = min(a[k] * x2 + b[k], a[k] * x3 + b[k])
                signature[k] = min(signature[k], min(low, high))
            i += 4
        while i < n:
            x0 = scratch[i]
            for k in range(size):
                signature[k] = min(signature[k], a[k] * x0 + b[k])
            i += 1
        for band in range(bands):
            h = np.uint64(band + 1) * _STEP
            for r in range(rows):
                h = _mix(h ^ (signature[band * rows + r] >> np.uint64(32))) + _STEP
            out[band, d] = max(h, np.uint64(1))


@njit(types.int64(_BYTES, _OFFSETS, types.int64, types.boolean, _U64_OUT, types.int64[::1]), nogil=True, cache=True)
def shingle_sets(data, offsets, width, characters, out, bounds):  # type: ignore[no-untyped-def]
    """Sorted distinct shingle hashes of each document, one behind the other.

    Args:
        data: text bytes.
        offsets: document boundaries in `data`.
        width: words (or characters) in a shingle.
        characters: shingles of characters instead of words.
        out: uint64, written; half the text's bytes (all of them for characters) and one more a document is always enough.
        bounds: [documents + 1] int64, written: set `d` is `out[bounds[d]:bounds[d + 1]]`.

    Returns:
        Number of hashes written.
    """
    at = 0
    bounds[0] = 0
    for d in range(offsets.size - 1):
        view = out[at:]
        n = _shingles_into(data, offsets[d], offsets[d + 1], width, characters, view)
        if n:
            ordered = np.sort(view[:n])
            kept = 1
            view[0] = ordered[0]
            for i in range(1, n):
                if ordered[i] != ordered[i - 1]:
                    view[kept] = ordered[i]
                    kept += 1
            at += kept
        bounds[d + 1] = at
    return at


@njit(types.void(_U64, _I64, _I64, _U64_OUT, _I64), nogil=True, cache=True)
def copy_runs(stored, start, size, out, to):  # type: ignore[no-untyped-def]
    """Copy `stored[start[i]:start[i] + size[i]]` to `out[to[i]:]`, for each i."""
    for i in range(start.size):
        for k in range(size[i]):
            out[to[i] + k] = stored[start[i] + k]


@njit(types.void(_I64, _I64, _I64, _I64, types.int64[::1]), nogil=True, cache=True)
def running_need(left, right, order, size, total):  # type: ignore[no-untyped-def]
    """What the first pairs of an order need together: `total[k]` is the size of all sets of pairs `order[:k + 1]`, each once."""
    seen = np.zeros(size.size, dtype=np.bool_)
    needed = 0
    for k in range(order.size):
        for d in (left[order[k]], right[order[k]]):
            if not seen[d]:
                seen[d] = True
                needed += size[d]
        total[k] = needed


@njit(types.void(_U64, _I64, _I64, _I64, types.int64[::1]), nogil=True, cache=True)
def shared_shingles(hashes, bounds, left, right, out):  # type: ignore[no-untyped-def]
    """Size of the intersection of two sorted sets, for each pair: `left[p]` and `right[p]` are set numbers."""
    for p in range(left.size):
        i, i_end = bounds[left[p]], bounds[left[p] + 1]
        j, j_end = bounds[right[p]], bounds[right[p] + 1]
        shared = 0
        while i < i_end and j < j_end:
            x, y = hashes[i], hashes[j]
            shared += x == y
            i += x <= y
            j += y <= x
        out[p] = shared


@njit(types.int64(_BYTES, _OFFSETS, _I64, _U64_OUT, types.int64[::1]), nogil=True, cache=True)
def item_ngrams(data, offsets, lengths, out, owner):  # type: ignore[no-untyped-def]
    """N-gram hashes of suite items: of item `d` all runs of `lengths[d]` words (0: none). Returns how many were written."""
    scratch = np.empty(_most_words(offsets), dtype=np.uint64)
    at = 0
    for d in range(offsets.size - 1):
        n = words_into(data, offsets[d], offsets[d + 1], scratch)
        if lengths[d] and n >= lengths[d]:
            n = shingles_inplace(scratch, n, lengths[d])
            for i in range(n):
                out[at] = scratch[i]
                owner[at] = d
                at += 1
    return at


@njit(types.int64(_BYTES, _OFFSETS, types.int64[::1]), nogil=True, cache=True)
def count_words(data, offsets, out):  # type: ignore[no-untyped-def]
    """Words of each document; returns their sum."""
    scratch = np.empty(_most_words(offsets), dtype=np.uint64)
    total = 0
    for d in range(offsets.size - 1):
        out[d] = words_into(data, offsets[d], offsets[d + 1], scratch)
        total += out[d]
    return total


@njit(types.void(_BYTES, _OFFSETS, types.uint64[:, ::1], types.int64[::1]), nogil=True, cache=True)
def first_words(data, offsets, out, counts):  # type: ignore[no-untyped-def]
    """Hashes of the first words of each document: as many as `out` [documents, words] holds, within 16 bytes a word."""
    limit = out.shape[1]
    scratch = np.empty(limit * 8 + 1, dtype=np.uint64)
    for d in range(offsets.size - 1):
        n = words_into(data, offsets[d], min(offsets[d + 1], offsets[d] + limit * 16), scratch)
        counts[d] = min(n, limit)
        out[d, : counts[d]] = scratch[: counts[d]]


@njit(types.int64(_BYTES, _OFFSETS, _I64, _U64, _U64, types.int64, types.int64[:, ::1]), nogil=True, cache=True)
def find_ngrams(data, offsets, lengths, known, filter_bits, limit, out):  # type: ignore[no-untyped-def]
    """Where known n-grams occur.

    Args:
        data: text bytes.
        offsets: document boundaries in `data`.
        lengths: the n-gram lengths that occur, in words.
        known: sorted distinct n-gram hashes.
        filter_bits: bit field of a power of two words, in which the bit of every known hash is set.
        limit: rows of `out`; further hits are counted, not written.
        out: [limit, 3] int64, written: document, index in `known`, first word; ordered by document.

    Returns:
        Number of hits.
    """
    scratch = np.empty(_most_words(offsets), dtype=np.uint64)
    runs = np.empty_like(scratch)
    mask = np.uint64(filter_bits.size * 64 - 1)
    found = 0
    for d in range(offsets.size - 1):
        n = words_into(data, offsets[d], offsets[d + 1], scratch)
        for length in lengths:
            if n < length:
                continue
            runs[:n] = scratch[:n]
            for i in range(shingles_inplace(runs, n, length)):
                h = runs[i]
                bit = h & mask
                if (filter_bits[bit >> np.uint64(6)] >> (bit & np.uint64(63))) & np.uint64(1):
                    place = np.searchsorted(known, h)
                    if place < known.size and known[place] == h:
                        if found < limit:
                            out[found, 0] = d
                            out[found, 1] = place
                            out[found, 2] = i
                        found += 1
    return found


@njit(types.int64(_BYTES, types.int64, types.int64, types.int64[:, ::1]), nogil=True, cache=True)
def _word_bounds(data, start, end, out):  # type: ignore[no-untyped-def]
    """First and last byte (excluded) of each word of `data[start:end]`, which is valid UTF-8; returns how many.

    It asks `words_into` about one character, and about two, so that what a word is stands in one place.
    """
    asked = np.empty(8, dtype=np.uint64)
    n, before, i = 0, np.int64(-1), start  # `before`: where the previous character begins when it belongs to a word
    while i < end:
        following = i + 1
        while following < end and (data[following] & 0xC0) == 0x80:
            following += 1
        if words_into(data, i, following, asked) == 0:
            before = np.int64(-1)
        else:
            if before < 0 or words_into(data, before, following, asked) == 2:
                out[n, 0] = i
                n += 1
            out[n - 1, 1] = following
            before = i
        i = following
    return n


@njit(types.void(_BYTES, _OFFSETS, _I64, _I64, _I64, types.int64[:, ::1]), nogil=True, cache=True)
def spans_of_words(data, offsets, document, first, last, out):  # type: ignore[no-untyped-def]
    """Bytes of runs of words.

    Args:
        data: text bytes, valid UTF-8.
        offsets: document boundaries in `data`.
        document: of each run, ascending.
        first: number of its first word in the document.
        last: number of its last word.
        out: [runs, 2] int64, written: first byte and the one behind the last, counted from the document's begin.
    """
    bounds = np.empty((_most_words(offsets), 2), dtype=np.int64)
    at = -1
    for r in range(document.size):
        d = document[r]
        if d != at:
            at = d
            _word_bounds(data, offsets[d], offsets[d + 1], bounds)
        out[r, 0] = bounds[first[r], 0] - offsets[d]
        out[r, 1] = bounds[last[r], 1] - offsets[d]


@njit(types.void(_I64, _I64, types.int64[::1], types.int64[::1]), nogil=True, cache=True)
def adjacency(left, right, bounds, neighbours):  # type: ignore[no-untyped-def]
    """The edges of each document, in both directions: those of `d` are `neighbours[bounds[d]:bounds[d + 1]]`.

    Args:
        left: one end of each edge, document numbers.
        right: the other end.
        bounds: [documents + 1] int64, all 0 on entry, written.
        neighbours: [2 · edges] int64, written.
    """
    for e in range(left.size):
        bounds[left[e] + 1] += 1
        bounds[right[e] + 1] += 1
    for d in range(1, bounds.size):
        bounds[d] += bounds[d - 1]
    to = bounds[:-1].copy()
    for e in range(left.size):
        a, b = left[e], right[e]
        neighbours[to[a]] = b
        to[a] += 1
        neighbours[to[b]] = a
        to[b] += 1


@njit(types.void(_I64, _I64, _I64, types.int64[::1]), nogil=True, cache=True)
def choose_survivors(order, bounds, neighbours, removed_by):  # type: ignore[no-untyped-def]
    """Go through the documents from best to worst; each that is still there removes its direct neighbours.

    Args:
        order: document numbers, best first.
        bounds: of `adjacency`.
        neighbours: of `adjacency`.
        removed_by: [documents] int64, all -1 on entry, written: who removed the document, -1 for a survivor.
    """
    settled = np.zeros(removed_by.size, dtype=np.bool_)
    for d in order:
        if removed_by[d] >= 0:
            continue
        settled[d] = True
        for i in range(bounds[d], bounds[d + 1]):
            other = neighbours[i]
            if not settled[other] and removed_by[other] < 0:
                removed_by[other] = d


@njit(types.void(_I64, _I64, types.int64[::1]), nogil=True, cache=True)
def components(left, right, root):  # type: ignore[no-untyped-def]
    """Connected components by union-find with path halving.

    `root` is 0…n-1 on entry and each component's smallest number on return.
    """
    for e in range(left.size):
        a, b = left[e], right[e]
        while root[a] != a:
            root[a] = root[root[a]]
            a = root[a]
        while root[b] != b:
            root[b] = root[root[b]]
            b = root[b]
        if a < b:
            root[b] = a
        else:
            root[a] = b
    for d in range(root.size):
        root[d] = root[root[d]]


@njit(types.boolean(_BYTES, types.int64, types.int64), nogil=True, cache=True)
def _ends_sentence(data, start, end):  # type: ignore[no-untyped-def]
    """Whether the last character of a line, behind closing quotes and brackets, ends a sentence."""
    while end > start and data[end - 1] in (34, 39, 41, 93):  # " ' ) ]
        end -= 1
    if end <= start:
        return False
    if data[end - 1] in (33, 46, 58, 59, 63):  # ! . : ; ?
        return True
    if end - start < 3:
        return False
    code = (np.int64(data[end - 3]) << 16) | (np.int64(data[end - 2]) << 8) | np.int64(data[end - 1])
    return code in (0xE280A6, 0xE3_8082, 0xEFBC81, 0xEFBC9F)  # … 。 ！ ？


@njit(types.int64(_BYTES, _OFFSETS, types.int64, _U64_OUT, types.int64[:, ::1], types.boolean[:, ::1]), nogil=True, cache=True)
def long_lines(data, offsets, least, hashes, places, ends):  # type: ignore[no-untyped-def]
    """Lines of at least `least` bytes, without white space around them.

    Args:
        data: text bytes.
        offsets: document boundaries in `data`.
        least: bytes; documents may have bytes / least such lines at most.
        hashes: uint64, written: hash of the line's bytes.
        places: [lines, 4] int64, written: document; number of the line among its lines that are not blank; bytes of the document
            where it begins and where the next line begins.
        ends: [lines, 2] bool, written: whether a sentence or paragraph ends before the line, and with it.

    Returns:
        Number of lines.
    """
    n = 0
    for d in range(offsets.size - 1):
        begin, last = offsets[d], offsets[d + 1]
        i = begin
        line = 0
        before = True
        waits = False  # the line above is written, and a blank line or the end of the text would end its paragraph
        while i < last:
            start = i
            while i < last and data[i] != 10:
                i += 1
            end = i
            i += 1
            low = start
            while low < end and (data[low] == 32 or data[low] == 9 or data[low] == 13):
                low += 1
            while end > low and (data[end - 1] == 32 or data[end - 1] == 9 or data[end - 1] == 13):
                end -= 1
            if low == end:
                before = True
                if waits:
                    ends[n - 1, 1] = True
                continue
            closes = _ends_sentence(data, low, end)
            waits = end - low >= least
            if waits:
                h = _BASIS
                for k in range(low, end):
                    h = (h ^ np.uint64(data[k])) * _PRIME
                hashes[n] = _mix(h)
                places[n, 0], places[n, 1], places[n, 2], places[n, 3] = d, line, start - begin, min(i, last) - begin
                ends[n, 0], ends[n, 1] = before, closes
                n += 1
            before = closes
            line += 1
        if waits:
            ends[n - 1, 1] = True
    return n


@njit(types.void(types.int64[:, ::1], types.boolean[:, ::1], types.boolean[::1]), nogil=True, cache=True)
def whole_sentences(places, ends, out):  # type: ignore[no-untyped-def]
    """Which of some lines can be cut without breaking a sentence: runs of neighbours from where one ends to where one ends."""
    open_from = -1
    for i in range(places.shape[0]):
        if open_from >= 0 and (places[i, 0] != places[i - 1, 0] or places[i, 1] != places[i - 1, 1] + 1):
            open_from = -1
        if open_from < 0 and ends[i, 0]:
            open_from = i
        if open_from >= 0 and ends[i, 1]:
            out[open_from : i + 1] = True
            open_from = i + 1
            if i + 1 < places.shape[0] and not (places[i + 1, 0] == places[i, 0] and places[i + 1, 1] == places[i, 1] + 1):
                open_from = -1


@njit(types.uint64[::1](_U64), nogil=True, cache=True)
def filter_of(hashes):  # type: ignore[no-untyped-def]
    """A bit field of a power of two words with the bit of each hash set: at least 32 bits a hash."""
    size = 64
    while size < 32 * hashes.size:
        size *= 2
    bits = np.zeros(size // 64, dtype=np.uint64)
    mask = np.uint64(size - 1)
    for h in hashes:
        bit = h & mask
        bits[bit >> np.uint64(6)] |= np.uint64(1) << (bit & np.uint64(63))
    return bits


@njit(types.int64(_U64, _U64, _U64, types.int64[::1]), nogil=True, cache=True)
def places_among(hashes, known, filter_bits, out):  # type: ignore[no-untyped-def]
    """Where hashes are that are among some others.

    Args:
        hashes: what is looked up.
        known: sorted.
        filter_bits: `filter_of(known)`; while it fits the processor's cache, a hash that is not there costs a nanosecond.
        out: [hashes] int64, the first ones are written: indices in `hashes`, ascending.

    Returns:
        Number of indices.
    """
    mask = np.uint64(filter_bits.size * 64 - 1)
    found = 0
    for i in range(hashes.size):
        h = hashes[i]
        bit = h & mask
        if (filter_bits[bit >> np.uint64(6)] >> (bit & np.uint64(63))) & np.uint64(1):
            place = np.searchsorted(known, h)
            if place < known.size and known[place] == h:
                out[found] = i
                found += 1
    return found


@njit(types.int64[::1](_U64), nogil=True, cache=True)
def repeated(hashes):  # type: ignore[no-untyped-def]
    """Ascending indices of all hashes that occur more than once, and of one in 16 of the others: what is worth sorting."""
    size = 64
    while size < 16 * hashes.size:
        size *= 2
    once, again = np.zeros(size // 64, dtype=np.uint64), np.zeros(size // 64, dtype=np.uint64)
    mask = np.uint64(size - 1)
    for h in hashes:
        word, mark = (h & mask) >> np.uint64(6), np.uint64(1) << (h & np.uint64(63))
        again[word] |= once[word] & mark
        once[word] |= mark
    out = np.empty(hashes.size, dtype=np.int64)
    found = 0
    for i in range(hashes.size):
        h = hashes[i]
        out[found] = i
        if (again[(h & mask) >> np.uint64(6)] >> (h & np.uint64(63))) & np.uint64(1):
            found += 1
    return out[:found].copy()
