"""Elements, physical constants and the number of sunspots."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib import resources
from typing import Any

from pipeline_lib.validation.earth.facts import Comparison, Fact, Relations, Single, number_options

PACKAGES: tuple[str, ...] = ("periodictable", "scipy", "statsmodels")
FACTOR = 10.0  # between the numbers of an item
DENSER = 1.2  # ratio of densities from which two elements are compared
MORE_SPOTS = 1.5
CONSTANTS = (
    "speed of light in vacuum", "Planck constant", "elementary charge", "electron mass", "proton mass", "neutron mass",
    "Avogadro constant", "Boltzmann constant", "molar gas constant", "Faraday constant", "Stefan-Boltzmann constant",
    "Newtonian constant of gravitation", "Rydberg constant", "Bohr radius", "vacuum electric permittivity", "Bohr magneton",
    "nuclear magneton", "standard acceleration of gravity", "standard atmosphere", "fine-structure constant",
    "Wien wavelength displacement law constant", "electron volt", "atomic mass constant", "Compton wavelength",
    "classical electron radius", "Josephson constant", "von Klitzing constant", "Hartree energy", "Thomson cross section",
    "mag. flux quantum",
)  # fmt: skip


def _elements() -> list[Any]:
    import periodictable

    return [element for element in periodictable.elements if 1 <= element.number <= 103]


def symbols() -> Iterator[Fact]:
    """The symbol of an element."""
    templates = ("The chemical symbol of {subject} is {answer}.", "In formulas {subject} is written as {answer}.")
    elements = _elements()
    for place, element in enumerate(elements):
        wrong = tuple(elements[(place + step) % len(elements)].symbol for step in (1, 8, 18))
        yield Single(
            "scientific", "symbol", element.name, element.symbol, wrong, templates, "", f"periodictable: {element.symbol}"
        )


def atomic_numbers() -> Iterator[Fact]:
    """The atomic number of an element."""
    templates = ("The atomic number of {subject} is {answer}.", "The number of protons in an atom of {subject} is {answer}.")
    for element in _elements():
        number = element.number
        wrong = tuple(str(other) for other in (number + 1, number + 8, max(number - 2, 0) or number + 3) if other != number)
        yield Single(
            "scientific", "atomic_number", element.name, str(number), wrong, templates, "", f"periodictable: {element.symbol}"
        )


def heavier_atoms() -> Iterator[Fact]:
    """Which of two elements has the heavier atoms."""
    templates = ("An atom of {more} is heavier than an atom of {less}.", "Atoms of {less} have less mass than atoms of {more}.")
    elements = _elements()
    for step in (3, 10, 25):
        for one, two in zip(elements, elements[step:], strict=False):
            less, more = sorted((one, two), key=lambda e: e.mass)
            yield Comparison(
                "scientific", "heavier_atoms", more.name, less.name, templates, "", f"periodictable: {more.symbol}, {less.symbol}"
            )


def denser() -> Iterator[Fact]:
    """Which of two elements is denser."""
    templates = ("Pure {more} is denser than pure {less}.", "The density of {less} is lower than that of {more}.")
    elements = [element for element in _elements() if element.density and element.number <= 99]
    for step in (1, 6):
        for one, two in zip(elements, elements[step:], strict=False):
            less, more = sorted((one, two), key=lambda e: e.density)
            if more.density >= DENSER * less.density:
                yield Comparison(
                    "scientific", "denser", more.name, less.name, templates, "", f"periodictable: {more.symbol}, {less.symbol}"
                )


def constants() -> Iterator[Fact]:
    """Physical constants in SI units (CODATA)."""
    from scipy.constants import physical_constants

    for name in CONSTANTS:
        value, unit, _ = physical_constants[name]
        answer, wrong = number_options(value, FACTOR, subject=name)
        of = f" in {unit}" if unit else ""
        templates = (f"The {{subject}}{of} is about {{answer}}.", f"Measured{of}, the {{subject}} is about {{answer}}.")
        yield Single(
            "scientific", "constant", name.replace("mag.", "magnetic"), answer, wrong, templates, "", f"scipy.constants: {name}"
        )


def sunspots() -> Iterator[Fact]:
    """In which of two years the sun had more spots."""
    text = resources.files("statsmodels").joinpath("datasets", "sunspots", "sunspots.csv").read_text("utf-8")
    spots = {int(float(year)): float(count) for year, count in list(csv.reader(text.splitlines()))[1:]}
    templates = ("The sun had more spots in {more} than in {less}.", "Fewer sunspots were counted in {less} than in {more}.")
    ordered = sorted(spots)
    for one, two in zip(ordered, ordered[5:], strict=False):
        less, more = sorted((one, two), key=spots.__getitem__)
        if spots[more] >= MORE_SPOTS * spots[less] + 10:
            yield Comparison(
                "scientific", "sunspots", str(more), str(less), templates, "", f"statsmodels sunspots: {less}, {more}"
            )


RELATIONS: Relations = (symbols, atomic_numbers, heavier_atoms, denser, constants, sunspots)
