"""Statements about the world from the reference tables, without the entities that validation asks for."""

from __future__ import annotations

from collections.abc import Set

from pipeline_lib.validation import knowledge
from pipeline_lib.validation.earth import domains_here
from pipeline_lib.validation.earth.facts import training_statements as about_the_earth


def training_statements(held_out: Set[str]) -> list[str]:
    """True statements, a sentence each, about the entities of the reference tables that are not held out.

    Args:
        held_out: entities of the items that this run's validation asks. Half of the earth's entities are never spoken of.
    """
    statements = []
    for table in knowledge.TABLES:
        template, facts = table()
        statements += [f"{template.format(subject)} {truth}." for subject, truth in facts if subject not in held_out]
    for domain in domains_here():
        for relation in domain.RELATIONS:
            statements += about_the_earth(fact for fact in relation() if held_out.isdisjoint(fact.entities))
    return statements
