"""Compiled measurements of texts: one pass over the code points, one over the words' n-grams, one for compressibility.

`measure` fills a matrix, documents × `COLUMNS`; `signals.py` says what every column means. It reads Arrow buffers, releases the
GIL and has one explicit signature. Helpers are in this file because numba's cache does not notice a changed helper elsewhere.

Words are maximal runs of characters that are no white space; lines and paragraphs count when they hold a word.
"""

# Compiled code: no sets, no keyword arguments, and one pass over the text keeps its counters in one function.
# ruff: noqa: PLR0912, PLR0915, PLR0917, PLR1714, SIM102

from __future__ import annotations

import numpy as np
from numba import njit

TEXT, OFFSETS = "Array(u1, 1, 'C', readonly=True)", "Array(i8, 1, 'C', readonly=True)"  # Arrow buffers may be immutable

COLUMNS = (
    "bytes", "characters", "words", "lines", "paragraphs", "sentences", "mean_word_length", "mean_line_length", "max_line_length",
    "hash_per_word", "ellipsis_per_word", "bullet_line_share", "ellipsis_line_share", "terminal_line_share", "short_line_share",
    "newlines_per_word", "alpha_word_share", "stop_words", "letter_share", "digit_share", "upper_share", "symbol_share",
    "code_line_share", "braces", "duplicate_line_share", "duplicate_line_char_share", "duplicate_paragraph_share",
    "duplicate_paragraph_char_share", "top_2gram_char_share", "top_3gram_char_share", "top_4gram_char_share",
    "duplicate_5gram_char_share", "duplicate_6gram_char_share", "duplicate_7gram_char_share", "duplicate_8gram_char_share",
    "duplicate_9gram_char_share", "duplicate_10gram_char_share", "compression_ratio", "emails", "ip_addresses", "lorem_ipsum",
)  # fmt: skip
(
    BYTES, CHARACTERS, WORDS, LINES, PARAGRAPHS, SENTENCES, MEAN_WORD, MEAN_LINE, MAX_LINE, HASHES, ELLIPSES, BULLETS,
    ELLIPSIS_LINES, TERMINAL_LINES, SHORT_LINES, NEWLINES, ALPHA_WORDS, STOP_WORDS, LETTERS, DIGITS, UPPERS, SYMBOLS, CODE_LINES,
    BRACES, DUPLICATE_LINES, DUPLICATE_LINE_CHARS, DUPLICATE_PARAGRAPHS, DUPLICATE_PARAGRAPH_CHARS, TOP_2, _TOP_3, _TOP_4,
    DUPLICATE_5, _DUPLICATE_6, _DUPLICATE_7, _DUPLICATE_8, _DUPLICATE_9, _DUPLICATE_10, COMPRESSION, EMAILS, IPS, LOREM,
) = range(len(COLUMNS))  # fmt: skip

_BASIS, _PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)  # 64-bit FNV-1a
_MIX, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(29)  # 2^64 / golden ratio (Knuth 6.4)
SHORT_LINE = 30  # characters (FineWeb)


def _fnv(word: str) -> int:
    value = int(_BASIS)
    for byte in word.encode():
        value = (value ^ byte) * int(_PRIME) % 2**64
    return value


_STOPS = np.array([_fnv(word) for word in ("the", "be", "to", "of", "and", "that", "have", "with")], np.uint64)  # Gopher
_LOREM = np.frombuffer(b"lorem ipsum", np.uint8)


@njit(f"UniTuple(i8, 2)({TEXT}, i8)", nogil=True, cache=True)
def _decode(data, at):  # type: ignore[no-untyped-def]
    """The code point at a byte position and its length in bytes; the text is valid UTF-8."""
    lead = np.int64(data[at])
    if lead < 0x80:
        return lead, 1
    second = np.int64(data[at + 1] & 63)
    if lead < 0xE0:
        return ((lead & 31) << 6) | second, 2
    third = np.int64(data[at + 2] & 63)
    if lead < 0xF0:
        return ((lead & 15) << 12) | (second << 6) | third, 3
    return ((lead & 7) << 18) | (second << 12) | (third << 6) | np.int64(data[at + 3] & 63), 4


@njit("b1(i8)", nogil=True, cache=True)
def _is_letter(code):  # type: ignore[no-untyped-def]
    """ASCII letters, and code points beyond ASCII outside the blocks of punctuation, symbols and pictures."""
    if code < 0x80:
        return 0x41 <= code <= 0x5A or 0x61 <= code <= 0x7A
    if code < 0xC0:
        return code == 0xAA or code == 0xB5 or code == 0xBA
    return not (
        code == 0xD7
        or code == 0xF7
        or 0x2000 <= code <= 0x206F
        or 0x20A0 <= code <= 0x20CF
        or 0x2190 <= code <= 0x2BFF
        or 0x3000 <= code <= 0x303F
        or 0xFF00 <= code <= 0xFF20
        or 0x1F000 <= code <= 0x1FAFF
    )


@njit("b1(i8)", nogil=True, cache=True)
def _is_bullet(code):  # type: ignore[no-untyped-def]
    """Hyphen, asterisk, and the bullets of Gopher's filter."""
    return code == 0x2D or code == 0x2A or code == 0x2022 or code == 0x2023 or code == 0x25CF or code == 0xB7 or code == 0x2013


@njit("b1(i8)", nogil=True, cache=True)
def _is_space(code):  # type: ignore[no-untyped-def]
    """White space of Unicode (White_Space property)."""
    if code < 0x80:
        return code == 0x20 or 0x09 <= code <= 0x0D
    return (
        code == 0xA0 or code == 0x85 or code == 0x1680 or 0x2000 <= code <= 0x200A or 0x2028 <= code <= 0x2029
        or code == 0x202F or code == 0x205F or code == 0x3000
    )  # fmt: skip


@njit("b1(i8)", nogil=True, cache=True)
def _is_closing(code):  # type: ignore[no-untyped-def]
    """`.` `!` `?` `…` and their ideographic forms."""
    return code == 0x2E or code == 0x21 or code == 0x3F or code == 0x2026 or code == 0x3002 or code == 0xFF01 or code == 0xFF1F


@njit("b1(i8)", nogil=True, cache=True)
def _is_quote(code):  # type: ignore[no-untyped-def]
    """Closing quotation marks."""
    return code == 0x22 or code == 0x27 or code == 0x201D or code == 0x2019


@njit("b1(i8, i8)", nogil=True, cache=True)
def _ends_code(last, before):  # type: ignore[no-untyped-def]
    """A line that ends in `;` `{` `}` `[` `(` `\\` `=` `()` or `):`."""
    return (
        last == 0x3B or last == 0x7B or last == 0x7D or last == 0x5B or last == 0x28 or last == 0x5C or last == 0x3D
        or (last == 0x29 and before == 0x28) or (last == 0x3A and before == 0x29)
    )  # fmt: skip


@njit("i8(u8, u8[::1], i4[::1], i4[::1], i8, i4)", nogil=True, cache=True)
def _slot(key, keys, counts, marks, mask, mark):  # type: ignore[no-untyped-def]
    """The place of a key in a stamped open-addressing table; a slot with another mark is empty and is taken with count 0."""
    at = np.int64((key ^ (key >> _SHIFT)) & np.uint64(mask))
    while marks[at] == mark and keys[at] != key:
        at = (at + 1) & mask
    if marks[at] != mark:
        marks[at], keys[at], counts[at] = mark, key, 0
    return at


@njit("void(u8[::1], i8[::1], i8, f8[::1], i8, i8, u8[::1], i4[::1], i4[::1], i8, i4)", nogil=True, cache=True)
def _duplicates(hashes, lengths, count, out, share, chars, keys, counts, marks, mask, mark):  # type: ignore[no-untyped-def]
    """Share of lines (paragraphs) that occurred before, and share of the text's characters that they hold."""
    again, again_chars = 0, 0
    for i in range(count):
        at = _slot(hashes[i], keys, counts, marks, mask, mark)
        if counts[at]:
            again += 1
            again_chars += lengths[i]
        counts[at] += 1
    out[share] = again / count
    out[chars] = again_chars / out[CHARACTERS]


@njit("i4(u8[::1], i8[::1], i8, f8[::1], u8[::1], i8[::1], i8[::1], u8[::1], i4[::1], i4[::1], i8, i4)", nogil=True, cache=True)
def _ngrams(words, ends, count, out, grams, live, slots, keys, counts, marks, mask, mark):  # type: ignore[no-untyped-def]
    """Repeated n-grams of words. `ends[i]` is the number of word characters up to and with word i. Returns the last mark used.

    An n-gram can only repeat where its (n−1)-gram repeats, so only these places (`live`) are visited: exact, and far faster.
    Top n-gram (Gopher): the most frequent one, the longest of equals; its characters with single spaces × its count. Duplicate
    n-grams (Gopher): from left to right, an n-gram that was seen counts its characters and is stepped over.
    """
    alive = count
    for i in range(count):
        live[i] = i
        grams[i] = words[i]
    for n in range(2, 11):
        mark += 1
        kept = 0
        for k in range(alive):
            i = live[k]
            if i + n <= count:
                grams[i] = ((grams[i] ^ (grams[i] >> _SHIFT)) * _MIX) ^ words[i + n - 1]
                slots[i] = _slot(grams[i], keys, counts, marks, mask, mark)
                counts[slots[i]] += 1
                live[kept] = i
                kept += 1
        alive, kept = kept, 0
        best, best_chars, repeated, free = 1, 0, 0, 0
        for k in range(alive):
            i = live[k]
            times = counts[slots[i]]
            if times == 1:
                continue
            live[kept] = i
            kept += 1
            chars = ends[i + n - 1] - (ends[i - 1] if i else 0)
            if n <= 4:
                chars += n - 1
                if times > best or (times == best and chars > best_chars):
                    best, best_chars = times, chars
            elif i >= free:
                if times < 0:
                    repeated += chars
                    free = i + n
                else:
                    counts[slots[i]] = -times  # seen
        alive = kept
        if n <= 4:
            out[TOP_2 + n - 2] = min(best * best_chars / out[CHARACTERS], 1.0)
        else:
            out[DUPLICATE_5 + n - 5] = repeated / out[CHARACTERS]
        if alive == 0:
            break
    return mark


@njit(f"f8({TEXT}, i8, i8, i8[::1])", nogil=True, cache=True)
def _compression(data, start, end, table):  # type: ignore[no-untyped-def]
    """Bytes that LZ4's fast compressor would write (greedy parse, 64 KiB window, block format), per byte.

    `table` keeps the last position of every hash of four bytes; positions before `start` belong to other texts.
    """
    written, at, anchor, tries = 0, start, start, 64
    while at + 12 < end:
        word = (
            np.uint64(data[at])
            | np.uint64(data[at + 1]) << np.uint64(8)
            | np.uint64(data[at + 2]) << np.uint64(16)
            | np.uint64(data[at + 3]) << np.uint64(24)
        )
        place = np.int64(((word * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)) >> np.uint64(19))
        other = table[place]
        table[place] = at
        is_match = other >= start and at - other < 65536
        if is_match:
            for i in range(4):
                if data[other + i] != data[at + i]:
                    is_match = False
                    break
        if not is_match:
            at += tries >> 6  # the longer nothing is found, the larger the steps, as LZ4 does
            tries += 1
            continue
        length = 4
        while at + length + 5 < end and data[other + length] == data[at + length]:
            length += 1
        literals = at - anchor
        written += 3 + literals
        if literals >= 15:
            written += 1 + (literals - 15) // 255
        if length >= 19:
            written += 1 + (length - 19) // 255
        at += length
        anchor, tries = at, 64
    literals = end - anchor
    written += 1 + literals
    if literals >= 15:
        written += 1 + (literals - 15) // 255
    return written / (end - start)


@njit("b1(u1)", nogil=True, cache=True)
def _in_address(byte):  # type: ignore[no-untyped-def]
    """Letters, digits and `-` `_` `+` `.` `%`: what e-mail addresses and host names are made of."""
    return (
        0x30 <= byte <= 0x39
        or 0x41 <= byte <= 0x5A
        or 0x61 <= byte <= 0x7A
        or byte == 0x2D
        or byte == 0x5F
        or byte == 0x2B
        or byte == 0x2E
        or byte == 0x25
    )


@njit(f"void({TEXT}, i8, i8, f8[::1])", nogil=True, cache=True)
def _finds(data, start, end, out):  # type: ignore[no-untyped-def]
    """Count what looks like an e-mail address, like an IPv4 address, and `lorem ipsum` in any case."""
    at = start
    while at < end:
        byte = data[at]
        if byte == 0x40 and at > start and _in_address(data[at - 1]):  # something@host.letters, at least two
            stop, dot = at + 1, -1
            while stop < end and _in_address(data[stop]):
                if data[stop] == 0x2E and stop + 2 < end and stop > at + 1:
                    if _is_letter(np.int64(data[stop + 1])) and _is_letter(np.int64(data[stop + 2])):
                        dot = stop
                stop += 1
            if dot > 0:
                out[EMAILS] += 1
            at = stop
        elif 0x30 <= byte <= 0x39:
            first, parts, is_address = at, 0, at == start or not _in_address(data[at - 1])
            while is_address and parts < 4:
                value, digits = 0, 0
                while at < end and 0x30 <= data[at] <= 0x39 and digits < 4:
                    value, digits, at = value * 10 + (data[at] - 0x30), digits + 1, at + 1
                is_address = 1 <= digits <= 3 and value <= 255
                parts += 1
                if is_address and parts < 4:
                    is_address = at < end and data[at] == 0x2E
                    if is_address:
                        at += 1
            if is_address:  # not a part of something longer, such as a version of five numbers; a full stop may follow
                follows = at < end and _in_address(data[at]) and data[at] != 0x2E
                goes_on = at + 1 < end and data[at] == 0x2E and _in_address(data[at + 1])
                if not follows and not goes_on:
                    out[IPS] += 1
            at = max(at, first + 1)
            while at < end and 0x30 <= data[at] <= 0x39:
                at += 1
        else:
            if (byte | 0x20) == 0x6C and at + 11 <= end:
                same = True
                for i in range(11):
                    if (data[at + i] | 0x20) != _LOREM[i]:
                        same = False
                        break
                if same:
                    out[LOREM] += 1
            at += 1


@njit(f"void({TEXT}, {OFFSETS}, f8[:, ::1])", nogil=True, cache=True)
def measure(data, offsets, out):  # type: ignore[no-untyped-def]
    """Fill `out` (documents × COLUMNS) for texts that are valid UTF-8. A text without a word gets its sizes and zeros."""
    longest = 0
    for row in range(len(offsets) - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    room = longest // 2 + 2  # words, lines and paragraphs need two bytes each
    size = 64
    while size < 2 * room:
        size *= 2
    keys, counts, marks = np.empty(size, np.uint64), np.empty(size, np.int32), np.zeros(size, np.int32)
    words, ends = np.empty(room, np.uint64), np.empty(room, np.int64)
    grams, live, slots = np.empty(room, np.uint64), np.empty(room, np.int64), np.empty(room, np.int64)
    line_hash, line_chars = np.empty(room, np.uint64), np.empty(room, np.int64)
    block_hash, block_chars = np.empty(room, np.uint64), np.empty(room, np.int64)
    table = np.full(1 << 13, -1, np.int64)
    mark = np.int32(0)
    for row in range(len(offsets) - 1):
        start, end = offsets[row], offsets[row + 1]
        values = out[row]
        values[:] = 0
        values[BYTES] = end - start
        n_words, n_lines, n_blocks, characters, visible = 0, 0, 0, 0, 0
        letters, digits, uppers, symbols, hashes, ellipses, sentences, newlines, braces = 0, 0, 0, 0, 0, 0, 0, 0, 0
        alpha_words, word_chars, stops, bullets, terminal, elliptic, short, code_lines, longest_line = 0, 0, 0, 0, 0, 0, 0, 0, 0
        raw, plain, has_letter, in_word = _BASIS, _BASIS, False, 0  # the word: hash, hash of its lower-case letters
        line, line_start, line_end, line_words = _BASIS, 0, 0, 0
        block, block_size, block_lines = _BASIS, 0, 0
        last, before, before_that = 0, 0, 0  # visible characters of this line, newest first
        at = start
        while at <= end:
            if at < end:
                code, length = _decode(data, at)
                characters += 1
            else:
                code, length = 0x0A, 1  # the end closes the last line
            if not _is_space(code):
                if in_word == 0 and line_words == 0:
                    line_start = characters
                    if _is_bullet(code):
                        bullets += 1
                in_word += 1
                line_end = characters
                for i in range(at, at + length):
                    raw = (raw ^ np.uint64(data[i])) * _PRIME
                if _is_letter(code):
                    letters += 1
                    has_letter = True
                    if 0x41 <= code <= 0x5A:
                        uppers += 1
                        plain = (plain ^ np.uint64(code | 0x20)) * _PRIME
                    else:
                        plain = (plain ^ np.uint64(code)) * _PRIME
                elif 0x30 <= code <= 0x39:
                    digits += 1
                    plain = (plain ^ np.uint64(code)) * _PRIME
                else:
                    symbols += 1
                    if code == 0x23:
                        hashes += 1
                    elif code == 0x2026 or (
                        code == 0x2E
                        and in_word >= 3
                        and last == 0x2E
                        and before == 0x2E
                        and (in_word == 3 or before_that != 0x2E)
                    ):
                        ellipses += 1
                    elif code == 0x7B or code == 0x7D:
                        braces += 1
                before_that, before, last = before, last, code
                at += length
                continue
            if in_word:  # a word ends
                words[n_words] = raw
                word_chars += in_word
                ends[n_words] = word_chars
                n_words += 1
                line_words += 1
                line = (line ^ (line >> _SHIFT)) * _MIX ^ raw
                if has_letter:
                    alpha_words += 1
                    for i in range(len(_STOPS)):
                        if plain == _STOPS[i]:
                            stops |= 1 << i
                if _is_closing(last) or (in_word > 1 and _is_quote(last) and _is_closing(before)):
                    sentences += 1
                raw, plain, has_letter, in_word = _BASIS, _BASIS, False, 0
            if code == 0x0A:  # a line ends
                if at < end:
                    newlines += 1
                if line_words:
                    size_of_line = line_end - line_start + 1
                    line_hash[n_lines], line_chars[n_lines] = line, size_of_line
                    n_lines += 1
                    longest_line = max(longest_line, size_of_line)
                    visible += size_of_line
                    if size_of_line <= SHORT_LINE:
                        short += 1
                    if last == 0x2026 or (last == 0x2E and before == 0x2E and before_that == 0x2E):
                        elliptic += 1
                    if _is_closing(last) or _is_quote(last):
                        terminal += 1
                    if _ends_code(last, before):
                        code_lines += 1
                    block = (block ^ (block >> _SHIFT)) * _MIX ^ line
                    block_size += size_of_line
                    block_lines += 1
                if block_lines and (line_words == 0 or at == end):  # a paragraph ends
                    block_hash[n_blocks], block_chars[n_blocks] = block, block_size
                    n_blocks += 1
                    block, block_size, block_lines = _BASIS, 0, 0
                line, line_words, last, before, before_that = _BASIS, 0, 0, 0, 0
            at += length
        values[CHARACTERS], values[WORDS], values[LINES], values[PARAGRAPHS] = characters, n_words, n_lines, n_blocks
        if n_words == 0:
            continue
        values[SENTENCES], values[BRACES] = sentences, braces
        values[MEAN_WORD], values[MEAN_LINE], values[MAX_LINE] = word_chars / n_words, visible / n_lines, longest_line
        values[HASHES], values[ELLIPSES], values[NEWLINES] = hashes / n_words, ellipses / n_words, newlines / n_words
        values[BULLETS], values[ELLIPSIS_LINES] = bullets / n_lines, elliptic / n_lines
        values[TERMINAL_LINES], values[SHORT_LINES], values[CODE_LINES] = (
            terminal / n_lines,
            short / n_lines,
            code_lines / n_lines,
        )
        values[ALPHA_WORDS] = alpha_words / n_words
        for i in range(len(_STOPS)):
            values[STOP_WORDS] += (stops >> i) & 1
        values[LETTERS], values[DIGITS], values[SYMBOLS] = letters / word_chars, digits / word_chars, symbols / word_chars
        values[UPPERS] = uppers / letters if letters else 0.0
        mask = 63
        while mask < 2 * n_words:
            mask = 2 * mask + 1
        if mark > 2_000_000_000:
            marks[:] = 0
            mark = np.int32(0)
        mark += 1
        _duplicates(
            line_hash,
            line_chars,
            n_lines,
            values,
            DUPLICATE_LINES,
            DUPLICATE_LINE_CHARS,
            keys,
            counts,
            marks,
            mask,
            np.int32(mark),
        )
        mark += 1
        _duplicates(
            block_hash, block_chars, n_blocks, values, DUPLICATE_PARAGRAPHS, DUPLICATE_PARAGRAPH_CHARS, keys, counts, marks, mask,
            np.int32(mark),
        )  # fmt: skip
        mark = _ngrams(words, ends, n_words, values, grams, live, slots, keys, counts, marks, mask, np.int32(mark))
        values[COMPRESSION] = _compression(data, start, end, table)
        _finds(data, start, end, values)
