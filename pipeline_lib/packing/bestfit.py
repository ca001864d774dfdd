"""Best-fit-decreasing packing of pieces into sequences: compiled, over plain arrays of lengths."""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit("int64[::1](int64[::1], int64)", nogil=True, cache=True)
def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Bin of each piece, by best-fit-decreasing; bins are numbered by the first piece (in input order) that they hold.

    Free space is found in a bitmap over 0…capacity with a linked list of bins a size: no search over bins. Of equal lengths the
    earlier piece goes first, of equally free bins the one that became so last: the result is a function of the input.

    Args:
        lengths: int64[n], each in 1…capacity.
        capacity: size of a bin.
    """
    n = len(lengths)
    count = np.zeros(capacity + 2, np.int64)
    for i in range(n):
        count[capacity - lengths[i] + 1] += 1
    for size in range(capacity + 1):
        count[size + 1] += count[size]
    decreasing = np.empty(n, np.int64)
    for i in range(n):
        slot = capacity - lengths[i]
        decreasing[count[slot]] = i
        count[slot] += 1

    words = (capacity >> 6) + 1
    bitmap = np.zeros(words, np.uint64)
    head = np.full(capacity + 1, np.int64(-1), np.int64)
    following = np.empty(n, np.int64)
    bin_of = np.empty(n, np.int64)
    bins = 0
    one = np.uint64(1)
    for k in range(n):
        piece = decreasing[k]
        need = lengths[piece]
        word = need >> 6
        bits = bitmap[word] & ~((one << np.uint64(need & 63)) - one)
        while bits == np.uint64(0) and word + 1 < words:
            word += 1
            bits = bitmap[word]
        if bits == np.uint64(0):
            chosen, free = bins, capacity
            bins += 1
        else:
            low = 0
            while (bits >> np.uint64(low)) & one == np.uint64(0):
                low += 1
            free = (word << 6) + low
            chosen = head[free]
            head[free] = following[chosen]
            if head[free] < 0:
                bitmap[word] &= ~(one << np.uint64(low))
        bin_of[piece] = chosen
        left = free - need
        if left > 0:
            following[chosen] = head[left]
            head[left] = chosen
            bitmap[left >> 6] |= one << np.uint64(left & 63)

    renamed = np.full(bins, np.int64(-1), np.int64)
    named = 0
    for i in range(n):
        if renamed[bin_of[i]] < 0:
            renamed[bin_of[i]] = named
            named += 1
        bin_of[i] = renamed[bin_of[i]]
    return bin_of


def split_lengths(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut what is longer than a sequence at multiples of its length; nothing else is ever cut.

    Args:
        lengths: int64[documents], each ≥ 1.
        capacity: tokens in a sequence.

    Returns:
        (document int64[pieces], offset of the piece in its document int64[pieces], length int64[pieces]), in document order.
    """
    pieces = -(-lengths // capacity)
    document = np.repeat(np.arange(len(lengths), dtype=np.int64), pieces)
    first = np.cumsum(pieces) - pieces
    offset = (np.arange(len(document), dtype=np.int64) - first[document]) * capacity
    return document, offset, np.minimum(capacity, lengths[document] - offset)


@nb.njit("void(uint32[::1], int64[:, ::1], boolean[::1], uint32, uint32[::1])", nogil=True, cache=True)
def gather(tokens: np.ndarray, pieces: np.ndarray, ends: np.ndarray, eos: int, out: np.ndarray) -> None:
    """Copy pieces to their places.

    Args:
        tokens: uint32[any], all documents one after the other.
        pieces: int64[n, 3]: where a piece starts in `tokens`, its length, where it goes in `out`.
        ends: bool[n]: the piece is the last of its document; its last token is `eos`, which `tokens` does not hold.
        eos: the end token.
        out: uint32[sum of lengths].
    """
    for p in range(len(pieces)):
        start, length, target = pieces[p]
        n = length - (1 if ends[p] else 0)
        for k in range(n):
            out[target + k] = tokens[start + k]
        if ends[p]:
            out[target + n] = eos
