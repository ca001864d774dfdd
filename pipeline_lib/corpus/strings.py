"""Strings of source files: Parquet does not promise that they are UTF-8, and everything that reads strings later relies on it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def valid(column: pa.Array) -> pa.Array:
    """A column of strings (of any string type) with null for what is not UTF-8; itself where all is well."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        data = column.cast(pa.large_binary()) if column.type == pa.string_view() else column.view(_bytes_of(column.type))
        return pa.array([decoded(value) for value in data.to_pylist()], column.type)
    return column


def decoded(value: Any) -> str | None:
    """A value as a string; null where it is bytes that are not UTF-8."""
    try:
        return value.decode() if isinstance(value, bytes) else None if value is None else str(value)
    except UnicodeDecodeError:
        return None


def _bytes_of(kind: pa.DataType) -> pa.DataType:
    return pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()
