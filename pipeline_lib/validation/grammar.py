"""Grammar as minimal pairs in the form of BLiMP (Warstadt et al. 2020), made from our own words: one phenomenon a function."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple


class Noun(NamedTuple):
    """Singular and plural."""

    one: str
    many: str


PEOPLE = [
    Noun("developer", "developers"), Noun("user", "users"), Noun("author", "authors"), Noun("student", "students"),
    Noun("teacher", "teachers"), Noun("doctor", "doctors"), Noun("writer", "writers"), Noun("engineer", "engineers"),
    Noun("child", "children"), Noun("woman", "women"), Noun("man", "men"), Noun("friend", "friends"),
]  # fmt: skip
THINGS = [
    Noun("file", "files"), Noun("book", "books"), Noun("table", "tables"), Noun("module", "modules"), Noun("house", "houses"),
    Noun("letter", "letters"), Noun("machine", "machines"), Noun("window", "windows"), Noun("key", "keys"),
    Noun("picture", "pictures"), Noun("report", "reports"), Noun("message", "messages"),
]  # fmt: skip
STATES = ["new", "old", "large", "small", "important", "simple", "ready", "open"]
VERBS = [("reads", "read"), ("writes", "write"), ("uses", "use"), ("needs", "need"), ("opens", "open"), ("likes", "like")]
PERFECT = [("written", "wrote"), ("taken", "took"), ("seen", "saw"), ("given", "gave"), ("chosen", "chose"), ("broken", "broke")]
REFLEXIVES = [(Noun("woman", "women"), "herself", "themselves"), (Noun("man", "men"), "himself", "themselves")]

Pair = tuple[str, str]  # grammatical, ungrammatical


def subject_verb() -> Iterator[Pair]:
    """The copula agrees with its subject."""
    for noun, state in itertools.product(PEOPLE + THINGS, STATES):
        yield f"The {noun.one} is {state}.", f"The {noun.one} are {state}."
        yield f"The {noun.many} are {state}.", f"The {noun.many} is {state}."


def verb_form() -> Iterator[Pair]:
    """A full verb agrees with its subject."""
    for person, thing, (one, many) in itertools.product(PEOPLE, THINGS, VERBS):
        yield f"The {person.one} {one} the {thing.one}.", f"The {person.one} {many} the {thing.one}."
        yield f"The {person.many} {many} the {thing.one}.", f"The {person.many} {one} the {thing.one}."


def attractor() -> Iterator[Pair]:
    """Agreement is with the subject, not with the nearest noun."""
    for first, second, state in itertools.product(THINGS, PEOPLE, STATES):
        yield f"The {first.one} of the {second.many} is {state}.", f"The {first.one} of the {second.many} are {state}."
        yield f"The {first.many} of the {second.one} are {state}.", f"The {first.many} of the {second.one} is {state}."


def determiner_noun() -> Iterator[Pair]:
    """Demonstratives agree with their noun."""
    for person, thing, (_, many) in itertools.product(PEOPLE, THINGS, VERBS):
        yield f"The {person.many} {many} this {thing.one}.", f"The {person.many} {many} this {thing.many}."
        yield f"The {person.many} {many} these {thing.many}.", f"The {person.many} {many} these {thing.one}."


def participle() -> Iterator[Pair]:
    """After `has`, the participle."""
    for person, thing, (right, wrong) in itertools.product(PEOPLE, THINGS, PERFECT):
        yield f"The {person.one} has {right} the {thing.one}.", f"The {person.one} has {wrong} the {thing.one}."


def reflexive() -> Iterator[Pair]:
    """A reflexive pronoun agrees in number with its subject."""
    for (noun, one, many), (verb_one, verb_many) in itertools.product(REFLEXIVES, VERBS):
        yield f"The {noun.one} {verb_one} a picture of {one}.", f"The {noun.one} {verb_one} a picture of {many}."
        yield f"The {noun.many} {verb_many} a picture of {many}.", f"The {noun.many} {verb_many} a picture of {one}."


def adjective_order() -> Iterator[Pair]:
    """An adjective stands before its noun."""
    for noun, state, (one, _) in itertools.product(THINGS, STATES, VERBS):
        yield f"The user {one} the {state} {noun.one}.", f"The user {one} the {noun.one} {state}."


def infinitive() -> Iterator[Pair]:
    """After `can` and `to`, the plain verb."""
    for person, thing, (one, many) in itertools.product(PEOPLE, THINGS, VERBS):
        yield f"The {person.one} can {many} the {thing.one}.", f"The {person.one} can {one} the {thing.one}."


PHENOMENA = (subject_verb, verb_form, attractor, determiner_noun, participle, reflexive, adjective_order, infinitive)
