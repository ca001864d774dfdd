"""Creation dates: from what a record says, or from the name of its file."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

_TOLD = r"^\s*(?P<y>(?:1[5-9]|20)\d\d)(?:[-/.]?(?P<m>\d\d)(?:[-/.]?(?P<d>\d\d)(?:[T ].*)?)?)?\s*$"
_PARTS = {"%Y": r"(?P<y>(?:1[5-9]|20)\d\d)", "%m": r"(?P<m>\d\d)", "%d": r"(?P<d>\d\d)"}


def dates(column: pa.Array) -> pa.Array:
    """Timestamps (UTC, to the day) from texts that begin with YYYY, YYYY-MM, YYYY-MM-DD (or with `/`, `.` or nothing between), or
    from seconds or milliseconds since 1970; null for anything else.

    An offset behind the time is not applied.
    """
    parts = pc.extract_regex(column, _TOLD)
    year, month, day = (pc.struct_field(parts, name) for name in ("y", "m", "d"))
    month, day = (pc.if_else(pc.equal(part, ""), "01", part) for part in (month, day))
    told = pc.binary_join_element_wise(year, month, day, "-")
    stamp = pc.strptime(told, format="%Y-%m-%d", unit="s", error_is_null=True)
    real = pc.equal(pc.strftime(stamp, format="%Y-%m-%d"), told)  # strptime takes 31 February for 2 March
    stamp = pc.if_else(real, stamp, None)
    epoch = pc.struct_field(pc.extract_regex(column, r"^\s*(?P<s>\d{9,10})(?:\d{3})?(?:\.\d*)?\s*$"), "s")
    if epoch.null_count < len(epoch):
        stamp = pc.coalesce(stamp, pc.floor_temporal(epoch.cast(pa.int64()).cast(pa.timestamp("s")), unit="day"))
    return stamp.cast(pa.timestamp("s", tz="UTC"))


def pattern(text: str) -> re.Pattern[str]:
    """A date in file names, as `news-%Y%m%d`: `%Y` year, `%m` month, `%d` day, all else as it is, anywhere in the name.

    Raises:
        ValueError: there is no `%Y`, or something is named twice.
    """
    pieces = re.split("(%[Ymd])", text)
    if "%Y" not in pieces or any(pieces.count(part) > 1 for part in _PARTS):
        raise ValueError("needs %Y once, %m and %d at most once, as in news-%Y%m%d")
    return re.compile("".join(_PARTS.get(piece) or re.escape(piece) for piece in pieces))


def file_date(name: str, told: str) -> str:
    """The date that a file's name tells by a `pattern`, as YYYY, YYYY-MM or YYYY-MM-DD; "" where it tells none."""
    found = pattern(told).search(name)
    if not found:
        return ""
    groups = found.groupdict()
    return "-".join(part for part in (groups["y"], groups.get("m"), groups.get("d")) if part)
