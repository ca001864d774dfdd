"""Everything the Gopher, C4 and FineWeb rules look at, measured in one pass over a text.

`measure_rules` fills a matrix, documents × `COLUMNS`; `signals.py` says what every column means. The text is decoded once into
code points and character bits (`characters.py`); words, lines, paragraphs and n-grams are made from these, in scratch that is
reused from one document to the next. It reads Arrow buffers, releases the GIL and has one explicit signature. Helpers are in this
file because numba's cache does not notice a changed helper elsewhere.

Words are split as spaCy's English splitter does it (MIT licence; reimplemented from its description and by comparing results):
white space first; then, from both ends of a piece, punctuation, quotes, currency signs and pictures come off one by one; the rest
is split at hyphens between letters, at `:<>=/` before a letter, at a comma between letters, at a full stop between a small and a
capital letter; addresses of the web stay whole; contractions split, abbreviations keep their full stop.
"""

# Compiled code: no sets, no keyword arguments, and one pass over the text keeps its counters in one function.
# ruff: noqa: PLR0911, PLR0912, PLR0915, PLR0917, PLR1714, SIM102, SIM110
# mypy: disable-error-code="assignment, no-untyped-def, unused-ignore"

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline_lib.quality.characters import (
    ALPHA,
    BEYOND,
    CAPITAL,
    CURRENCY,
    DIGIT,
    FACTOR,
    FILTER_BYTES,
    ICON,
    KNOWN,
    LONGEST_SPECIAL,
    LOWER,
    MARK,
    MIX,
    PREFIX,
    PUNCTUATION,
    QUOTE,
    SPACE,
    SPECIAL_SLOTS,
    STOP_WORDS,
    SUFFIX,
    TERMINAL,
    TRICKY,
    UPPER,
    J,
    character_table,
    special_table,
    spelling_hash,
)  # fmt: skip
from pipeline_lib.quality.compiled import HELPER, KERNEL, OFFSETS, TEXT
from pipeline_lib.tables.buffers import Bytes, Offsets

TABLE, KEYS = "Array(u2, 1, 'C', readonly=True)", "Array(u8, 1, 'C', readonly=True)"
VALUES, FILTER = "Array(i4, 1, 'C', readonly=True)", TEXT
SPECIALS = f"{KEYS}, {VALUES}, {FILTER}"
ROLLING = "u8[::1], u8[::1]"

COLUMNS = (
    "bytes", "characters", "words", "words_and_marks", "lines", "paragraphs", "sentences", "mean_word_length", "mean_line_length",
    "max_line_length", "hash_per_word", "ellipsis_per_word", "bullet_line_share", "ellipsis_line_share", "terminal_line_share",
    "short_line_share", "newlines_per_word", "alpha_word_share", "stop_words", "letter_share", "digit_share", "upper_share",
    "symbol_share", "code_line_share", "braces", "duplicate_line_share", "duplicate_line_char_share",
    "duplicate_text_line_char_share", "duplicate_paragraph_share", "duplicate_paragraph_char_share", "top_2gram_char_share",
    "top_3gram_char_share", "top_4gram_char_share", "duplicate_5gram_char_share", "duplicate_6gram_char_share",
    "duplicate_7gram_char_share", "duplicate_8gram_char_share", "duplicate_9gram_char_share", "duplicate_10gram_char_share",
    "clean_lines", "clean_sentences", "clean_brace_lines", "clean_lorem_ipsum",
)  # fmt: skip
(
    BYTES, CHARACTERS, WORDS, PIECES, LINES, PARAGRAPHS, SENTENCES, MEAN_WORD, MEAN_LINE, MAX_LINE, HASHES, ELLIPSES, BULLETS,
    ELLIPSIS_LINES, TERMINAL_LINES, SHORT_LINES, NEWLINES, ALPHA_WORDS, STOPS, LETTERS, DIGITS, UPPERS, SYMBOLS, CODE_LINES,
    BRACES, DUPLICATE_LINES, DUPLICATE_LINE_CHARS, DUPLICATE_TEXT_LINE_CHARS, DUPLICATE_PARAGRAPHS, DUPLICATE_PARAGRAPH_CHARS,
    TOP_2, _TOP_3, _TOP_4, DUPLICATE_5, _DUPLICATE_6, _DUPLICATE_7, _DUPLICATE_8, _DUPLICATE_9, _DUPLICATE_10, CLEAN_LINES,
    CLEAN_SENTENCES, CLEAN_BRACES, CLEAN_LOREM,
) = range(len(COLUMNS))  # fmt: skip

_FACTOR, _MIX, _SHIFT = np.uint64(FACTOR), np.uint64(MIX), np.uint64(32)
_MARK_BITS = 20  # of an entry of a stamped table; the rest is the key
_COUNT = np.uint64(0xFFFFFFFF)
_LAST_MARK = (1 << _MARK_BITS) - 64
SHORT_LINE = 30  # characters (FineWeb)
LONG_WORD = 1000  # characters (C4)
_WHOLE = 0xFFFF
_PIECE_ALPHA, _PIECE_MARK, _PIECE_TERMINAL, _PIECE_PUNCTUATION = 1, 2, 4, 8
_IPSU, _POLI, _COOK, _USE = (int.from_bytes(text, "big") for text in (b"ipsu", b"poli", b"cook", b"use"))
_OF = np.uint64(spelling_hash("of"))
_PRESENT_LOREM, _PRESENT_JAVA, _PRESENT_POLICY = 1, 2, 4


def _stop_table() -> tuple[int, np.ndarray]:  # type: ignore[type-arg]
    """A shift, and a table in which the stop word with hash h is at (h >> shift) & 31: no two share a place."""
    hashes = [spelling_hash(word) for word in STOP_WORDS]
    shift = next(shift for shift in range(60) if len({h >> shift & 31 for h in hashes}) == len(hashes))
    table = np.zeros(32, np.uint64)
    for value in hashes:
        table[value >> shift & 31] = value
    return shift, table


_STOP_SHIFT_INT, _STOPS = _stop_table()
_STOP_SHIFT = np.uint64(_STOP_SHIFT_INT)


def _needle(text: str) -> np.ndarray:  # type: ignore[type-arg]
    return np.frombuffer(text.encode(), np.uint8)


_LOREM, _JAVASCRIPT, _CITATION, _EDIT = (_needle(text) for text in ("lorem ipsum", "javascript", "[citation needed]", "[edit]"))
_POLICIES = (
    _needle("terms of use"),
    _needle("privacy policy"),
    _needle("cookie policy"),
    _needle("uses cookies"),
    _needle("use of cookies"),
    _needle("use cookies"),
)  # fmt: skip  (C4)


@njit("u4(u4, u2, i8)", **HELPER)
def _run(run, here, same):  # type: ignore[no-untyped-def]
    """The bits that some of the last characters have, and above them those that some lack; `same`: 0, or -1 for a new piece."""
    wide = np.uint32(here)
    return (run & ~np.uint32(same)) | wide | ((wide ^ np.uint32(_WHOLE)) << np.uint32(16))


@njit(f"i8({TEXT}, i8, i8, {TABLE}, i4[::1], u2[::1], u8[::1], i4[::1], u4[::1])", **KERNEL)
def _decode(data, at, end, table, codes, bits, sums, edges, runs):  # type: ignore[no-untyped-def]
    """Code points, their bits, the hash of what stands before each (`_spelling`); returns how many. The text is valid UTF-8.

    `edges` gets where pieces between white space begin and end, `runs` of each character `_run` from its piece's beginning on.
    All of it without a branch, while the multiplication of the hash, one after the other, takes its time.
    """
    n, value, edge, run, inside = 0, np.uint64(0), np.uint64(0), np.uint32(0), 0
    while at < end:
        lead = np.int32(data[np.uint64(at)])
        if lead < 0x80:
            place, here = np.uint64(n), table[np.uint64(lead)]
            codes[place], bits[place], sums[place] = lead, here, value
            value = value * _FACTOR + np.uint64(lead) + np.uint64(1)
            at += 1
        else:
            second = np.int32(data[at + 1] & 63)
            if lead < 0xE0:
                code = ((lead & 31) << 6) | second
                at += 2
            elif lead < 0xF0:
                code = ((lead & 15) << 12) | (second << 6) | np.int32(data[at + 2] & 63)
                at += 3
            else:
                code = ((lead & 7) << 18) | (second << 12) | (np.int32(data[at + 2] & 63) << 6) | np.int32(data[at + 3] & 63)
                at += 4
            place, here = np.uint64(n), table[code] if code < KNOWN else np.uint16(BEYOND)
            codes[place], bits[place], sums[place] = code, here, value
            value = value * _FACTOR + np.uint64(code) + np.uint64(1)
        is_inside = np.int64(1) - np.int64(here & SPACE)
        run = _run(run, here, inside - 1)
        runs[place], edges[edge] = run, n
        edge += np.uint64(is_inside ^ inside)
        inside = is_inside
        n += 1
    sums[n], edges[edge] = value, n
    return n


@njit("u8(u8[::1], u8[::1], i8, i8)", **HELPER)
def _spelling(sums, powers, start, end):  # type: ignore[no-untyped-def]
    """The hash of the characters between two places, of whatever length in the same time (Karp & Rabin 1987), mixed."""
    value = sums[np.uint64(end)] - sums[np.uint64(start)] * powers[np.uint64(end - start)]
    value = (value ^ (value >> _SHIFT)) * _MIX
    return value ^ (value >> _SHIFT)


@njit(f"i4(u8, {SPECIALS})", **HELPER)
def _special(key, keys, values, likely):  # type: ignore[no-untyped-def]
    """What the table of special words says about a spelling; 0: nothing."""
    low = key & np.uint64(0x7FFF)
    if not (likely[np.uint64(FILTER_BYTES) + (low >> np.uint64(3))] >> np.uint8(low & np.uint64(7))) & 1:
        return 0
    at = np.int64(key >> np.uint64(52))
    while values[at] != 0:
        if keys[at] == key:
            return values[at]
        at = (at + 1) & (SPECIAL_SLOTS - 1)
    return 0


@njit(f"i4(i4[::1], {ROLLING}, i8, i8, {SPECIALS})", **HELPER)
def _parts(codes, sums, powers, start, end, keys, values, likely):  # type: ignore[no-untyped-def]
    """The lengths of the parts of a special word, packed; 0: not special."""
    if end - start > LONGEST_SPECIAL or end <= start:
        return 0
    shape = (codes[np.uint64(start)] * 61 + codes[np.uint64(end - 1)] * 1021 + (end - start) * 4093) & 0x7FFF
    if not (likely[shape >> 3] >> (shape & 7)) & 1:
        return 0
    value = _special(_spelling(sums, powers, start, end), keys, values, likely)
    return value if value & (1 << 15) else 0


@njit("i8(i4[::1], u2[::1], i8, i8)", **HELPER)
def _prefix(codes, bits, start, end):  # type: ignore[no-untyped-def]
    """Characters that come off at the front."""
    if bits[start] & PREFIX:
        return 1
    if codes[start] == 0x2E:
        stop = start + 1
        while stop < end and codes[stop] == 0x2E:
            stop += 1
        return stop - start if stop - start > 1 else 0
    if codes[start] == 0x2B:
        return 0 if start + 1 < end and bits[start + 1] & DIGIT else 1
    return 0


@njit(f"i8(i4[::1], u2[::1], {ROLLING}, i8, i8, {SPECIALS})", **HELPER)
def _suffix(codes, bits, sums, powers, start, end, keys, values, likely):  # type: ignore[no-untyped-def]
    """Characters that come off at the back."""
    if end <= start:
        return 0
    last, size = codes[end - 1], end - start
    before = bits[end - 2] if size > 1 else 0
    if bits[end - 1] & SUFFIX:
        return 1
    if last == 0x2E:
        first = end - 1
        while first > start and codes[first - 1] == 0x2E:
            first -= 1
        if end - first > 1:
            return end - first
        if size > 1:
            code = codes[end - 2]
            if before & (DIGIT | LOWER | QUOTE) or (before & SUFFIX and not before & ICON):
                return 1
            if code == 0x25 or code == 0xB2 or code == 0x2D or code == 0x2B:  # % ² - +
                return 1
            if size > 2 and before & UPPER and bits[end - 3] & UPPER:
                return 1
        return 0
    if size == 1:
        return 0
    if (last == 0x73 or last == 0x53) and (codes[end - 2] == 0x27 or codes[end - 2] == 0x2019):
        return 2
    if before & DIGIT and (last == 0x2B or last == 0x25 or bits[end - 1] & CURRENCY):
        return 1
    first = end
    while first > start and end - first < 5 and not bits[first - 1] & TRICKY:
        first -= 1
    if start < first < end and end - first < 5 and bits[first - 1] & DIGIT:
        if _special(_spelling(sums, powers, first, end), keys, values, likely) & (1 << 16):
            return end - first
    return 0


@njit("b1(i4)", **HELPER)
def _in_host(code):  # type: ignore[no-untyped-def]
    return (
        0x61 <= code <= 0x7A
        or 0x41 <= code <= 0x5A
        or 0x30 <= code <= 0x39
        or code == 0x2D
        or code == 0x5F
        or 0xA1 <= code <= 0xFFFF
    )


@njit("b1(i4[::1], u2[::1], i8, i8)", **KERNEL)
def _is_host(codes, bits, at, end):  # type: ignore[no-untyped-def]
    """Whether name.name.tld, then a port or a path or nothing, stands here."""
    label, last_dot, stop = at, -1, at
    while stop < end and (_in_host(codes[stop]) or codes[stop] == 0x2E):
        if codes[stop] == 0x2E:
            if stop == label or stop - label > 64:
                return False
            for edge in (codes[label], codes[stop - 1]):
                if edge == 0x2D or edge == 0x5F:
                    return False
            last_dot, label = stop, stop + 1
        stop += 1
    if last_dot < 0 or not 2 <= stop - label <= 63:
        return False
    for i in range(label, stop):
        if not bits[i] & LOWER:
            return False
    if stop < end and codes[stop] == 0x3A:
        first = stop + 1
        stop = first
        while stop < end and bits[stop] & DIGIT:
            stop += 1
        if not 2 <= stop - first <= 5:
            return False
    return stop == end or codes[stop] == 0x2F or codes[stop] == 0x3F or codes[stop] == 0x23


@njit("b1(i4[::1], u2[::1], i8, i8)", **KERNEL)
def _is_address(codes, bits, start, end):  # type: ignore[no-untyped-def]
    """Whether a piece as a whole is an address of the web: [scheme://][user@]host.tld[:port][/path]."""
    if _is_host(codes, bits, start, end):
        return True
    at = start
    while at < end and (_in_host(codes[at]) or codes[at] == 0x2B or codes[at] == 0x2E):
        at += 1
    first = start
    if at >= start + 2 and at + 2 < end and codes[at] == 0x3A and codes[at + 1] == 0x2F and codes[at + 2] == 0x2F:
        first = at + 3
        if first < end and _is_host(codes, bits, first, end):
            return True
    for i in range(start + 1, end):
        if codes[i] == 0x40 and i > first and _is_host(codes, bits, i + 1, end):
            return True
    return False


@njit("i8(i4[::1], u2[::1], i8, i8, i8)", **HELPER)
def _infix(codes, bits, start, at, end):  # type: ignore[no-untyped-def]
    """Characters at a place inside a piece that split it and stand for themselves; 0: none."""
    code, here = codes[np.uint64(at)], bits[np.uint64(at)]
    if not here & (TRICKY | ICON):
        return 0  # letters, digits and what is rare
    if code == 0x2026 or here & ICON:
        return 1
    before = bits[np.uint64(at - 1)] if at > start else 0
    after = bits[np.uint64(at + 1)] if at + 1 < end else 0
    if code == 0x2E:
        stop = at + 1
        while stop < end and codes[stop] == 0x2E:
            stop += 1
        if stop - at > 1:
            return stop - at
        return 1 if before & (LOWER | QUOTE) and after & (UPPER | QUOTE) else 0
    if before & DIGIT and (code == 0x2B or code == 0x2D or code == 0x2A or code == 0x5E):
        if after & DIGIT or (at + 1 < end and codes[at + 1] == 0x2D):
            return 1
    letter_before, letter_after = before & (LOWER | UPPER), after & (LOWER | UPPER)
    if code == 0x2C:
        return 1 if letter_before and letter_after else 0
    if not before & (LOWER | UPPER | DIGIT):
        return 0
    if code == 0x3A or code == 0x3C or code == 0x3E or code == 0x3D or code == 0x2F:
        return 1 if letter_after else 0
    if code == 0x2D or code == 0x2013 or code == 0x2014 or code == 0x7E:
        if letter_after:
            return 1
        if code == 0x2D or code == 0x2014:
            stop = at + 1
            while stop < end and codes[stop] == code and stop - at < 3:
                stop += 1
            if stop - at > 1 and stop < end and bits[stop] & (LOWER | UPPER):
                if stop - at == 2 or code == 0x2D:
                    return stop - at
    return 0


@njit("u1(i8, i8, i8)", **HELPER)
def _kind(some, every, size):  # type: ignore[no-untyped-def]
    """What a word is, from the bits that some and that all of its characters have."""
    return np.uint8(
        (_PIECE_ALPHA if some & ALPHA else 0)
        | (_PIECE_MARK if every & MARK else 0)
        | (_PIECE_TERMINAL if every & TERMINAL and size == 1 else 0)
        | (_PIECE_PUNCTUATION if every & PUNCTUATION else 0)
    )


@njit("void(u2[::1], u8[::1], u8[::1], i8, i8, i8, u8[::1], i4[::1], u1[::1])", **HELPER)
def _put(bits, sums, powers, start, end, k, words, sizes, kinds):  # type: ignore[no-untyped-def]
    """Write piece number k."""
    some, every, place = 0, _WHOLE, np.uint64(k)
    for i in range(start, end):
        some |= bits[np.uint64(i)]
        every &= bits[np.uint64(i)]
    words[place], sizes[place], kinds[place] = _spelling(sums, powers, start, end), end - start, _kind(some, every, end - start)


@njit(
    f"i8(i4[::1], u2[::1], {ROLLING}, i8, i8, i8, u8[::1], i4[::1], u1[::1], i4[::1], {SPECIALS})",
    **HELPER,
)
def _split(codes, bits, sums, powers, start, end, k, words, sizes, kinds, tail, keys, values, likely):  # type: ignore[no-untyped-def]
    """Split a piece between white space into words, from number k on; returns the number after the last."""
    low, high = start, end
    while low < end and bits[np.uint64(low)] & PREFIX and codes[np.uint64(low)] != 0x27 and codes[np.uint64(low)] != 0x2019:
        low += 1
    while high > low and bits[np.uint64(high - 1)] & SUFFIX:
        if codes[np.uint64(high - 1)] == 0x27 or codes[np.uint64(high - 1)] == 0x2019:
            break
        high -= 1
    stop = high
    if high - low > 2 and codes[high - 1] == 0x2E and bits[high - 2] & (LOWER | DIGIT):
        high -= 1
    some, every = 0, _WHOLE
    for i in range(low, high):
        some |= bits[np.uint64(i)]
        every &= bits[np.uint64(i)]
    if high > low and (not some & TRICKY or (every & DIGIT and high - low > 1)):  # by far most often: marks around a plain word
        value = _spelling(sums, powers, low, high)
        special = _special(value, keys, values, likely) if high - low <= LONGEST_SPECIAL else 0
        if high < stop and not special:
            special = _special(_spelling(sums, powers, low, stop), keys, values, likely)
        if not special & (1 << 15):
            for i in range(start, low):
                _put(bits, sums, powers, i, i + 1, k, words, sizes, kinds)
                k += 1
            place = np.uint64(k)
            words[place], sizes[place], kinds[place] = value, high - low, _kind(some, every, high - low)
            k += 1
            for i in range(high, end):
                _put(bits, sums, powers, i, i + 1, k, words, sizes, kinds)
                k += 1
            return k
    n_tail, packed = 0, 0
    while start < end:
        packed = _parts(codes, sums, powers, start, end, keys, values, likely)
        if packed:
            break
        front = _prefix(codes, bits, start, end)
        if front and start + front < end and _parts(codes, sums, powers, start + front, end, keys, values, likely):
            _put(bits, sums, powers, start, start + front, k, words, sizes, kinds)
            k, start = k + 1, start + front
            continue
        back = _suffix(codes, bits, sums, powers, start + front, end, keys, values, likely)
        if back and _parts(codes, sums, powers, start, end - back, keys, values, likely):
            front = 0
        if front + back > end - start:
            back = 0
        if front:
            _put(bits, sums, powers, start, start + front, k, words, sizes, kinds)
            k, start = k + 1, start + front
        if back:
            tail[n_tail] = back
            n_tail, end = n_tail + 1, end - back
        if not front and not back:
            break
    if packed:
        while start < end:
            size = packed & 31
            packed = (packed & 0x7FFF) >> 5
            stop = min(start + size, end) if size else end
            _put(bits, sums, powers, start, stop, k, words, sizes, kinds)
            k, start = k + 1, stop
    elif start < end:
        looks, dots = False, False
        for i in range(start, end):
            place = np.uint64(i)
            looks |= (bits[place] & (TRICKY | ICON)) != 0 and not bits[place] & DIGIT
            dots |= codes[place] == 0x2E
        first = start
        if looks and not (dots and _is_address(codes, bits, start, end)):
            at = start
            while at < end:
                size = _infix(codes, bits, start, at, end)
                if size == 0 or at == start:
                    at += max(size, 1)
                    continue
                if at > first:
                    _put(bits, sums, powers, first, at, k, words, sizes, kinds)
                    k += 1
                _put(bits, sums, powers, at, at + size, k, words, sizes, kinds)
                k, at = k + 1, at + size
                first = at
        if first < end:
            _put(bits, sums, powers, first, end, k, words, sizes, kinds)
            k += 1
    while n_tail > 0:
        n_tail -= 1
        _put(bits, sums, powers, end, end + tail[n_tail], k, words, sizes, kinds)
        k, end = k + 1, end + tail[n_tail]
    return k


@njit("u8(u8, i8, u8[:, ::1], i8)", **HELPER)
def _slot(key, mark, entries, mask):  # type: ignore[no-untyped-def]
    """The place of a key in a stamped open-addressing table; an entry with another mark is empty and is taken with payload 0."""
    low = np.uint64((1 << _MARK_BITS) - 1)
    entry = (key & ~low) | np.uint64(mark)
    at = (key >> _SHIFT) & np.uint64(mask)
    found = entries[at, 0]
    while found != entry and (found & low) == np.uint64(mark):
        at = (at + np.uint64(1)) & np.uint64(mask)
        found = entries[at, 0]
    entries[at, 0] = entry  # without a branch: whether a key is new is anybody's guess
    entries[at, 1] = entries[at, 1] if found == entry else np.uint64(0)
    return at


@njit("u8(u8, u8)", **HELPER)
def _join(left, right):  # type: ignore[no-untyped-def]
    value = (left ^ (left >> _SHIFT)) * _MIX ^ right
    return (value ^ (value >> _SHIFT)) * _MIX


@njit(
    "void(u8[::1], i4[::1], i8, f8[::1], u8[::1], i4[::1], i4[::1], u1[::1], u1[::1], u8[:, ::1], i8, i8)",
    **KERNEL,
)
def _ngrams(words, ends, count, out, grams, live, slots, again, seen_once, entries, mask, mark):  # type: ignore[no-untyped-def]
    """Repeated n-grams of words; `ends[i]` is the number of characters up to and with word i. Uses nine marks from `mark` on.

    An n-gram can only repeat where its (n−1)-gram repeats, so only these places (`live`) are visited: exact, and far faster. The
    payload of a gram is its count and its first place. Top n-gram: the most frequent one, the first of equals; its characters
    with single spaces × its count. Duplicate n-grams: from left to right, an n-gram that was seen counts its characters and
    is stepped over.
    """
    characters = out[CHARACTERS]
    alive = count - 1
    for i in range(alive):
        live[i], grams[i] = i, words[i]
    for n in range(2, 11):
        here, kept = mark + n - 2, 0
        if alive and live[alive - 1] + n > count:
            alive -= 1  # the last place has no word left
        mask = 63  # a table no larger than what is left needs: it stays in the nearest cache
        while 2 * mask < 3 * alive:
            mask = 2 * mask + 1
        size = np.uint64(2 * mask + 1)
        seen_once[: 2 * mask + 2] = 0
        for k in range(alive):  # most n-grams occur once: a small table of counts by hash says so, without a comparison
            place = np.uint64(live[np.uint64(k)])
            gram = _join(grams[place], words[place + np.uint64(n - 1)])
            grams[place] = gram
            at = gram & size
            seen_once[at] += seen_once[at] < 2
        for k in range(alive):
            i = live[np.uint64(k)]
            live[np.uint64(kept)] = i
            kept += seen_once[grams[np.uint64(i)] & size] > 1
        alive, kept = kept, 0
        best = (np.uint64(1) << _SHIFT) | _COUNT  # the most frequent gram, the first of equals: count, then places from its end
        for k in range(alive):
            place = np.uint64(k)
            i = live[place]
            at = _slot(grams[np.uint64(i)], here, entries, mask)
            slots[place] = at
            seen = entries[at, 1]
            is_again = seen != 0
            first = seen >> _SHIFT if is_again else place
            again[place] = is_again
            again[first] |= is_again
            times = (seen & _COUNT) + np.uint64(1)
            entries[at, 1] = (first << _SHIFT) | times
            best = max(best, (times << _SHIFT) | (_COUNT - np.uint64(live[first])))
        if n <= 4:
            if count >= n:
                best_at, most = np.int64(_COUNT - (best & _COUNT)), np.int64(best >> _SHIFT)
                length = ends[best_at + n - 1] - (ends[best_at - 1] if best_at else 0) + n - 1
                out[TOP_2 + n - 2] = min(most * length / characters, 1.0)
            for k in range(alive):
                live[kept] = live[k]
                kept += again[k]
        else:
            repeated, free = 0, 0
            for k in range(alive):
                if not again[k]:
                    continue
                i, at = np.int64(live[k]), np.uint64(slots[k])
                live[kept] = i
                kept += 1
                if i >= free:
                    if entries[at, 1] == 0:
                        repeated += ends[i + n - 1] - (ends[i - 1] if i else 0)
                        free = i + n
                    else:
                        entries[at, 1] = 0  # seen
            out[DUPLICATE_5 + n - 5] = repeated / characters
        alive = kept


@njit(f"b1(i4[::1], i8, i8, {TEXT})", **KERNEL)
def _contains(codes, start, end, needle):  # type: ignore[no-untyped-def]
    """Whether a needle of small letters stands between two places, in any case of ASCII letters."""
    for i in range(start, end - len(needle) + 1):
        j = 0
        while j < len(needle):
            code = codes[i + j]
            if 0x41 <= code <= 0x5A:
                code += 0x20
            if code != needle[j]:
                break
            j += 1
        if j == len(needle):
            return True
    return False


@njit("i8(i4[::1], u2[::1], i8, i8)", **KERNEL)
def _without_citations(codes, bits, start, end):  # type: ignore[no-untyped-def]
    """The end of a line without `[12]`, `[edit]` and `[citation needed]` at its end (C4)."""
    while end > start and codes[end - 1] == 0x5D:
        first = end - 1
        while first > start and bits[first - 1] & DIGIT:
            first -= 1
        if first > start and codes[first - 1] == 0x5B:
            end = first - 1
            continue
        if end - start >= len(_EDIT) and _contains(codes, end - len(_EDIT), end, _EDIT):
            end -= len(_EDIT)
            continue
        if end - start >= len(_CITATION) and _contains(codes, end - len(_CITATION), end, _CITATION):
            end -= len(_CITATION)
            continue
        break
    return end


@njit("b1(i4, i4)", **HELPER)
def _ends_code(last, before):  # type: ignore[no-untyped-def]
    """A line that ends in `;` `{` `}` `[` `(` `\\` `=` `()` or `):`."""
    return (
        last == 0x3B or last == 0x7B or last == 0x7D or last == 0x5B or last == 0x28 or last == 0x5C or last == 0x3D
        or (last == 0x29 and before == 0x28) or (last == 0x3A and before == 0x29)
    )  # fmt: skip


@njit(
    f"void({TEXT}, {OFFSETS}, {TABLE}, {SPECIALS}, i4[::1], u2[::1], i4[::1], u4[::1], {ROLLING}, u8[::1], i4[::1], u1[::1],"
    " i4[::1], u8[::1], i4[::1], i4[::1], i4[::1], u1[::1], u1[::1], u8[:, ::1], f8[:, ::1])",
    **KERNEL,
)
def _measure(
    data,
    offsets,
    table,
    keys,
    values,
    likely,
    codes,
    bits,
    edges,
    runs,
    sums,
    powers,
    words,
    sizes,
    kinds,
    ends,
    grams,
    live,
    slots,
    tail,
    again,
    seen_once,
    entries,
    out,
):  # type: ignore[no-untyped-def]
    """See `measure_rules`; scratch comes from outside because code without reference counts cannot allocate."""
    mark = 1
    for row in range(len(offsets) - 1):
        start, end = offsets[row], offsets[row + 1]
        values_out = out[row]
        values_out[:] = 0
        n = _decode(data, start, end, table, codes, bits, sums, edges, runs)
        codes[n], bits[n] = 0x0A, SPACE  # the end closes the last line
        values_out[BYTES], values_out[CHARACTERS] = end - start, n
        if n == 0:
            continue
        if mark > _LAST_MARK:
            entries[:] = 0
            mark = 1

        letters, digits, uppers, spaces, hashes, dots, braces, newlines = 0, 0, 0, 0, 0, 0, 0, 0
        for i in range(n):
            b, code = bits[i], codes[i]
            letters += (b & ALPHA) != 0
            digits += (b & DIGIT) != 0
            uppers += (b & CAPITAL) != 0
            spaces += (b & SPACE) != 0
            hashes += code == 0x23
            dots += code == 0x2026
            braces += (code == 0x7B) | (code == 0x7D)
            newlines += code == 0x0A
        present, previous = 0, np.uint64(0)  # which of C4's phrases may be in the text: what their words begin with
        first_visible, last_visible = 0, n
        while first_visible < n and bits[first_visible] & SPACE:
            first_visible += 1
        while last_visible > first_visible and bits[last_visible - 1] & SPACE:
            last_visible -= 1

        mask = 63  # lines and paragraphs share a table and its mark: with another mark one would take the other's places
        while mask < 2 * (newlines + 1):
            mask = 2 * mask + 1
        n_pieces, n_lines, n_segments, n_blocks = 0, 0, 0, 0
        sentences, bullets, elliptic, terminal, short, code_lines, longest_line, line_chars = 0, 0, 0, 0, 0, 0, 0, 0
        again_segments, again_chars, again_text_chars, again_blocks, again_block_chars = 0, 0, 0, 0, 0
        clean_lines, clean_sentences, clean_braces, clean_lorem = 0, 0, 0, 0
        line_start, line_first, line_last, line_chunks, line_longest, line_piece = 0, -1, 0, 0, 0, 0
        block, block_start = np.uint64(0), first_visible
        i, edge = 0, np.uint64(0)
        while i <= n:
            if not bits[np.uint64(i)] & SPACE:  # a piece between white space
                first = i
                i = np.int64(edges[edge + np.uint64(1)])
                edge += np.uint64(2)
                run = np.int64(runs[np.uint64(i - 1)])
                some, every = run & _WHOLE, (run >> 16) ^ _WHOLE
                value = _spelling(sums, powers, first, i)
                special = 0
                if i - first <= LONGEST_SPECIAL:
                    special = _special(value, keys, values, likely) & (1 << 15)
                if special or (some & TRICKY and not every & DIGIT):
                    n_pieces = _split(
                        codes, bits, sums, powers, first, i, n_pieces, words, sizes, kinds, tail, keys, values, likely
                    )
                else:
                    place = np.uint64(n_pieces)
                    words[place], sizes[place], kinds[place] = value, i - first, _kind(some, every, i - first)
                    n_pieces += 1
                head = (
                    ((codes[np.uint64(first)] | 32) << 24)
                    | ((codes[np.uint64(first + 1)] | 32) << 16)
                    | ((codes[np.uint64(first + 2)] | 32) << 8)
                    | (codes[np.uint64(first + 3)] | 32)
                )
                present |= _PRESENT_LOREM * (head == _IPSU) | _PRESENT_POLICY * ((head == _POLI) | (head == _COOK))
                present |= _PRESENT_POLICY * ((head >> 8 == _USE) & (previous == _OF)) | _PRESENT_JAVA * ((some & J) != 0)
                previous = value
                line_chunks += 1
                line_longest = max(line_longest, i - first)
                line_last = i
                if line_first < 0:
                    line_first = first
                continue
            if codes[np.uint64(i)] != 0x0A:
                i += 1
                continue
            # A line ends.
            if line_first >= 0:
                last = codes[line_last - 1]
                before = codes[line_last - 2] if line_last - line_first > 1 else 0
                visible = line_last - line_first
                n_lines += 1
                line_chars += visible
                longest_line = max(longest_line, visible)
                bullets += codes[line_first] == 0x2D or codes[line_first] == 0x2022
                is_elliptic = visible > 2 and last == 0x2E and before == 0x2E and codes[line_last - 3] == 0x2E
                elliptic += is_elliptic or last == 0x2026
                short += i - line_start <= SHORT_LINE
                terminal += (bits[i - 1] & TERMINAL) != 0
                code_lines += _ends_code(last, before)
                ended, inside = False, 0  # sentences of this line: ends, and ends before its last word
                for k in range(line_piece, n_pieces):
                    kind = kinds[np.uint64(k)]
                    if kind & _PIECE_TERMINAL:
                        ended = True
                    elif ended and not kind & _PIECE_PUNCTUATION:
                        inside += 1
                        ended = False
                sentences += inside + ended
                stop = _without_citations(codes, bits, line_first, line_last)
                if line_chunks >= 3 and line_longest <= LONG_WORD and stop > line_first:
                    last = codes[stop - 1]
                    ends_well = last == 0x2E or last == 0x3F or last == 0x21 or last == 0x22 or last == 0x27
                    if last == 0x2E and stop - line_first > 2 and codes[stop - 2] == 0x2E and codes[stop - 3] == 0x2E:
                        ends_well = False
                    if ends_well:
                        unwanted = False
                        if present & _PRESENT_LOREM and _contains(codes, line_first, line_last, _LOREM):
                            clean_lorem += 1
                        if present & _PRESENT_JAVA:
                            unwanted = _contains(codes, line_first, line_last, _JAVASCRIPT)
                        if not unwanted and braces:
                            for j in range(line_first, line_last):
                                if codes[j] == 0x7B:
                                    clean_braces += 1
                                    break
                        if not unwanted and present & _PRESENT_POLICY:
                            for needle in _POLICIES:
                                unwanted |= _contains(codes, line_first, line_last, needle)
                        if not unwanted:
                            clean_lines += 1
                            clean_sentences += inside + 1
            if i > line_start or i == 0 or (i == n and newlines):  # Gopher's lines lie between runs of line feeds
                n_segments += 1
                if i > line_start:
                    at = _slot(_spelling(sums, powers, line_start, i), mark, entries, mask)
                    if entries[at, 1]:
                        again_segments += 1
                        again_chars += i - line_start
                        if line_first >= 0:
                            again_text_chars += i - line_start
                    entries[at, 1] = 1
                elif i == n and codes[0] == 0x0A:
                    again_segments += 1  # both ends are empty
            # A paragraph ends at two line feeds, or with the text.
            inside_text = line_start < last_visible and i > first_visible
            if inside_text:
                stop = min(i, last_visible)
                if i > line_start:  # the first and the last line of the text count without white space at that end
                    block = _join(block, _spelling(sums, powers, max(line_start, first_visible), stop))
                if i >= last_visible or (codes[i + 1] == 0x0A and i > line_start):
                    at = _slot(block, mark, entries, mask)
                    n_blocks += 1
                    if entries[at, 1]:
                        again_blocks += 1
                        again_block_chars += stop - block_start
                    entries[at, 1] = 1
                    block = np.uint64(0)
                    j = i
                    while j < n and codes[j] == 0x0A:
                        j += 1
                    block_start = j
            i += 1
            line_start, line_first, line_chunks, line_longest, line_piece = i, -1, 0, 0, n_pieces
        values_out[LINES], values_out[PARAGRAPHS] = n_lines, n_blocks
        if n_pieces == 0:
            mark += 1
            continue

        n_words, word_chars, alpha, total, stops = 0, 0, 0, 0, 0
        for k in range(n_pieces):
            size = sizes[k]
            total += size
            ends[k] = total
            is_word = not kinds[k] & _PIECE_MARK
            n_words += is_word
            word_chars += size * is_word
            alpha += kinds[k] & _PIECE_ALPHA
            slot = (words[k] >> _STOP_SHIFT) & np.uint64(31)
            stops |= np.int64(_STOPS[slot] == words[k]) << np.int64(slot)
        triples = 0
        for i in range(n - 2):
            if codes[i] == 0x2E and codes[i + 1] == 0x2E and codes[i + 2] == 0x2E:
                triples += 1
        if triples:  # of a run of full stops each third counts
            triples, run = 0, 0
            for i in range(n + 1):
                if codes[i] == 0x2E:
                    run += 1
                else:
                    triples, run = triples + run // 3, 0
        visible = n - spaces
        all_lines = newlines + (1 if codes[n - 1] != 0x0A else 0)
        values_out[WORDS], values_out[PIECES], values_out[SENTENCES], values_out[BRACES] = n_words, n_pieces, sentences, braces
        values_out[MEAN_WORD] = word_chars / n_words if n_words else 0.0
        values_out[MEAN_LINE], values_out[MAX_LINE] = line_chars / n_lines, longest_line
        values_out[HASHES], values_out[ELLIPSES] = hashes / n_pieces, (dots + triples) / n_pieces
        values_out[NEWLINES], values_out[ALPHA_WORDS] = newlines / n_pieces, alpha / n_pieces
        values_out[BULLETS], values_out[ELLIPSIS_LINES] = bullets / all_lines, elliptic / all_lines
        values_out[TERMINAL_LINES], values_out[SHORT_LINES] = terminal / n_lines, short / n_lines
        values_out[CODE_LINES] = code_lines / n_lines
        for i in range(32):
            values_out[STOPS] += (stops >> i) & 1
        values_out[LETTERS], values_out[DIGITS] = letters / visible, digits / visible
        values_out[SYMBOLS] = (visible - letters - digits) / visible
        values_out[UPPERS] = uppers / letters if letters else 0.0
        values_out[DUPLICATE_LINES], values_out[DUPLICATE_LINE_CHARS] = again_segments / n_segments, again_chars / n
        values_out[DUPLICATE_TEXT_LINE_CHARS] = again_text_chars / (n - newlines)
        values_out[DUPLICATE_PARAGRAPHS] = again_blocks / n_blocks
        values_out[DUPLICATE_PARAGRAPH_CHARS] = again_block_chars / n
        values_out[CLEAN_LINES], values_out[CLEAN_SENTENCES] = clean_lines, clean_sentences
        values_out[CLEAN_BRACES], values_out[CLEAN_LOREM] = clean_braces, clean_lorem
        mask = 63
        while 2 * mask < 3 * n_pieces:
            mask = 2 * mask + 1
        _ngrams(words, ends, n_pieces, values_out, grams, live, slots, again, seen_once, entries, mask, mark + 1)
        mark += 10


def measure_rules(data: Bytes, offsets: Offsets) -> NDArray[np.float64]:
    """Measure texts that are valid UTF-8 (buffers of `tables.buffers`): a matrix, documents × `COLUMNS`.

    A text without a word gets its sizes, and zeros elsewhere.
    """
    longest = int(np.diff(offsets).max(initial=0))
    room = longest + 8  # four characters beyond the end are looked at
    size = 1 << max(6, (2 * room - 1).bit_length())
    powers = np.full(room, FACTOR, np.uint64)
    powers[0] = 1
    np.multiply.accumulate(powers, out=powers)
    scratch = (
        np.empty(room, np.int32), np.empty(room, np.uint16), np.empty(room, np.int32), np.empty(room, np.uint32),
        np.empty(room, np.uint64), powers, np.empty(room, np.uint64),
        np.empty(room, np.int32),
        np.empty(room, np.uint8), np.empty(room, np.int32), np.empty(room, np.uint64), np.empty(room, np.int32),
        np.empty(room, np.int32), np.empty(room, np.int32), np.empty(room, np.uint8), np.empty(2 * size, np.uint8),
        np.zeros((size, 2), np.uint64),
    )  # fmt: skip
    out = np.empty((len(offsets) - 1, len(COLUMNS)))
    _measure(data, offsets, character_table(), *special_table(), *scratch, out)
    return out
