"""What a fact about the world is, and its sentences: true ones for training text, true and false ones for items."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipeline_lib.validation.items import Item

Domain = Literal["geographic", "environmental", "temporal", "scientific", "tables"]
HELD_OUT = 0.5  # share of the entities of which no generated training statement ever speaks


@dataclass(frozen=True)
class Single:
    """One value of one entity: `templates` are sentences with {subject} and, last of all but the full stop, {answer}.

    `wrong` are three values that are false for the entity: of the same region, or of the same kind.
    """

    domain: Domain
    relation: str
    subject: str
    answer: str
    wrong: tuple[str, ...]
    templates: tuple[str, ...]
    region: str
    source: str

    @property
    def entities(self) -> tuple[str, ...]:
        """Whose mention is held out."""
        return (self.subject,)

    def sentences(self) -> Iterator[str]:
        """True statements, one a template."""
        for template in self.templates:
            yield template.format(subject=self.subject, answer=self.answer)


@dataclass(frozen=True)
class Comparison:
    """An order of two entities: `templates` are sentences with {more} and {less}; exchanged, each is false."""

    domain: Domain
    relation: str
    more: str
    less: str
    templates: tuple[str, ...]
    region: str
    source: str

    @property
    def entities(self) -> tuple[str, ...]:
        """Whose mentions are held out."""
        return (self.more, self.less)

    def sentences(self) -> Iterator[str]:
        """True statements, one a template."""
        for template in self.templates:
            yield template.format(more=self.more, less=self.less)


Fact = Single | Comparison
Relations = tuple[Callable[[], Iterator[Fact]], ...]


def held_out(entity: str) -> bool:
    """Whether an entity is for items only: a hash decides, so that it stays so when tables grow."""
    return hashlib.blake2b(entity.encode(), digest_size=8).digest()[0] < HELD_OUT * 256


def training_statements(facts: Iterable[Fact]) -> Iterator[str]:
    """True sentences about the entities that may be in training text; a comparison only when both may."""
    for fact in facts:
        if not any(map(held_out, fact.entities)):
            yield from fact.sentences()


def items_of(fact: Fact, number: int, draw: np.random.Generator, *, templates: slice = slice(None)) -> Iterator[Item]:
    """The items that ask a fact, one a template; they share `fact`, and the options and their order.

    Args:
        fact: what is asked.
        number: of the fact in its relation: part of the items' names.
        draw: decides the place of the right answer.
        templates: which of the fact's templates.
    """
    name = f"{fact.relation}-{number:05d}"
    plain = Item("earth", "", "minimal_pair", "", (), 0, f"{fact.domain}/{fact.relation}", entities=fact.entities, fact=name)
    plain = replace(plain, region=fact.region, source=fact.source)
    if isinstance(fact, Comparison):
        for index, template in enumerate(fact.templates[templates]):
            right, wrong = template.format(more=fact.more, less=fact.less), template.format(more=fact.less, less=fact.more)
            yield replace(plain, item=f"{name}-{index}", options=(right, wrong))
        return
    options = list(fact.wrong)
    answer = int(draw.integers(len(options) + 1))
    options.insert(answer, fact.answer)
    for index, template in enumerate(fact.templates[templates]):
        before, after = template.format(subject=fact.subject, answer="\0").split("\0")
        shown = tuple(f" {option}{after}" for option in options)
        yield replace(plain, item=f"{name}-{index}", form="choice", prompt=before.rstrip(), options=shown, answer=answer)


def number_options(value: float, factor: float, *, subject: str, digits: int = 3) -> tuple[str, tuple[str, ...]]:
    """A measured number in words, and three wrong ones at powers of a factor of it: so far away that no source's error decides.

    How many of them are smaller is decided by the subject, so that the place of the right one among the sizes tells nothing.
    """
    smaller = hashlib.blake2b(subject.encode(), digest_size=8).digest()[1] % 4
    wrong = (value * factor**power for power in range(-smaller, 4 - smaller) if power)
    return in_digits(value, digits), tuple(in_digits(other, digits) for other in wrong)


def in_digits(value: float, digits: int) -> str:
    """A number rounded to significant digits, with thousands separated, or as a power of ten where it is very large or small."""
    rounded = float(f"{value:.{digits}g}")
    if rounded and not 1e-3 <= abs(rounded) < 1e12:
        mantissa, _, exponent = f"{rounded:.{digits - 1}e}".partition("e")
        return f"{mantissa} times 10 to the power of {int(exponent)}"
    whole = float(rounded).is_integer()
    return f"{int(rounded):,}" if whole else f"{rounded:,.{max(digits, 1)}g}" if abs(rounded) < 1 else f"{rounded:,}"
