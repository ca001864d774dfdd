"""Bytes of source files in blocks: local or remote, compressed or not (told by content), honest about files that break off."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

import fsspec
import pyarrow as pa

BLOCK = 8 << 20


class BrokenStreamError(Exception):
    """A compressed file is cut or damaged; what came before is good."""


_Open = Callable[[IO[bytes]], IO[bytes]]


def _zstd(raw: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))


_CODECS: tuple[tuple[bytes, _Open], ...] = (
    (b"\x1f\x8b", lambda raw: cast(IO[bytes], gzip.GzipFile(fileobj=raw))),
    (b"\x28\xb5\x2f\xfd", _zstd),
    (b"BZh", lambda raw: cast(IO[bytes], bz2.BZ2File(raw))),
    (b"\xfd7zXZ\x00", lambda raw: cast(IO[bytes], lzma.LZMAFile(raw))),  # noqa: SIM115
)
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")


def is_remote(path: str) -> bool:
    """Whether a path is an fsspec URL."""
    return "://" in path


def open_raw(path: str) -> Any:
    """The file's own bytes, seekable."""
    return fsspec.open(path, "rb").open()


def codec_of(head: bytes) -> _Open | None:
    """How to decompress a file that begins with these bytes; None: as it is."""
    return next((codec for magic, codec in _CODECS if head.startswith(magic)), None)


def blocks(path: str, size: int = BLOCK) -> Iterator[bytes]:
    """The decompressed bytes of a file, block by block.

    Raises:
        BrokenStreamError: after the last good block, when the compressed data is cut or damaged.
    """
    with open_raw(path) as raw:
        codec = codec_of(raw.read(6))
        raw.seek(0)
        stream = codec(raw) if codec else raw
        left = size
        pieces: list[bytes] = []
        try:
            # `read(n)` of a broken stream loses what it had already decoded: small steps lose little
            while piece := stream.read(min(left, 1 << 16) if codec else left):
                pieces.append(bytes(piece))
                left -= len(piece)
                if left <= 0:
                    yield b"".join(pieces)
                    pieces, left = [], size
        except (OSError, EOFError, lzma.LZMAError, pa.ArrowException) as error:
            if codec is None:
                raise
            if pieces:
                yield b"".join(pieces)
            raise BrokenStreamError(f"{type(error).__name__}: {error}") from error
        if pieces:
            yield b"".join(pieces)


def expansion(path: str) -> float:
    """How many times larger the decompressed bytes are, measured on the first 256 KiB of a compressed file; 1 for others."""
    with open_raw(path) as raw:
        codec = codec_of(raw.read(6))
        if codec is None:
            return 1.0
        raw.seek(0)
        read = 0
        try:
            stream = codec(raw)
            while raw.tell() < 1 << 18 and (piece := stream.read(1 << 16)):
                read += len(piece)
            return read / int(max(raw.tell(), 1))
        except (OSError, EOFError, lzma.LZMAError, pa.ArrowException):
            return max(read / int(max(raw.tell(), 1)), 1.0)
