"""When a run must be done: `max_hours` from its start, or `finish_by`, a wall-clock time that means exactly one moment."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from difflib import get_close_matches
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, available_timezones

from pipeline_lib.errors import ConfigError

if TYPE_CHECKING:
    from pipeline_lib.config.resources import ResourcesConfig

MAX_WINDOW = timedelta(days=90)
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?:\s+(\S+))?")


def parse_finish_by(text: str) -> datetime | tuple[time, ZoneInfo]:
    """A moment (ISO 8601 with offset), or a time of day in a zone (`07:00 Europe/Berlin`).

    Raises:
        ValueError: it is neither, or does not say which zone; the words say what to write.
    """
    if match := _CLOCK.fullmatch(text.strip()):
        hour, minute, zone = int(match[1]), int(match[2]), match[3]
        if hour > 23 or minute > 59:
            raise ValueError(f"{match[1]}:{match[2]} is no time of day; 00:00 to 23:59")
        return time(hour, minute), _zone(zone or "", f"{match[1]}:{match[2]}")
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is no time; write `07:00 Europe/Berlin` or `2026-11-21T07:00:00+01:00`") from None
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} does not say in which zone; write the offset: {moment.isoformat()}+01:00, or Z for UTC")
    return moment


def _zone(name: str, clock: str) -> ZoneInfo:
    """A zone by its full name; abbreviations are refused, since CST is three different zones and CET forgets summer."""
    if not name:
        raise ValueError(f"{clock} does not say in which zone; write `{clock} Europe/Berlin`, or `{clock} UTC`")
    known = available_timezones()
    if name in known and ("/" in name or name == "UTC"):
        return ZoneInfo(name)
    full = sorted(zone for zone in known if "/" in zone)
    by_city = {zone.rpartition("/")[2].lower(): zone for zone in reversed(full)}
    near = get_close_matches(name, full, 1) or [by_city[c] for c in get_close_matches(name.lower(), by_city, 1)]
    hint = f"did you mean {near[0]}?" if near else "write Region/City, such as Europe/Berlin, or UTC"
    raise ValueError(f"{name!r} is not the full name of a time zone; {hint}")


def deadline(resources: ResourcesConfig, started: datetime) -> datetime:
    """The moment at which a run that started then must be over (the margin is not subtracted), in UTC.

    A time of day means its next occurrence after `started`. A time that the clocks skip or show twice on that day is refused.

    Args:
        resources: the limits.
        started: when the run started; must carry a zone.

    Raises:
        ConfigError: `finish_by` does not mean one moment, lies in the past or too far away, or leaves less than the margin.
    """
    if not resources.finish_by:
        return (started + timedelta(hours=resources.max_hours)).astimezone(UTC)
    where = f"resources.finish_by = {resources.finish_by!r}"
    try:
        wanted = parse_finish_by(resources.finish_by)
        end = wanted if isinstance(wanted, datetime) else _next(wanted[0], wanted[1], started)
    except ValueError as error:
        raise ConfigError(str(error), where=where) from None
    end, window = end.astimezone(UTC), end - started
    if window <= timedelta(0):
        ago = f"{-window.total_seconds() / 3600:.1f} hours before the start"
        raise ConfigError(
            f"it is in the past ({ago})", where=where, fix="write a later date, or only the time of day and the zone"
        )
    if window > MAX_WINDOW:
        raise ConfigError(f"it is {window.days} days away", where=where, fix=f"at most {MAX_WINDOW.days} days")
    if window <= timedelta(minutes=resources.margin_minutes):
        raise ConfigError(
            f"only {window.total_seconds() / 60:.1f} minutes are left, all of them safety margin "
            f"(resources.margin_minutes = {resources.margin_minutes:g})",
            where=where,
            fix="finish later, start earlier, or lower resources.margin_minutes",
        )
    return end


def _next(clock: time, zone: ZoneInfo, started: datetime) -> datetime:
    """The next occurrence of a time of day in a zone, strictly after `started`."""
    today = started.astimezone(zone).date()
    candidate = _moment(today, clock, zone, started)
    return candidate if candidate > started else _moment(today + timedelta(days=1), clock, zone, started)


def _moment(day: date, clock: time, zone: tzinfo, started: datetime) -> datetime:
    early = datetime.combine(day, clock, tzinfo=zone)
    late = early.replace(fold=1)
    if early.utcoffset() == late.utcoffset():
        return early.astimezone(UTC)
    # Skipped or shown twice. Where both readings are over, the question does not arise.
    moments = sorted(moment.astimezone(UTC) for moment in (early, late))
    if moments[1] <= started:
        return moments[1]
    options = " or ".join(moment.astimezone(zone).isoformat() for moment in moments)
    skipped = early.astimezone(UTC).astimezone(zone).time() != clock
    what = "does not exist: the clocks are put forward over it" if skipped else "comes twice: the clocks are put back over it"
    raise ValueError(f"{clock:%H:%M} on {day.isoformat()} {what}; write {options}")
