"""The statements about the world are true, are decided by knowledge alone, and keep their held-out entities to themselves."""

import datetime as dt
from collections import Counter

import numpy as np
import pytest

from pipeline_lib.validation.earth import DOMAINS
from pipeline_lib.validation.earth.facts import Comparison, Single, held_out, in_digits, items_of, training_statements
from pipeline_lib.validation.suites import earth_suite

FACTS = {relation.__name__: list(relation()) for domain in DOMAINS for relation in domain.RELATIONS}


def test_every_domain_has_facts_of_several_relations():
    domains = Counter(fact.domain for facts in FACTS.values() for fact in facts)
    assert set(domains) == {"geographic", "environmental", "temporal", "scientific"}
    assert min(domains.values()) > 500
    assert min(map(len, FACTS.values())) >= 30


@pytest.mark.parametrize("relation", FACTS)
def test_facts_are_well_formed(relation):
    facts = FACTS[relation]
    asked = Counter((fact.relation, *fact.entities, *(fact.templates if relation == "warmer_sea" else ())) for fact in facts)
    assert max(asked.values()) == 1
    for fact in facts:
        assert fact.source
        assert len(fact.templates) >= 2
        assert len(set(fact.sentences())) == len(fact.templates)
        if isinstance(fact, Single):
            assert len({fact.answer, *fact.wrong}) == 4
            assert all(template.endswith("{answer}.") for template in fact.templates)
        else:
            assert fact.more != fact.less


@pytest.mark.parametrize(
    "sentence",
    [
        "The capital of France is Paris.", "Kenya is a country in Africa.", "Brazil is larger than Bolivia.",
        "The weekday of 20 January 1970 was a Tuesday.", "In 2000 Easter Sunday was on 23 April.",
        "The first full moon of 2000 was on 21 January.", "The chemical symbol of iron is Fe.",
        "The atomic number of carbon is 6.",
        "Measured in J Hz^-1, the Planck constant is about 6.63 times 10 to the power of -34.",
        "Helsinki is north of Madrid.", "The air held more carbon dioxide in 2000 than in 1980.",
        "In the time zone database Japan has the zone Asia/Tokyo.", "An atom of uranium is heavier than an atom of actinium.",
    ],
)  # fmt: skip
def test_what_everybody_knows_is_among_them(sentence):
    assert sentence in {statement for facts in FACTS.values() for fact in facts for statement in fact.sentences()}


def test_weekdays_are_those_of_the_calendar():
    for fact in FACTS["weekdays"]:
        day = dt.datetime.strptime(fact.subject, "%d %B %Y").date()
        assert fact.answer == f"{day:%A}"


def test_comparisons_never_contradict_each_other():
    for facts in FACTS.values():
        ordered = {(fact.templates, fact.more, fact.less) for fact in facts if isinstance(fact, Comparison)}
        assert not any((templates, less, more) in ordered for templates, more, less in ordered)


def test_the_place_of_a_number_among_the_options_tells_nothing():
    for relation in ("areas", "constants", "carbon_dioxide"):

        def size(text):
            mantissa, _, power = text.replace(",", "").partition(" times 10 to the power of ")
            return float(mantissa) * 10.0 ** int(power or 0)

        ranks = Counter(sorted([fact.answer, *fact.wrong], key=size).index(fact.answer) for fact in FACTS[relation])
        assert set(ranks) == {0, 1, 2, 3}
        assert max(ranks.values()) < 0.5 * len(FACTS[relation])


def test_no_training_statement_speaks_of_a_held_out_entity():
    for facts in FACTS.values():
        trained = set(training_statements(facts))
        assert trained
        for fact in facts:
            if any(map(held_out, fact.entities)):
                assert trained.isdisjoint(fact.sentences())


def test_the_suite_asks_only_facts_with_held_out_entities_in_several_wordings():
    items = list(earth_suite("smoke", 0))
    assert all(any(map(held_out, item.entities)) for item in items)
    wordings = Counter(item.fact for item in items)
    assert set(wordings.values()) == {2, 3}
    assert {item.category.partition("/")[0] for item in items} == {"geographic", "environmental", "temporal", "scientific"}
    for fact in wordings:
        same = [item for item in items if item.fact == fact]
        assert len({item.answer for item in same}) == 1
    places = Counter(item.answer for item in items if item.form == "choice")
    assert max(places.values()) < 0.4 * sum(places.values())


def test_an_item_says_the_fact_and_its_opposites():
    fact = Single(
        "geographic",
        "capital",
        "Atlantis",
        "Poseidonis",
        ("A", "B", "C"),
        ("The capital of {subject} is {answer}.",),
        "Europe",
        "myth: 1",
    )
    (item,) = items_of(fact, 3, np.random.default_rng(0))
    assert item.prompt + item.options[item.answer] == "The capital of Atlantis is Poseidonis."
    assert set(item.options) == {" A.", " B.", " C.", " Poseidonis."}
    assert (item.fact, item.region, item.source, item.entities) == ("capital-00003", "Europe", "myth: 1", ("Atlantis",))


@pytest.mark.parametrize(
    ("value", "digits", "words"),
    [(299792458, 3, "300,000,000"), (6.62607e-34, 3, "6.63 times 10 to the power of -34"), (0.00729735, 3, "0.0073"),
     (0.25, 3, "0.25"), (468.4, 2, "470"), (10.97, 3, "11"), (9.80665, 3, "9.81"), (-1.7588e11, 3, "-176,000,000,000")],
)  # fmt: skip
def test_numbers_in_words(value, digits, words):
    assert in_digits(value, digits) == words
