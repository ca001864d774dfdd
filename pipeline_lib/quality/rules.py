"""Rules: SQL expressions over signals that are true for a document to keep, in sets that belong to domains."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline_lib.config.data import ScoreConfig
from pipeline_lib.errors import ConfigError, StageFailedError
from pipeline_lib.extensions import extensions
from pipeline_lib.quality.signals import TEXT_NAMES
from pipeline_lib.tables.duck import connect

_REPETITION = {
    "repeated_lines": "duplicate_line_share <= 0.3 AND duplicate_line_char_share <= 0.2",
    "repeated_paragraphs": "duplicate_paragraph_share <= 0.3 AND duplicate_paragraph_char_share <= 0.2",
    "top_ngrams": "top_2gram_char_share <= 0.2 AND top_3gram_char_share <= 0.18 AND top_4gram_char_share <= 0.16",
    "repeated_ngrams": "duplicate_5gram_char_share <= 0.15 AND duplicate_6gram_char_share <= 0.14"
    " AND duplicate_7gram_char_share <= 0.13 AND duplicate_8gram_char_share <= 0.12"
    " AND duplicate_9gram_char_share <= 0.11 AND duplicate_10gram_char_share <= 0.1",
}
_GOPHER_QUALITY = {
    "word_count": "words BETWEEN 50 AND 100000",
    "word_length": "mean_word_length BETWEEN 3 AND 10",
    "symbols": "hash_per_word <= 0.1 AND ellipsis_per_word <= 0.1",
    "bullets": "bullet_line_share <= 0.9",
    "ellipsis_lines": "ellipsis_line_share <= 0.3",
    "alphabetic": "alpha_word_share >= 0.8",
    "stop_words": "stop_words >= 2",
}
RULE_SETS: Mapping[str, Mapping[str, str]] = {
    # Rae et al. 2021, appendix A: the quality filter and table A1
    "gopher": {**_GOPHER_QUALITY, **_REPETITION},
    # Raffel et al. 2020, section 2.2, on the lines that its line rules keep
    "c4": {
        "clean_sentences": "clean_sentences >= 5",
        "curly_brackets": "clean_brace_lines = 0",
        "clean_lorem_ipsum": "clean_lorem_ipsum = 0",
    },
    # Penedo et al. 2024, section 3.6
    "fineweb": {
        "line_ends": "terminal_line_share >= 0.12",
        "line_lengths": "short_line_share <= 0.67",
        "line_copies": "duplicate_text_line_char_share <= 0.01",
        "list_like": "newlines_per_word <= 0.3",
    },
    # All three, made milder for reference pages with tables and examples. Marks are words here: of such pages half the words
    # have a letter, and a frame of signs or a list of parameters repeats n-grams. FineWeb's limit of 1 % on characters in
    # repeated lines and C4's ban of braces throw away most of them.
    "prose": {
        **_GOPHER_QUALITY,
        "alphabetic": "alpha_word_share >= 0.5",
        **_REPETITION,
        "repeated_ngrams": "duplicate_5gram_char_share <= 0.22 AND duplicate_6gram_char_share <= 0.21"
        " AND duplicate_7gram_char_share <= 0.2 AND duplicate_8gram_char_share <= 0.18"
        " AND duplicate_9gram_char_share <= 0.16 AND duplicate_10gram_char_share <= 0.15",
        "punctuation": "terminal_line_share >= 0.12",
        "short_lines": "short_line_share <= 0.67",
        "newlines": "newlines_per_word <= 0.3",
        "sentences": "sentences >= 3",
        "lorem_ipsum": "clean_lorem_ipsum = 0",
        # Good words in no order, which no rule above sees: a quarter of a bit a pair likelier in the reject corpus (README.md)
        "word_order": "likeness >= 0.2",
        "compressible": "compression_ratio BETWEEN 0.1 AND 1.0",
    },
    # The Stack (Kocetkov et al. 2022, section 3.2): mean line ≤ 100, longest line ≤ 1,000, alphabetic characters ≥ 25 %
    "code": {
        "size": "bytes BETWEEN 100 AND 1000000",
        "line_length": "mean_line_length <= 100",
        "longest_line": "max_line_length <= 1000",
        "letters": "letter_share >= 0.25",
        "digits": "digit_share <= 0.3",
        "repeated_lines": "duplicate_line_char_share <= 0.5",
        "compressible": "compression_ratio >= 0.1",
    },
    # Instruction records: both sides say something, the answer is no loop, and nothing is a secret
    "instruct": {
        "both_sides": "turns >= 2 AND prompt_bytes >= 4 AND response_bytes >= 1",
        "length": "bytes BETWEEN 16 AND 200000",
        "repetition": "duplicate_line_char_share <= 0.4 AND duplicate_10gram_char_share <= 0.3",
        "letters": "letter_share >= 0.2",
        "no_noise": "compression_ratio BETWEEN 0.08 AND 1.2",
        "no_secrets": "keys = 0",
    },
    # Legal texts repeat phrases and have long lists: only what is no text at all goes
    "licence": {
        "word_count": "words BETWEEN 20 AND 50000",
        "word_length": "mean_word_length BETWEEN 3 AND 12",
        "alphabetic": "alpha_word_share >= 0.6",
        "stop_words": "stop_words >= 2",
        "repeated_lines": "duplicate_line_char_share <= 0.6",
        "compressible": "compression_ratio BETWEEN 0.1 AND 1.0",
    },
    "none": {},
}
EXTRA = "extra"  # the rule set of `score.extra_rules`, which decide about every document
_FORBIDDEN = ("select", "from", "pragma", "attach", "copy", "install", "load", "set", "call")
_LOOKS_AROUND = ("WINDOW", "SUBQUERY")  # of DuckDB's expression classes
_CLASS = re.compile(r'"class":\s*"(\w+)"')
_LITERAL = re.compile(r"'(?:[^']|'')*'")
_NAME = re.compile(r'"([^"]+)"|([A-Za-z_]\w*)')
_WORD = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class Rule:
    """A rule of a rule set; `signal` is the first signal it names: its value is shown with a rejection."""

    rule_set: str
    name: str
    expression: str
    signal: str


@dataclass(frozen=True)
class Rules:
    """The rules of a configuration: the rule sets of each domain (`*`: any other) and of instruction records, and all rules."""

    domains: Mapping[str, Sequence[str]]
    instruct: Sequence[str]
    rules: Sequence[Rule]

    def key(self) -> dict[str, object]:
        """Identity: which expression decides about which documents."""
        domains = {domain: list(names) for domain, names in self.domains.items()}
        return {
            "domains": domains,
            "instruct": list(self.instruct),
            "rules": [[r.rule_set, r.name, r.expression] for r in self.rules],
        }


def rules_of(config: ScoreConfig, signals: Sequence[str]) -> Rules:
    """The rules that a configuration asks for, checked.

    Raises:
        ConfigError: an unknown rule set, a name that is taken, or an expression that DuckDB does not take.
    """
    known = {**RULE_SETS, **extensions("rule_set")}
    domains = {domain: rule_set_names(text) for domain, text in {"*": "none", **config.rules}.items()}
    instruct = rule_set_names(config.instruct_rules)
    found: list[Rule] = []
    for name in dict.fromkeys(name for names in (*domains.values(), instruct) for name in names):
        if name not in known:
            near = get_close_matches(name, known, 1)
            fix = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ConfigError(f"there is no rule set {name!r}", where="score.rules", fix=fix)
        if taken := set(known[name]) & set(config.extra_rules):
            raise ConfigError(f"rule set {name!r} has a rule {min(taken)!r} already", where="score.extra_rules", fix="rename it")
        found += [_rule(name, rule, text, f"rule set {name}, rule {rule}", signals) for rule, text in known[name].items()]
    for rule, text in config.extra_rules.items():
        found.append(_rule(EXTRA, rule, text, f"score.extra_rules.{rule}", signals))
    with connect() as connection:
        sample = {name: pa.array(["en", "en"] if name in TEXT_NAMES else [1.0, 1.0]) for name in signals}
        connection.register("signals", pa.table(sample))
        for one in found:
            _check(connection, one, signals)
    return Rules(domains, instruct, found)


def rule_set_names(text: str) -> list[str]:
    """The rule sets that a setting names: `gopher+fineweb` is both, one after the other."""
    return [name.strip() for name in text.split("+")]


def _rule(rule_set: str, name: str, expression: str, where: str, signals: Sequence[str]) -> Rule:
    return Rule(rule_set, name, expression, _first_signal(expression, signals, where))


def _first_signal(expression: str, signals: Sequence[str], where: str) -> str:
    """The first signal an expression names; an expression that names none, or is more than an expression, is refused."""
    bare = _LITERAL.sub(" ", expression)
    words = [word.lower() for word in _WORD.findall(bare)]
    bad = [mark for mark in (";", "--", "/*", "$", "?") if mark in bare] + [word for word in words if word in _FORBIDDEN]
    if bad:
        raise ConfigError(f"{expression!r} holds {bad[0]!r}", where=where, fix="a rule is one expression over signals")
    named: list[str] = [name for pair in _NAME.findall(bare) for name in pair if name in signals]
    if not named:
        near = [match for word in words for match in get_close_matches(word, signals, 1)]
        fix = f"did you mean {near[0]}?" if near else f"signals: {', '.join(signals)}"
        raise ConfigError(f"{expression!r} names no signal", where=where, fix=fix)
    return named[0]


def _check(connection: duckdb.DuckDBPyConnection, rule: Rule, signals: Sequence[str]) -> None:
    where = f"rule set {rule.rule_set}, rule {rule.name}"
    try:
        ((parsed,),) = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT\n{_sql(rule)}"]).fetchall()
        if set(_LOOKS_AROUND) & set(_CLASS.findall(parsed)):
            fix = "no window functions, no queries: documents are judged in batches"
            raise ConfigError(f"{rule.expression!r} looks at other documents", where=where, fix=fix)
        result = connection.sql(f"SELECT\n{_sql(rule)}\nFROM signals").to_arrow_table()
        kind = str(connection.sql(f"SELECT (\n{rule.expression}\n) FROM signals").types[0])  # noqa: S608
        calls = [name.lower() for name in re.findall(r"([A-Za-z_]\w*)\s*\(", _LITERAL.sub(" ", rule.expression))]
        changing = (
            "SELECT function_name FROM duckdb_functions() WHERE stability <> 'CONSISTENT' AND list_contains(?, function_name)"
        )
        moody = connection.execute(changing, [calls]).fetchall() if calls else []
    except duckdb.Error as error:
        raise ConfigError(
            f"{rule.expression!r} is no rule: {error}", where=where, fix=f"signals: {', '.join(signals)}"
        ) from error
    if result.num_columns != 1 or result.num_rows != 2:
        raise ConfigError(f"{rule.expression!r} does not give one value a document", where=where, fix="no lists, no aggregates")
    if kind != "BOOLEAN":
        raise ConfigError(
            f"{rule.expression!r} says neither yes nor no: it is a {kind}", where=where, fix=f"compare it, e.g. {rule.signal} > 0"
        )
    if moody or any(word in rule.expression.lower() for word in ("current_date", "current_time", "localtime")):
        raise ConfigError(f"{rule.expression!r} gives another value each time", where=where, fix="use signals and constants only")


def _sql(rule: Rule) -> str:
    return f"coalesce(CAST((\n{rule.expression}\n) AS BOOLEAN), false)"


def verdicts(table: pa.Table, rules: Sequence[Rule]) -> NDArray[np.bool_]:
    """Which rules hold: documents × rules. A rule that gives NULL does not hold.

    Args:
        table: signals.
        rules: of `rules_of`.

    Raises:
        StageFailedError: an expression fails on a value, such as a text that is no number.
    """
    if not rules or not table.num_rows:
        return np.ones((table.num_rows, len(rules)), bool)
    with connect() as connection:
        connection.register("signals", table)
        columns = ", ".join(f"{_sql(rule)} AS r{number}" for number, rule in enumerate(rules))
        try:
            found = connection.sql(f"SELECT {columns} FROM signals").to_arrow_table()  # noqa: S608  (checked by rules_of)
        except duckdb.Error as error:
            raise StageFailedError(
                f"a rule cannot be computed for some document: {error}",
                where="score rules",
                fix="guard it, e.g. with try(…) or nullif(…, 0)",
            ) from error
    return np.column_stack([column.to_numpy() for column in found.columns])


def rule_numbers(rules: Rules, domain: str, kind: str) -> Iterator[int]:
    """The numbers of the rules that decide about the documents of a domain, of a kind (text or instruct)."""
    names = rules.instruct if kind == "instruct" else rules.domains.get(domain, rules.domains["*"])
    return (number for number, rule in enumerate(rules.rules) if rule.rule_set == EXTRA or rule.rule_set in names)
