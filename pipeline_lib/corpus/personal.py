"""Personal data and secrets in texts: e-mail and IP addresses, telephone numbers, keys. One compiled pass finds them.

- e-mail: `local@domain.tld`, a top-level domain of two letters or more.
- IP: IPv4 with four numbers up to 255; IPv6 with eight groups, or `::` and at least three.
- telephone: `+` with 8 to 15 digits (E.164), or a North American number (`(212) 555-0100`, `212-555-0100`, `212.555.0100`).
- key: what begins as the access keys of well-known services do, JSON web tokens, and blocks of private keys.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline_lib.corpus.kernels import OFFSETS, TEXT
from pipeline_lib.tables.buffers import Bytes, Offsets

KINDS = ("email", "ip", "phone", "key")
EMAIL, IP, PHONE, KEY = 1, 2, 4, 8
SHORTEST = 6  # bytes: a@b.cc

# what keys begin with, and how many characters follow at least; `.` after the number: dots belong to the key
_PREFIXES = (
    ("AKIA", 16, ""), ("ASIA", 16, ""), ("AIza", 35, ""), ("ghp_", 36, ""), ("gho_", 36, ""), ("ghu_", 36, ""), ("ghs_", 36, ""),
    ("ghr_", 36, ""), ("github_pat_", 22, ""), ("glpat-", 20, ""), ("sk-", 32, ""), ("sk_live_", 16, ""), ("rk_live_", 16, ""),
    ("xoxb-", 20, ""), ("xoxp-", 20, ""), ("hf_", 30, ""), ("npm_", 36, ""), ("eyJ", 60, "."),
)  # fmt: skip
_HEADS = np.frombuffer("".join(prefix for prefix, _, _ in _PREFIXES).encode(), np.uint8).copy()
_BOUNDS = np.append(0, np.cumsum([len(prefix) for prefix, _, _ in _PREFIXES])).astype(np.int64)
_LEAST = np.array([least for _, least, _ in _PREFIXES], np.int64)
_DOTS = np.array([dots == "." for _, _, dots in _PREFIXES])
_BEGIN = np.frombuffer(b"-----BEGIN ", np.uint8).copy()
_PRIVATE = np.frombuffer(b"PRIVATE KEY", np.uint8).copy()
_END = np.frombuffer(b"-----END ", np.uint8).copy()


def _classes() -> NDArray[np.uint8]:
    """What a byte may be: 1 digit, 2 letter, 4 hexadecimal digit, 8 in the local part of an address, 16 in a key; 32 first, 64
    second byte of what a key begins with; 128 first byte of anything that is looked for."""
    table = np.zeros(256, np.uint8)
    firsts, seconds = ({prefix[place] for prefix, _, _ in _PREFIXES} for place in (0, 1))
    for byte in range(128):
        char = chr(byte)
        table[byte] = (
            char.isdigit() + 2 * char.isalpha() + 4 * (char in "0123456789abcdefABCDEF")
            + 8 * (char.isalnum() or char in "._%+-") + 16 * (char.isalnum() or char in "_-")
            + 32 * (char in firsts) + 64 * (char in seconds)
            + 128 * (char in firsts or char in "0123456789abcdefABCDEF@:+(-")
        )  # fmt: skip
    return table


_CLASS = _classes()
_DIGIT, _LETTER, _HEX, _LOCAL, _KEYED, _FIRST, _SECOND, _BEGINS = (1 << bit for bit in range(8))


@njit(f"i8({TEXT}, i8, i8, u1[::1])", nogil=True, cache=True)
def _ipv4(data, at, end, classes):  # type: ignore[no-untyped-def]
    """End of an IPv4 address that begins at `at`, or 0."""
    for part in range(4):
        value, digits = 0, 0
        while at < end and digits < 4 and classes[data[at]] & _DIGIT:
            value = value * 10 + data[at] - 48
            at += 1
            digits += 1
        if digits == 0 or digits > 3 or value > 255:
            return 0
        if part < 3:
            if at >= end or data[at] != 0x2E:
                return 0
            at += 1
    if at < end and (
        classes[data[at]] & (_DIGIT | _LETTER) or (data[at] == 0x2E and at + 1 < end and classes[data[at + 1]] & _DIGIT)
    ):
        return 0
    return at


@njit(f"i8({TEXT}, i8, i8, u1[::1])", nogil=True, cache=True)
def _ipv6(data, at, end, classes):  # type: ignore[no-untyped-def]
    """End of an IPv6 address that begins at `at`, or 0."""
    groups, gap = 0, False
    while at < end:
        digits = 0
        while at < end and digits < 5 and classes[data[at]] & _HEX:
            at += 1
            digits += 1
        if digits > 4:
            return 0
        groups += digits > 0
        if at >= end or data[at] != 0x3A:
            break
        if at + 1 < end and data[at + 1] == 0x3A:
            if gap:
                return 0
            gap = True
            at += 2
        elif at + 1 < end and classes[data[at + 1]] & _HEX and digits:
            at += 1
        else:
            break
    if at < end and (classes[data[at]] & (_DIGIT | _LETTER) or data[at] == 0x3A):
        return 0
    return at if groups == 8 or (gap and 3 <= groups < 8) else 0


@njit(f"i8({TEXT}, i8, i8, u1[::1])", nogil=True, cache=True)
def _phone(data, at, end, classes):  # type: ignore[no-untyped-def]  # noqa: PLR0911, PLR0912
    """End of a telephone number that begins at `at`, or 0."""
    first = at
    if data[at] == 0x2B:  # +
        digits, last = 0, 0
        at += 1
        if at >= end or not 0x31 <= data[at] <= 0x39:
            return 0
        while at < end and digits < 16:
            byte = data[at]
            if classes[byte] & _DIGIT:
                digits += 1
                last = at + 1
            elif (byte == 0x20 or byte == 0x2D or byte == 0x2E or byte == 0x28 or byte == 0x29) and at - last < 2:  # noqa: PLR1714
                pass
            else:
                break
            at += 1
        return last if 8 <= digits <= 15 and not (last < end and classes[data[last]] & _LETTER) else 0
    bracket = data[at] == 0x28
    at += bracket
    separator = 0
    for part in range(3):
        count = 4 if part == 2 else 3
        if at + count > end or (part < 2 and not 0x32 <= data[at] <= 0x39):
            return 0
        for i in range(count):
            if not classes[data[at + i]] & _DIGIT:
                return 0
        at += count
        if part == 0 and bracket:
            if at >= end or data[at] != 0x29:
                return 0
            at += 1
            if at < end and data[at] == 0x20:
                at += 1
        elif part < 2:
            if at >= end or not (data[at] == 0x2D or data[at] == 0x2E or (data[at] == 0x20 and first < at)):
                return 0
            if separator and data[at] != separator and not bracket:
                return 0
            separator = data[at]
            at += 1
    following = classes[data[at]] if at < end else 0
    if following & (_DIGIT | _LETTER) or (
        at + 1 < end and (data[at] == 0x2D or data[at] == 0x2E) and classes[data[at + 1]] & _DIGIT
    ):
        return 0
    return at


@njit(f"i8({TEXT}, i8, i8, u1[::1])", nogil=True, cache=True)
def _matches(data, at, end, word):  # type: ignore[no-untyped-def]
    """Whether a word stands at `at`."""
    if at + len(word) > end:
        return 0
    for i in range(len(word)):
        if data[at + i] != word[i]:
            return 0
    return 1


@njit(f"i8({TEXT}, i8, i8, u1[::1], u1[::1], i8[::1], i8[::1], b1[::1])", nogil=True, cache=True)
def _key(data, at, end, classes, heads, bounds, least, dots):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """End of a key that begins at `at`, or 0."""
    for number in range(len(least)):
        if data[at] == heads[bounds[number]] and _matches(data, at, end, heads[bounds[number] : bounds[number + 1]]):
            stop = first = at + bounds[number + 1] - bounds[number]
            while stop < end and (classes[data[stop]] & _KEYED or (dots[number] and data[stop] == 0x2E)):
                stop += 1
            if stop - first >= least[number]:
                return stop
    return 0


@njit(f"i8({TEXT}, i8, i8, u1[::1], u1[::1], u1[::1])", nogil=True, cache=True)
def _private_key(data, at, end, begin, private, finish):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """End of a block of a private key that begins at `at`, or 0; one that is not closed goes to the end of the text."""
    if not _matches(data, at, end, begin):
        return 0
    line = at
    named = False
    while line < end and data[line] != 0x0A:
        named = named or _matches(data, line, end, private) == 1
        line += 1
    if not named:
        return 0
    while line < end and not _matches(data, line, end, finish):
        line += 1
    while line < end and data[line] != 0x0A:
        line += 1
    return line


@njit(f"i8({TEXT}, i8, i8, i8, u1[::1], i8[::1])", nogil=True, cache=True)
def _email(data, at, least, end, classes, start):  # type: ignore[no-untyped-def]  # noqa: PLR0917
    """End of an address whose `@` is at `at`, or 0; `start[0]` gets its beginning, not before `least`."""
    first = at
    while first > least and classes[data[first - 1]] & _LOCAL:
        first -= 1
    while first < at and data[first] == 0x2E:
        first += 1
    stop, dot = at + 1, -1
    while stop < end and (classes[data[stop]] & (_DIGIT | _LETTER) or data[stop] == 0x2D or data[stop] == 0x2E):
        if data[stop] == 0x2E:
            if stop == at + 1 or data[stop - 1] == 0x2E:
                break
            dot = stop
        stop += 1
    while stop > at + 1 and (data[stop - 1] == 0x2E or data[stop - 1] == 0x2D):
        stop -= 1
        if stop == dot:
            dot = -1
            for i in range(at + 1, stop):
                if data[i] == 0x2E:
                    dot = i
    start[0] = first
    if first == at or dot < 0 or stop - dot < 3:
        return 0
    for i in range(dot + 1, stop):
        if not classes[data[i]] & _LETTER:
            return 0
    return stop


@njit(
    f"i8({TEXT}, {OFFSETS}, i8, u1[::1], u1[::1], i8[::1], i8[::1], b1[::1], u1[::1], u1[::1], u1[::1], "
    "i8[::1], i8[::1], i8[::1], u1[::1])",
    nogil=True, cache=True,
)  # fmt: skip
def _find(  # type: ignore[no-untyped-def]  # noqa: PLR0912, PLR0917
    data, offsets, wanted, classes, heads, bounds, least, dots, begin, private, finish, rows, starts, ends, kinds
):
    count = 0
    start = np.zeros(1, np.int64)
    for row in range(len(offsets) - 1):
        at, end, done = offsets[row], offsets[row + 1], offsets[row]
        base, before = at, np.uint8(0)
        while at < end:
            byte = data[np.uint64(at)]
            inside, before = before & (_DIGIT | _LETTER), classes[np.uint64(byte)]
            if not before & _BEGINS or (inside and byte != 0x40):  # nearly always
                at += 1
                continue
            kind, stop = 0, 0
            start[0] = at
            following = classes[data[at + 1]] if at + 1 < end else np.uint8(0)
            if byte == 0x40:
                if wanted & EMAIL:
                    stop, kind = _email(data, at, done, end, classes, start), EMAIL
            else:
                previous = data[at - 1] if at > base else 0
                if wanted & IP and previous != 0x2E and previous != 0x3A:  # noqa: PLR1714
                    if classes[byte] & _DIGIT:
                        stop, kind = _ipv4(data, at, end, classes), IP
                    colon = at + 1 < end and data[at + 1] == 0x3A
                    if stop == 0 and (colon or (classes[byte] & _HEX and following & _HEX)):
                        stop, kind = _ipv6(data, at, end, classes), IP
                number = byte == 0x2B or byte == 0x28 or classes[byte] & _DIGIT  # noqa: PLR1714
                if stop == 0 and wanted & PHONE and number:  # noqa: SIM102
                    if previous != 0x2B and previous != 0x2D and previous != 0x2E and previous != 0x2F:  # noqa: PLR1714
                        stop, kind = _phone(data, at, end, classes), PHONE
                        if stop and stop < end and data[stop] == 0x40:
                            stop = 0
                if stop == 0 and wanted & KEY:
                    kind = KEY
                    if byte == 0x2D:
                        stop = _private_key(data, at, end, begin, private, finish)
                    elif classes[byte] & _FIRST and following & _SECOND and previous != 0x5F:
                        stop = _key(data, at, end, classes, heads, bounds, least, dots)
            if stop > 0:
                if count < len(rows):
                    rows[count], starts[count], ends[count], kinds[count] = row, start[0] - base, stop - base, kind
                count += 1
                at = done = stop
                before = classes[data[at - 1]]
            else:
                at += 1
    return count


def find(
    data: Bytes, offsets: Offsets, wanted: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Personal data in texts: (row, start, end, kind) of each place, in order; start and end in bytes of the text.

    Args:
        data: UTF-8 of the texts.
        offsets: row i is data[offsets[i]:offsets[i + 1]].
        wanted: sum of `EMAIL`, `IP`, `PHONE`, `KEY`: what is looked for.
    """
    room = 1 << 12
    while True:
        rows, starts, ends = (np.empty(room, np.int64) for _ in range(3))
        kinds = np.empty(room, np.uint8)
        count = _find(
            data, offsets, wanted, _CLASS, _HEADS, _BOUNDS, _LEAST, _DOTS, _BEGIN, _PRIVATE, _END, rows, starts, ends, kinds
        )  # fmt: skip
        if count <= room:
            return rows[:count], starts[:count], ends[:count], kinds[:count]
        room = count
