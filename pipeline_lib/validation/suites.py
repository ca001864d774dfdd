"""Stage suites: the validation items, made before dedup so that training text can be decontaminated. No download."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.config.data import SuitesConfig
from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.extensions import extensions
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import SUITE_ITEMS
from pipeline_lib.validation import grammar, knowledge, people, syntax
from pipeline_lib.validation.earth import DOMAINS, domains_here, installed, missing_packages
from pipeline_lib.validation.earth.facts import Fact, held_out, items_of
from pipeline_lib.validation.earth.tables import facts_of
from pipeline_lib.validation.files import read_suite, suite_files
from pipeline_lib.validation.items import Item, items_table
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.identity import file_digest
from pipeline_lib.workspace.stage import Outcome, StageRun

Level = Literal["smoke", "standard"]
PER_PART: dict[Level, int] = {
    "smoke": 80,
    "standard": 10_000,
}  # items drawn from each phenomenon or table, at most (standard: all there are)
PEOPLE: dict[Level, int] = {"smoke": 80, "standard": 0}  # items of each suite about people; 0: all
FACTS_PER_RELATION: dict[Level, int] = {
    "smoke": 10,
    "standard": 10_000,
}  # of the earth suite; each is asked in two or three wordings


def _pairs(
    suite: str, phenomena: tuple[Callable[[], Iterator[tuple[str, str]]], ...], per_part: int, seed: int
) -> Iterator[Item]:
    for number, phenomenon in enumerate(phenomena):
        pairs = list(phenomenon())
        draw = np.random.default_rng([seed, number])
        for index in sorted(draw.permutation(len(pairs))[:per_part].tolist()):
            name = f"{phenomenon.__name__}-{index:05d}"
            yield Item(suite, name, "minimal_pair", "", pairs[index], 0, phenomenon.__name__)


def grammar_suite(level: Level, seed: int) -> Iterator[Item]:
    """English grammar as minimal pairs."""
    return _pairs("grammar", grammar.PHENOMENA, PER_PART[level], seed)


def syntax_suite(level: Level, seed: int) -> Iterator[Item]:
    """Python syntax as minimal pairs."""
    return _pairs("syntax", syntax.PHENOMENA, PER_PART[level], seed)


def knowledge_suite(level: Level, seed: int) -> Iterator[Item]:
    """Reference facts as multiple choice with four options."""
    for number, table in enumerate(knowledge.TABLES):
        template, facts = table()
        draw = np.random.default_rng([seed, number])
        for index in sorted(draw.permutation(len(facts))[: PER_PART[level]].tolist()):
            subject, truth = facts[index]
            others = sorted({other for _, other in facts} - {truth})
            wrong = [others[i] for i in draw.permutation(len(others))[:3]]
            answer = int(draw.integers(4))
            options = [f" {text}." for text in [*wrong[:answer], truth, *wrong[answer:]]]
            name = f"{table.__name__}-{index:05d}"
            yield Item(
                "knowledge", name, "choice", template.format(subject), options, answer, table.__name__, entities=(subject,)
            )


def zen_suite(level: Level, seed: int) -> Iterator[Item]:
    """PEP 20, verbatim: the smallest suite that decontamination must protect."""
    for number, (prompt, options, answer, text) in enumerate(knowledge.zen()):
        yield Item("zen", f"zen-{number:02d}", "cloze", prompt, options, answer, "zen", text=text, kind="verbatim")


def file_digests(*, suites: SuitesConfig) -> dict[str, str]:
    """What the stage reads beside artifacts: users' files, and the versions of the packages that hold reference tables.

    A missing file is told of when it is read.
    """
    files = {str(file): file_digest(file) for path in suites.paths for file in suite_files(Path(path))}
    files |= {str(path): file_digest(Path(path)) for path in suites.earth_tables if Path(path).is_file()}
    return files | {name: installed(name) for domain in DOMAINS for name in domain.PACKAGES}


def earth_suite(level: Level, seed: int) -> Iterator[Item]:
    """Statements about the world whose entities are held out: no generated training statement speaks of them."""
    for number, relation in enumerate(relation for domain in domains_here() for relation in domain.RELATIONS):
        yield from _asked((fact for fact in relation() if any(map(held_out, fact.entities))), level, [seed, number])


def table_items(path: Path, level: Level, seed: int) -> Iterator[Item]:
    """Items of the suite `earth` from a user's reference table. Nothing is generated from it for training: all rows are asked."""
    for number, (_, facts) in enumerate(sorted(facts_of(path).items())):
        yield from _asked(facts, level, [seed, number, *path.stem.encode()])


def _asked(facts: Iterable[Fact], level: Level, seed: list[int]) -> Iterator[Item]:
    known, draw = list(facts), np.random.default_rng(seed)
    for index in sorted(draw.permutation(len(known))[: FACTS_PER_RELATION[level]].tolist()):
        yield from items_of(known[index], index, draw)


def people_suite(make: Callable[[], Iterator[Item]]) -> Callable[[Level, int], Iterator[Item]]:
    """One of the suites about people, at level smoke a part of it."""

    def suite(level: Level, seed: int) -> Iterator[Item]:
        items = list(make())
        most = PEOPLE[level] or len(items)
        for index in sorted(np.random.default_rng([seed, len(items)]).permutation(len(items))[:most].tolist()):
            yield items[index]

    return suite


BUILT_IN: dict[str, Callable[[Level, int], Iterator[Item]]] = {
    "grammar": grammar_suite,
    "syntax": syntax_suite,
    "knowledge": knowledge_suite,
    "zen": zen_suite,
    "earth": earth_suite,
    "people_pairs": people_suite(people.preferences),
    "people_questions": people_suite(people.questions),
    "pronouns": people_suite(people.pronouns),
}


def suites(run: StageRun, *, suites: SuitesConfig) -> Outcome:
    """Build the items of all wanted suites.

    Raises:
        ConfigError: an unknown suite, or no items at all. A malformed or missing file is an event, and is not scored.
    """
    extended = extensions("suite")
    known = {*BUILT_IN, *extended}
    if unknown := [name for name in suites.names if name not in known]:
        raise ConfigError(f"unknown suite {unknown[0]!r}", where="suites.names", fix=f"known: {', '.join(sorted(known))}")
    names = suites.names or sorted(known)
    not_built: list[dict[str, str]] = []
    for domain, packages in missing_packages().items() if "earth" in names else ():
        reason = f"the tables of {', '.join(packages)} are missing\n  → pip install 'millrace[earth]'"
        not_built.append({"suite": f"earth/{domain}", "reason": reason})
    tables = [items_table(BUILT_IN[name](suites.level, run.seed)) for name in names if name in BUILT_IN]
    for name in names:
        if name in extended:
            tables.append(extended[name](run.seed).cast(SUITE_ITEMS))
    for path in map(Path, suites.paths):
        try:
            if path.stem in names:
                raise ConfigError("a built-in suite has this name", where=str(path), fix="rename the file")
            tables.append(items_table(read_suite(path)))
        except (ConfigError, NotFoundError) as error:  # the others are scored all the same
            not_built.append({"suite": path.stem, "reason": str(error)})
    for path in map(Path, suites.earth_tables):
        try:
            if not path.is_file():
                raise NotFoundError("there is no such table", where=str(path), fix="correct suites.earth_tables")
            tables.append(items_table(table_items(path, suites.level, run.seed)))
        except (ConfigError, NotFoundError) as error:
            not_built.append({"suite": f"earth/tables/{path.stem}", "reason": str(error)})
    for lost in not_built:
        run.event("suite_not_built", **lost)
    if not tables:
        raise ConfigError("there are no validation items", where="suites", fix="name suites in suites.names or suites.paths")
    table = pa.concat_tables(tables).sort_by([("suite", "ascending"), ("item", "ascending")])
    write_table(table, run.path("suite_items", "suite_items.parquet"))
    counted = table.group_by(["suite", "kind"]).aggregate([("item", "count"), ("category", "count_distinct")])
    rows = [[r["suite"], r["kind"], r["item_count"], r["category_count_distinct"]] for r in counted.to_pylist()]
    per_suite = {entry["values"]: entry["counts"] for entry in pc.value_counts(table["suite"]).to_pylist()}
    return Outcome(
        metrics={"items": table.num_rows, "suites": len(per_suite)},
        summary=SummaryTable(("suite", "kind", "items", "categories"), rows, "Validation items"),
        details={"suites": per_suite, "not_built": not_built},
    )
