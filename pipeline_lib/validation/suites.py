"""Stage suites: the validation items, made before dedup so that training text can be decontaminated. No download."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline_lib.config.data import SuitesConfig
from pipeline_lib.errors import ConfigError
from pipeline_lib.extensions import extensions
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import SUITE_ITEMS
from pipeline_lib.validation import grammar, knowledge, syntax
from pipeline_lib.validation.earth import DOMAINS
from pipeline_lib.validation.earth.facts import held_out, items_of
from pipeline_lib.validation.items import Item, items_table, read_user_suite
from pipeline_lib.workspace.artifact import SummaryTable
from pipeline_lib.workspace.identity import file_digest
from pipeline_lib.workspace.stage import Outcome, StageRun

Level = Literal["smoke", "standard"]
PER_PART: dict[Level, int] = {
    "smoke": 80,
    "standard": 10_000,
}  # items drawn from each phenomenon or table, at most (standard: all there are)
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
    files = {path: file_digest(Path(path)) if Path(path).is_file() else "" for path in suites.paths}
    return files | {name: installed(name) for domain in DOMAINS for name in domain.PACKAGES}


def installed(package: str) -> str:
    """The version of a package, "" without it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def missing_packages() -> dict[str, list[str]]:
    """Domain of the earth suite → the packages that its tables would come from and that are not here."""
    missing = {domain.__name__.rpartition(".")[2]: [p for p in domain.PACKAGES if not installed(p)] for domain in DOMAINS}
    return {domain: packages for domain, packages in missing.items() if packages}


def earth_suite(level: Level, seed: int) -> Iterator[Item]:
    """Statements about the world whose entities are held out: no generated training statement speaks of them."""
    here = [domain for domain in DOMAINS if all(map(installed, domain.PACKAGES))]
    for number, relation in enumerate(relation for domain in here for relation in domain.RELATIONS):
        facts = [fact for fact in relation() if any(map(held_out, fact.entities))]
        draw = np.random.default_rng([seed, number])
        for index in sorted(draw.permutation(len(facts))[: FACTS_PER_RELATION[level]].tolist()):
            yield from items_of(facts[index], index, draw)


BUILT_IN: dict[str, Callable[[Level, int], Iterator[Item]]] = {
    "grammar": grammar_suite,
    "syntax": syntax_suite,
    "knowledge": knowledge_suite,
    "zen": zen_suite,
    "earth": earth_suite,
}


def suites(run: StageRun, *, suites: SuitesConfig) -> Outcome:
    """Build the items of all wanted suites.

    Raises:
        ConfigError: an unknown suite, or a malformed user file (line and field named).
    """
    extended = extensions("suite")
    known = {*BUILT_IN, *extended}
    if unknown := [name for name in suites.names if name not in known]:
        raise ConfigError(f"unknown suite {unknown[0]!r}", where="suites.names", fix=f"known: {', '.join(sorted(known))}")
    names = suites.names or sorted(known)
    for domain, packages in missing_packages().items() if "earth" in names else ():
        run.event("domain_not_built", suite="earth", domain=domain, missing=packages, fix="pip install 'millrace[earth]'")
    tables = [items_table(BUILT_IN[name](suites.level, run.seed)) for name in names if name in BUILT_IN]
    for name in names:
        if name in extended:
            tables.append(extended[name](run.seed).cast(SUITE_ITEMS))
    files = {}
    for text in suites.paths:
        path = Path(text)
        tables.append(items_table(read_user_suite(path)))
        files[path.name] = file_digest(path)
    table = pa.concat_tables(tables).sort_by([("suite", "ascending"), ("item", "ascending")])
    write_table(table, run.path("suite_items", "suite_items.parquet"))
    counted = table.group_by(["suite", "kind"]).aggregate([("item", "count"), ("category", "count_distinct")])
    rows = [[r["suite"], r["kind"], r["item_count"], r["category_count_distinct"]] for r in counted.to_pylist()]
    per_suite = {entry["values"]: entry["counts"] for entry in pc.value_counts(table["suite"]).to_pylist()}
    return Outcome(
        metrics={"items": table.num_rows, "suites": len(per_suite)},
        summary=SummaryTable(("suite", "kind", "items", "categories"), rows, "Validation items"),
        details={"suites": per_suite, "files": files},
    )
