"""Bytes of source files in blocks: compressed or not (told by content), honest about files that break off or never end."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, cast

import pyarrow as pa

BLOCK = 8 << 20
_STEP = 1 << 16  # a step that meets an error loses what it had decoded: small steps lose little
_XZ_MEMORY = 1 << 28  # bytes; the largest preset of xz asks for 65 MB
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


class _Decompressor(Protocol):
    """What `bz2`, `lzma` and `lz4.frame` call a decompressor."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes | None: ...
    @property
    def needs_input(self) -> bool: ...
    def decompress(self, data: bytes, /, max_length: int = -1) -> bytes: ...


class _Gzip:
    """`zlib` in the same form; it checks the sum at the end."""

    def __init__(self) -> None:
        self._inner, self._tail = zlib.decompressobj(wbits=31), b""
        self.eof, self.needs_input, self.unused_data = False, True, b""

    def decompress(self, data: bytes, /, max_length: int = -1) -> bytes:
        found = self._inner.decompress(self._tail + data, max_length)
        self._tail, self.eof, self.unused_data = self._inner.unconsumed_tail, self._inner.eof, self._inner.unused_data
        self.needs_input = not self._tail
        return found


def _lz4() -> _Decompressor:
    import lz4.frame

    return cast(_Decompressor, lz4.frame.LZ4FrameDecompressor())


def _members(make: Callable[[], _Decompressor]) -> Callable[[IO[bytes]], Iterator[bytes]]:
    """One compressed member after the other, in steps: what was decoded before an error is not lost."""

    def decoded(raw: IO[bytes]) -> Iterator[bytes]:
        data = raw.read(_STEP)
        while data:
            one = make()
            while not one.eof:
                if not data and one.needs_input and not (data := raw.read(_STEP)):
                    raise EOFError("the file ends in the middle")
                found = one.decompress(data, _STEP)
                data = b""
                if found:
                    yield found
            data = one.unused_data or raw.read(_STEP)
            while data and not data.strip(b"\0"):  # padding
                data = raw.read(_STEP)

    return decoded


def _zstd(raw: IO[bytes]) -> Iterator[bytes]:
    stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    while piece := stream.read(_STEP):
        yield bytes(piece)


def _after_silent_frames(raw: IO[bytes]) -> Iterator[bytes]:
    """zstd and lz4 files may begin with frames that hold no data (a magic number and a length, four bytes each; `pzstd` does)."""
    while _is_silent(head := raw.read(8)):
        raw.seek(int.from_bytes(head[4:], "little"), 1)
    raw.seek(-len(head), 1)
    if (codec := codec_of(head)) is None:
        raise EOFError("no data behind the frames without any")
    yield from codec(raw)


def _is_silent(head: bytes) -> bool:
    return head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5  # RFC 8878, section 3.1.2: 0x184D2A50 to 0x184D2A5F


_Open = Callable[[IO[bytes]], Iterator[bytes]]
_CODECS: tuple[tuple[bytes, _Open], ...] = (
    (b"\x1f\x8b", _members(_Gzip)),
    (b"\x28\xb5\x2f\xfd", _zstd),
    (b"\x04\x22\x4d\x18", _members(_lz4)),
    (b"BZh", _members(bz2.BZ2Decompressor)),
    (b"\xfd7zXZ\x00", _members(lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY))),
)
COMPRESSED_SUFFIXES = (".gz", ".zst", ".lz4", ".bz2", ".xz")
_BROKEN = (OSError, EOFError, ValueError, RuntimeError, lzma.LZMAError, zlib.error, pa.ArrowException)


def is_remote(path: str) -> bool:
    """Whether a path is an fsspec URL."""
    return "://" in path


def codec_of(head: bytes) -> _Open | None:
    """How to decompress a file that begins with these bytes; None: as it is."""
    if _is_silent(head):
        return _after_silent_frames
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
            for piece in codec(raw):
                pieces.append(piece)
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
        data, read, used = io.BytesIO(raw.read(1 << 18)), 0, 1
        try:
            for piece in codec(data):
                read, used = read + len(piece), max(data.tell(), 1)
                if read > HARMLESS:
                    break
        except _BROKEN:
            pass  # cut where the sample ends
        return max(read / used, 1.0)
