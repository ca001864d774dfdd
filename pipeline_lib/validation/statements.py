"""Statements about the world from the reference tables, without the entities that validation asks for."""

from __future__ import annotations

from collections.abc import Set

from pipeline_lib.validation import knowledge


def training_statements(held_out: Set[str]) -> list[str]:
    """True statements, a sentence each, about the entities of the reference tables that are not held out."""
    statements = []
    for table in knowledge.TABLES:
        template, facts = table()
        statements += [f"{template.format(subject)} {truth}." for subject, truth in facts if subject not in held_out]
    return statements
