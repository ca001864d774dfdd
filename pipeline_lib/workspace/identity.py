"""Identity of values and files: canonical JSON and blake3. A value without a stable identity is an error, never a `repr`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

FINGERPRINT_HEX = 32  # 128 bits: enough for names, short enough for paths


class IdentityError(TypeError):
    """A value has no stable identity and cannot be part of a fingerprint."""


def _plain(value: Any, where: str) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise IdentityError(f"{where}: {value} has no canonical JSON form")
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise IdentityError(f"{where}: key {bad[0]!r} is not a string")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise IdentityError(f"{where}: a {type(value).__name__} has no stable identity; convert it to JSON values first")


def canonical_json(value: Any) -> bytes:
    """The one byte string that stands for a JSON value (sorted keys, no spaces, UTF-8).

    Raises:
        IdentityError: for sets, paths, NaN, objects and anything else JSON cannot hold exactly.
    """
    return json.dumps(_plain(value, "$"), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def fingerprint_of(value: Any) -> str:
    """128-bit blake3 of the canonical JSON of `value`, as 32 hex digits."""
    return str(blake3(canonical_json(value)).hexdigest()[:FINGERPRINT_HEX])


def file_digest(path: Path) -> str:
    """256-bit blake3 of a file's bytes, as 64 hex digits."""
    return str(blake3(max_threads=1).update_mmap(path).hexdigest()) if path.stat().st_size else str(blake3().hexdigest())


def bytes_digest(data: bytes | memoryview) -> str:
    """256-bit blake3 of bytes, as 64 hex digits."""
    return str(blake3(data).hexdigest())


def tree_digest(folder: Path, pattern: str = "**/*.py") -> str:
    """Digest of the files of a folder (names and bytes), in name order: used to notice changed code."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return fingerprint_of([[path.relative_to(folder).as_posix(), file_digest(path)] for path in files])
