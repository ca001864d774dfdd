"""Example of a suite: which number word comes next. The items are templates, so nothing of them can stand in training data."""

from __future__ import annotations

import random

import pyarrow as pa

from pipeline_lib.extensions import extend
from pipeline_lib.tables.schemas import SUITE_ITEMS

NUMBERS = (
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
)
ITEMS = 60


@extend.suite("counting")
def counting(seed: int) -> pa.Table:
    """`ITEMS` items in the form `choice`, four options each."""
    rng = random.Random(f"counting {seed}")  # noqa: S311 (not a secret)
    rows = []
    for number in range(ITEMS):
        step, length = rng.choice([-1, 1, 2]), rng.randint(3, 4)
        starts = [start for start in range(len(NUMBERS)) if 0 <= start + step * length < len(NUMBERS)]
        start = rng.choice(starts)
        shown = [NUMBERS[start + step * index] for index in range(length)]
        right = NUMBERS[start + step * length]
        options = [right, *rng.sample([word for word in NUMBERS if word not in {right, *shown}], 3)]
        rng.shuffle(options)
        rows.append({
            "suite": "counting", "item": f"{number:04d}", "form": "choice", "prompt": ", ".join(shown) + ",",
            "options": [f" {word}" for word in options], "answer": options.index(right), "text": "", "kind": "template",
            "entities": shown, "category": f"step {step:+d}",
        })  # fmt: skip
    return pa.Table.from_pylist(rows, SUITE_ITEMS)
