"""BLAKE3 of many texts at once, 128 bits each.

Short ones go through a kernel that releases the GIL: the library's call keeps it, and costs as much as a short text. Long ones go
through the library, which is twice as fast on them.

The specification is https://github.com/BLAKE3-team/BLAKE3-specs/blob/master/blake3.pdf; names are those of its section 2. The
result is that of `blake3(text).digest(16)`.
"""

# ruff: noqa: PLR0917
# mypy: disable-error-code="no-untyped-def, unused-ignore"

from __future__ import annotations

from typing import Any

import numpy as np
from blake3 import blake3
from numba import njit
from numpy.typing import NDArray

from pipeline_lib.corpus.kernels import OFFSETS, TEXT
from pipeline_lib.tables.buffers import Bytes, Offsets

DIGEST = 16  # bytes
SHORT = 2048  # bytes of a text up to which the kernel is faster, or nearly so
_CHUNK, _BLOCK = 1024, 64
_START, _END, _PARENT, _ROOT = (np.uint32(1 << bit) for bit in range(4))
_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
_VALUES = np.array(_IV, np.uint32)
_DEEPEST = SHORT // _CHUNK  # subtrees that may wait for their other half
_KERNEL: Any = {"nogil": True, "cache": True, "_nrt": False}


@njit("u4(u4, u4)", forceinline=True, **_KERNEL)
def _turned(word, by):  # type: ignore[no-untyped-def]
    return np.uint32((word >> by) | (word << (np.uint32(32) - by)))


@njit("UniTuple(u4, 4)(u4, u4, u4, u4, u4, u4)", forceinline=True, **_KERNEL)
def _mix(a, b, c, d, x, y):  # type: ignore[no-untyped-def]
    """G of section 2.2. Every sum is cut to 32 bits at once: numba widens it."""
    a = np.uint32(a + b + x)
    d = _turned(np.uint32(d ^ a), np.uint32(16))
    c = np.uint32(c + d)
    b = _turned(np.uint32(b ^ c), np.uint32(12))
    a = np.uint32(a + b + y)
    d = _turned(np.uint32(d ^ a), np.uint32(8))
    c = np.uint32(c + d)
    b = _turned(np.uint32(b ^ c), np.uint32(7))
    return a, b, c, d


@njit("void(u4[::1], u4[::1], i8, i8, u4)", **_KERNEL)
def _compress(value, words, counter, size, flags):  # type: ignore[no-untyped-def]
    """Section 2.2: eight words of chaining value become the next ones; a loop of rounds that permutes the sixteen words."""
    s0, s1, s2, s3, s4, s5, s6, s7 = value[0], value[1], value[2], value[3], value[4], value[5], value[6], value[7]
    s8, s9, s10, s11 = np.uint32(_IV[0]), np.uint32(_IV[1]), np.uint32(_IV[2]), np.uint32(_IV[3])
    s12, s13, s14, s15 = np.uint32(counter), np.uint32(counter >> 32), np.uint32(size), flags
    m0, m1, m2, m3, m4, m5, m6, m7 = words[0], words[1], words[2], words[3], words[4], words[5], words[6], words[7]
    m8, m9, m10, m11, m12, m13, m14, m15 = (
        words[8], words[9], words[10], words[11], words[12], words[13], words[14], words[15],
    )  # fmt: skip
    for _ in range(7):
        s0, s4, s8, s12 = _mix(s0, s4, s8, s12, m0, m1)
        s1, s5, s9, s13 = _mix(s1, s5, s9, s13, m2, m3)
        s2, s6, s10, s14 = _mix(s2, s6, s10, s14, m4, m5)
        s3, s7, s11, s15 = _mix(s3, s7, s11, s15, m6, m7)
        s0, s5, s10, s15 = _mix(s0, s5, s10, s15, m8, m9)
        s1, s6, s11, s12 = _mix(s1, s6, s11, s12, m10, m11)
        s2, s7, s8, s13 = _mix(s2, s7, s8, s13, m12, m13)
        s3, s4, s9, s14 = _mix(s3, s4, s9, s14, m14, m15)
        m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11, m12, m13, m14, m15 = (
            m2, m6, m3, m10, m7, m0, m4, m13, m1, m11, m12, m5, m9, m14, m15, m8,
        )  # fmt: skip
    value[0], value[1], value[2], value[3] = s0 ^ s8, s1 ^ s9, s2 ^ s10, s3 ^ s11
    value[4], value[5], value[6], value[7] = s4 ^ s12, s5 ^ s13, s6 ^ s14, s7 ^ s15


@njit(f"void({TEXT}, i8, i8, i8, u4, u4[::1], u4[::1])", **_KERNEL)
def _chunk(data, at, end, number, root, words, value):  # type: ignore[no-untyped-def]
    """The chaining value of a chunk (section 2.4)."""
    for i in range(8):
        value[i] = _VALUES[i]
    flags = _START
    while True:
        size = min(end - at, _BLOCK)
        for k in range(16):
            first = at + 4 * k
            if first + 4 <= end:
                place = np.uint64(first)
                words[k] = (
                    np.uint32(data[place])
                    | np.uint32(data[place + np.uint64(1)]) << np.uint32(8)
                    | np.uint32(data[place + np.uint64(2)]) << np.uint32(16)
                    | np.uint32(data[place + np.uint64(3)]) << np.uint32(24)
                )
            else:
                words[k] = 0
                for i in range(first, end):
                    words[k] |= np.uint32(data[i]) << np.uint32(8 * (i - first))
        last = at + _BLOCK >= end
        _compress(value, words, number, size, flags | (_END | root if last else np.uint32(0)))
        if last:
            return
        flags, at = np.uint32(0), at + _BLOCK


@njit("void(u4[:, ::1], i8, u4, u4[::1], u4[::1])", **_KERNEL)
def _join(stack, depth, root, words, value):  # type: ignore[no-untyped-def]
    """The parent of the subtree on the stack and of `value`, in `value` (section 2.5)."""
    for i in range(8):
        words[i], words[i + 8] = stack[depth, i], value[i]
        value[i] = _VALUES[i]
    _compress(value, words, 0, _BLOCK, _PARENT | root)


@njit(f"void({TEXT}, {OFFSETS}, u4[:, ::1], u4[::1], u4[::1], u4[:, ::1])", **_KERNEL)
def _digests(data, offsets, stack, words, value, out):  # type: ignore[no-untyped-def]
    for row in range(len(offsets) - 1):
        at, end = offsets[row], offsets[row + 1]
        if end - at > SHORT:
            continue
        number, depth = 0, 0
        while end - at > _CHUNK:
            _chunk(data, at, at + _CHUNK, number, np.uint32(0), words, value)
            at, number = at + _CHUNK, number + 1
            whole = number
            while whole & 1 == 0:  # two subtrees of the same size become one
                depth -= 1
                _join(stack, depth, np.uint32(0), words, value)
                whole >>= 1
            for i in range(8):
                stack[depth, i] = value[i]
            depth += 1
        _chunk(data, at, end, number, _ROOT if depth == 0 else np.uint32(0), words, value)
        while depth > 0:
            depth -= 1
            _join(stack, depth, _ROOT if depth == 0 else np.uint32(0), words, value)
        for i in range(4):
            out[row, i] = value[i]


def digests(data: Bytes, offsets: Offsets) -> NDArray[np.uint32]:
    """Digests of texts (buffers of `tables.buffers`): texts × 4 words of 32 bits, of which the bytes are the digest."""
    out = np.empty((len(offsets) - 1, DIGEST // 4), "<u4")
    stack, words, value = np.empty((_DEEPEST, 8), np.uint32), np.empty(16, np.uint32), np.empty(8, np.uint32)
    _digests(data, offsets, stack, words, value, out)
    for row in np.flatnonzero(np.diff(offsets) > SHORT):
        out[row] = np.frombuffer(blake3(data.data[offsets[row] : offsets[row + 1]]).digest(DIGEST), "<u4")
    return out
