"""Validation sets in the form in which their authors publish them, told by their columns: nothing has to be converted.

| set | file | becomes |
|---|---|---|
| BLiMP (Warstadt et al. 2020) | `*.jsonl` with `sentence_good`, `sentence_bad` | minimal pairs, a category a paradigm |
| CrowS-Pairs (Nangia et al. 2020) | `*.csv` with `sent_more`, `sent_less` | preferences, a category a bias type |
| BBQ (Parrish et al. 2022) | `*.jsonl` with `context_condition`, `ans0` … `ans2` | questions about people |
| Winogender (Rudinger et al. 2018) | `all_sentences.tsv` beside `occupations-stats.tsv` | preferences between pronouns |
| TruthfulQA (Lin et al. 2022) | `*.csv` with `Best Answer`, `Incorrect Answers` | choices (MC1), a category a topic |
| ParaRel (Elazar et al. 2021) | a folder with `trex_lms_vocab`, `pattern_data` (pararel.py) | choices, many wordings a fact |
| LAMBADA (Paperno et al. 2016) | `*.jsonl` with `text` alone | the last word |
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline_lib.errors import ConfigError
from pipeline_lib.validation.items import Item

Rows = Sequence[tuple[int, Mapping[str, Any]]]  # number in the file (from 1), record
HALF = 50.0  # per cent of women from which an occupation counts as one of women


def blimp(suite: str, rows: Rows, path: Path) -> Iterator[Item]:
    """Minimal pairs."""
    for number, row in rows:
        options = (row["sentence_good"], row["sentence_bad"])
        category = row.get("UID", path.stem)
        yield Item(suite, f"{category}-{number:05d}", "minimal_pair", "", options, 0, category, options[0], "verbatim")


def crows_pairs(suite: str, rows: Rows, path: Path) -> Iterator[Item]:
    """Preferences; the stereotyped sentence stands first, also in pairs that the authors list the other way round."""
    for number, row in rows:
        options = (row["sent_more"], row["sent_less"])
        if row["stereo_antistereo"] == "antistereo":
            options = options[::-1]
        yield Item(suite, f"{number:05d}", "preference", "", options, 0, row["bias_type"], options[0], "verbatim")


def bbq(suite: str, rows: Rows, path: Path) -> Iterator[Item]:
    """Questions about two people, in the order stereotyped answer, other person, unknown."""
    for number, row in rows:
        groups = [row["answer_info"][f"ans{index}"][1] for index in range(3)]
        stereotyped = {group.lower() for group in row["additional_metadata"]["stereotyped_groups"]}
        unknown = groups.index("unknown")
        people = [index for index in range(3) if index != unknown]
        among = [index for index in people if groups[index].lower() in stereotyped]
        if len(among) != 1:
            continue  # both or neither of the groups is the stereotyped one: there is no direction
        # A question in which the stereotype says "not this one" is biased towards the other person.
        first = among[0] if row["question_polarity"] == "neg" else next(index for index in people if index != among[0])
        order = [first, next(index for index in people if index != first), unknown]
        answer = order.index(int(row["label"]))
        ambiguous = row["context_condition"] == "ambig"
        prompt = f"{row['context']} {row['question']}"
        options = tuple(f" {row[f'ans{index}']}" for index in order)
        condition = "ambiguous" if ambiguous else "disambiguated"
        category = f"{row['category']}/{condition}"
        question = f"{row['category']}-{row.get('question_index', number)}"
        yield Item(
            suite, f"{path.stem}-{number:05d}", "people", prompt, options, answer, category, prompt, "verbatim", fact=question
        )  # fmt: skip


def winogender(suite: str, rows: Rows, path: Path) -> Iterator[Item]:
    """Preferences between "he" and "she": the pronoun of most people in the occupation stands first."""
    stats = {row["occupation"]: float(row["bls_pct_female"]) for _, row in _table(path.with_name("occupations-stats.tsv"))}
    sentences = {row["sentid"]: row["sentence"] for _, row in rows}
    for name, male in sorted(sentences.items()):
        occupation = name.split(".")[0]
        female = sentences.get(name.replace(".male.txt", ".female.txt"))
        if not name.endswith(".male.txt") or female is None or occupation not in stats:
            continue
        of_women = stats[occupation] > HALF
        options = (female, male) if of_women else (male, female)
        item = name.removesuffix(".male.txt")
        category = "occupation/" + ("women" if of_women else "men")
        yield Item(suite, item, "preference", "", options, 0, category, male, "verbatim", fact=occupation)


def truthful_qa(suite: str, rows: Rows, path: Path) -> Iterator[Item]:
    """The best answer among the incorrect ones."""
    for number, row in rows:
        wrong = [text.strip() for text in row["Incorrect Answers"].split(";") if text.strip()]
        best = row["Best Answer"].strip()
        options = tuple(f" {text}" for text in (best, *dict.fromkeys(text for text in wrong if text != best)))
        if len(options) > 1:
            prompt = f"Q: {row['Question']}\nA:"
            yield Item(suite, f"{number:05d}", "choice", prompt, options, 0, row["Category"], row["Question"], "verbatim")


def lambada(suite: str, rows: Rows, path: Path) -> Iterator[Item]:
    """The last word of a passage."""
    for number, row in rows:
        prompt, space, word = row["text"].rstrip().rpartition(" ")
        if space:
            yield Item(suite, f"{number:05d}", "last_word", prompt, (f" {word}",), 0, suite, row["text"], "verbatim")


FORMS: tuple[tuple[frozenset[str], Callable[[str, Rows, Path], Iterator[Item]]], ...] = (
    (frozenset({"sentence_good", "sentence_bad"}), blimp),
    (frozenset({"sent_more", "sent_less", "stereo_antistereo", "bias_type"}), crows_pairs),
    (frozenset({"context_condition", "ans0", "ans1", "ans2", "label", "answer_info"}), bbq),
    (frozenset({"sentid", "sentence"}), winogender),
    (frozenset({"Question", "Best Answer", "Incorrect Answers", "Category"}), truthful_qa),
)


def published_form(columns: Sequence[str]) -> Callable[[str, Rows, Path], Iterator[Item]] | None:
    """The reader for records with these fields, or None when they are of no published form."""
    for needed, reader in FORMS:
        if needed <= set(columns):
            return reader
    return lambada if list(columns) == ["text"] else None


def read_table_suite(path: Path) -> list[Item]:
    """A CSV or TSV file of a published form.

    Raises:
        ConfigError: the columns are of no known form, or a field is missing.
    """
    rows = list(_table(path))
    columns = list(rows[0][1]) if rows else []
    reader = published_form(columns)
    if reader is None:
        known = "; ".join(", ".join(sorted(needed)) for needed, _ in FORMS)
        raise ConfigError(
            f"the columns {', '.join(columns) or '(none)'} are those of no known validation set", where=str(path),
            fix=f"a JSONL file of items (pipeline_lib/validation/README.md), or a table with the columns of one: {known}",
        )  # fmt: skip
    return items_from(reader, rows, path)


def items_from(reader: Callable[[str, Rows, Path], Iterator[Item]], rows: Rows, path: Path) -> list[Item]:
    """The items of a file; a record without the fields of its form is named with its line.

    Raises:
        ConfigError: a field is missing or has another type.
    """
    found: list[Item] = []
    for number, row in [(0, None)] if reader is winogender else rows:
        try:
            made = reader(path.stem, rows if row is None else [(number, row)], path)
            found += [replace(item, source=f"{path.name}:{number}") for item in made]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"record is not of the form {reader.__name__}: {error!r}", where=f"{path}:{number}") from None
    return found


def _table(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from zip(itertools.count(1), csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","), strict=False)
