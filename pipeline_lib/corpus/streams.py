"""Bytes of source files in blocks: compressed or not (told by content), honest about files that break off or expand without end."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import pyarrow as pa

BLOCK = 8 << 20
_STEP = 1 << 16  # `read(n)` of a broken stream loses what it had already decoded: small steps lose little
HARMLESS = 64 << 20  # bytes that any file may expand to, whatever its ratio


class BrokenStreamError(Exception):
    """A compressed file is cut or damaged; what came before is good."""


class TooLargeError(BrokenStreamError):
    """A file expands beyond the allowed ratio or size; what came before is good."""


@dataclass(frozen=True)
class Caps:
    """What a file may expand to: at most `ratio` times its own bytes (beyond 64 MiB), and `size` bytes in all."""

    ratio: float = 1000.0
    size: int = 1 << 40


_Open = Callable[[IO[bytes]], IO[bytes]]


def _arrow(codec: str) -> _Open:
    return lambda raw: cast(IO[bytes], pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec))


_CODECS: tuple[tuple[bytes, _Open], ...] = (
    (b"\x1f\x8b", lambda raw: cast(IO[bytes], gzip.GzipFile(fileobj=raw))),
    (b"\x28\xb5\x2f\xfd", _arrow("zstd")),
    (b"\x04\x22\x4d\x18", _arrow("lz4")),
    (b"BZh", lambda raw: cast(IO[bytes], bz2.BZ2File(raw))),
    (b"\xfd7zXZ\x00", lambda raw: cast(IO[bytes], lzma.LZMAFile(raw))),  # noqa: SIM115
)
COMPRESSED_SUFFIXES = (".gz", ".zst", ".lz4", ".bz2", ".xz")
_BROKEN = (OSError, EOFError, lzma.LZMAError, pa.ArrowException)


def is_remote(path: str) -> bool:
    """Whether a path is an fsspec URL."""
    return "://" in path


def codec_of(head: bytes) -> _Open | None:
    """How to decompress a file that begins with these bytes; None: as it is."""
    return next((codec for magic, codec in _CODECS if head.startswith(magic)), None)


def is_compressed(path: str) -> bool:
    """Whether a file's content is in one of the known compressed forms."""
    with Path(path).open("rb") as raw:
        return codec_of(raw.read(6)) is not None


def blocks(path: str, size: int = BLOCK, *, caps: Caps = Caps(), start: int = 0, stop: int = -1) -> Iterator[bytes]:
    """The decompressed bytes of a local file, block by block.

    Args:
        path: the file.
        size: bytes of a block.
        caps: what it may expand to.
        start: first byte, of a file that is not compressed.
        stop: end of the bytes that are wanted, -1: all.

    Raises:
        BrokenStreamError: after the last good block, when the compressed data is cut, damaged or (`TooLargeError`) too large.
    """
    with Path(path).open("rb") as raw:
        codec = codec_of(raw.read(6))
        raw.seek(start)
        if codec is None:
            left = (stop if stop >= 0 else caps.size) - start
            while left > 0 and (block := raw.read(min(size, left))):
                left -= len(block)
                yield block
            if stop < 0 and left <= 0 and raw.read(1):
                raise TooLargeError
            return
        total, pieces, waiting = 0, cast(list[bytes], []), 0
        try:
            stream = codec(raw)
            while piece := stream.read(_STEP):
                pieces.append(bytes(piece))
                total, waiting = total + len(piece), waiting + len(piece)
                if total > caps.size or (total > HARMLESS and total > caps.ratio * max(raw.tell(), 1)):
                    raise TooLargeError
                if waiting >= size:
                    yield b"".join(pieces)
                    pieces, waiting = [], 0
        except (*_BROKEN, TooLargeError) as error:
            if pieces:
                yield b"".join(pieces)
            if isinstance(error, TooLargeError):
                raise
            raise BrokenStreamError(f"{type(error).__name__}: {error}") from error
        if pieces:
            yield b"".join(pieces)


def expansion(path: str) -> float:
    """How many times larger the decompressed bytes are, measured on the first 256 KiB of a compressed file; 1 for others."""
    with Path(path).open("rb") as raw:
        codec = codec_of(raw.read(6))
        if codec is None:
            return 1.0
        raw.seek(0)
        data, read = io.BytesIO(raw.read(1 << 18)), 0
        try:
            stream = codec(data)
            while read < HARMLESS and (piece := stream.read(_STEP)):
                read += len(piece)
        except _BROKEN:
            pass  # cut where the sample ends
        return max(read / max(data.tell(), 1), 1.0)
