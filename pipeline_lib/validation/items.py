"""A validation item: its form, what decides between its options, and items as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

import pyarrow as pa

from pipeline_lib.tables.schemas import SUITE_ITEMS


@dataclass(frozen=True)
class Form:
    """How a form of item is scored: what decides between its options, and whether one of them is right.

    `by` is "sum" (log-probability of the option), "byte" (per byte of the option, so that length does not decide), "prior"
    (log-probability after the prompt minus that without it: pointwise mutual information, Holtzman et al. 2021) or "greedy"
    (whether the option is what the model itself would say). `wordings`: items of one fact ask the same in other words.
    """

    by: Literal["sum", "byte", "prior", "greedy"]
    judged: bool = True
    wordings: bool = True
    options: int = 2  # at least


FORMS: dict[str, Form] = {
    "minimal_pair": Form("sum"),  # two full sentences that differ in little
    "choice": Form("byte"),
    "cloze": Form("byte"),  # like choice; its prompt is a verbatim text with its end cut off
    "surprise": Form("prior"),  # for options that differ in how common they are
    "last_word": Form("greedy", options=1),
    "people": Form("byte", wordings=False, options=3),  # stereotyped answer, other person, unknown: in this order (BBQ)
    "preference": Form("sum", judged=False),  # stereotyped sentence, the other: neither is right
}


@dataclass(frozen=True)
class Item:
    """One validation item.

    The model is asked which of `options` is likeliest after `prompt`, as FORMS says of its `form`. Items with one `fact` are
    related, and resampled together. They ask the same in other words, with the same options in the same order, and tell a wrong
    but stable answer from an unstable one; of forms without `wordings` they only speak of the same people.
    """

    suite: str
    item: str
    form: str
    prompt: str
    options: Sequence[str]
    answer: int
    category: str
    text: str = ""
    kind: str = "template"
    entities: Sequence[str] = field(default_factory=tuple)
    fact: str = ""
    region: str = ""
    source: str = ""


def items_table(items: Iterable[Item]) -> pa.Table:
    """Items as a table with schema SUITE_ITEMS, in (suite, item) order."""
    rows = sorted((asdict(item) for item in items), key=lambda row: (row["suite"], row["item"]))
    return pa.Table.from_pylist(rows, schema=SUITE_ITEMS)
