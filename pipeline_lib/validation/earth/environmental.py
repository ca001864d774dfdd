"""Measured series: carbon dioxide at Mauna Loa, the sea surface off Peru, the flow of the Nile."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from importlib import resources
from statistics import fmean

from pipeline_lib.validation.earth.facts import Comparison, Fact, Relations, Single, in_digits

PACKAGES: tuple[str, ...] = ("statsmodels",)
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
PPM_APART = 3.0  # two years of carbon dioxide are compared when they are this far apart; the yearly mean is known to 0.2
PPM_WRONG = 30.0  # between the levels of an item
DEGREES_APART = 1.0
FLOW_RATIO = 1.15


def _rows(folder: str, file: str) -> list[list[str]]:
    text = resources.files("statsmodels").joinpath("datasets", folder, file).read_text("utf-8")
    return list(csv.reader(text.splitlines()))[1:]


@cache
def carbon_dioxide_by_year() -> dict[int, float]:
    """Yearly means in parts per million, of years with at least forty weekly values."""
    weeks: dict[int, list[float]] = defaultdict(list)
    for date, value, *_ in _rows("co2", "co2.csv"):
        if value:
            weeks[int(date[:4])].append(float(value))
    return {year: fmean(values) for year, values in sorted(weeks.items()) if len(values) >= 40}


def carbon_dioxide() -> Iterator[Fact]:
    """The level of a year, among levels some parts per million away."""
    templates = (
        "In {subject} the air at Mauna Loa held carbon dioxide at a level in parts per million of about {answer}.",
        "The mean carbon dioxide level at Mauna Loa in parts per million in {subject} was about {answer}.",
    )
    for year, level in carbon_dioxide_by_year().items():
        smaller = year % 4  # so that the place of the right one among the sizes tells nothing
        wrong = tuple(in_digits(level + PPM_WRONG * step, 3) for step in range(-smaller, 4 - smaller) if step)
        yield Single(
            "environmental",
            "carbon_dioxide",
            str(year),
            in_digits(level, 3),
            wrong,
            templates,
            "Oceania",
            f"statsmodels co2: {year}",
        )


def more_carbon_dioxide() -> Iterator[Fact]:
    """Which of two years had more carbon dioxide in the air."""
    levels = list(carbon_dioxide_by_year().items())
    templates = (
        "The air held more carbon dioxide in {more} than in {less}.",
        "The carbon dioxide level was lower in {less} than in {more}.",
    )
    for step in (3, 7, 12, 20):
        for (early, low), (late, high) in zip(levels, levels[step:], strict=False):
            if high - low >= PPM_APART:
                yield Comparison(
                    "environmental",
                    "more_carbon_dioxide",
                    str(late),
                    str(early),
                    templates,
                    "Oceania",
                    f"statsmodels co2: {early}, {late}",
                )


def warmer_sea() -> Iterator[Fact]:
    """In which of two years a month's sea surface off Peru was warmer."""
    years = {int(float(year)): [float(value) for value in values] for year, *values in _rows("elnino", "elnino.csv")}
    for month, name in enumerate(MONTHS):
        templates = (
            f"The sea off Peru was warmer in {name} {{more}} than in {name} {{less}}.",
            f"In {name} {{less}} the sea off Peru was colder than in {name} {{more}}.",
        )
        for step in (1, 4):
            ordered = sorted(years)
            for one, two in zip(ordered, ordered[step:], strict=False):
                less, more = sorted((one, two), key=lambda year: years[year][month])
                if years[more][month] - years[less][month] >= DEGREES_APART:
                    yield Comparison(
                        "environmental",
                        "warmer_sea",
                        str(more),
                        str(less),
                        templates,
                        "South America",
                        f"statsmodels elnino: {name} {less}, {more}",
                    )


def nile() -> Iterator[Fact]:
    """In which of two years the Nile carried more water at Aswan."""
    flow = {int(float(year)): float(volume) for year, volume in _rows("nile", "nile.csv")}
    templates = (
        "The Nile carried more water in {more} than in {less}.",
        "The flow of the Nile was weaker in {less} than in {more}.",
    )
    for step in (1, 2, 6):
        ordered = sorted(flow)
        for one, two in zip(ordered, ordered[step:], strict=False):
            less, more = sorted((one, two), key=flow.__getitem__)
            if flow[more] >= FLOW_RATIO * flow[less]:
                yield Comparison(
                    "environmental", "nile", str(more), str(less), templates, "Africa", f"statsmodels nile: {less}, {more}"
                )


RELATIONS: Relations = (carbon_dioxide, more_carbon_dioxide, warmer_sea, nile)
