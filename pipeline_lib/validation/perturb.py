"""Perturbations of a prompt that leave its meaning: a model that knows the answer gives it all the same.

Words of the options, the entities and numbers are protected: a perturbation that destroys the answer measures nothing. The order
of options needs no perturbation, because each is scored without the others in sight.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

WORD = re.compile(r"\w+")
TYPO_EVERY = 5  # one of so many words gets a typo, at least one
FILLER = ("The weather was mild that day. ", "As far as is known: ", "Here is something to think about. ", "By the way, ")


def typos(text: str, protected: frozenset[str], draw: np.random.Generator) -> str:
    """Two neighbouring letters inside a word change places."""
    words = [m for m in WORD.finditer(text) if len(m[0]) >= 4 and m[0].isalpha() and m[0].casefold() not in protected]
    hit = sorted(draw.permutation(len(words))[: max(1, len(words) // TYPO_EVERY)].tolist(), reverse=True)
    for index in hit:
        word = words[index]
        at = word.start() + 1 + int(draw.integers(len(word[0]) - 2))
        text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text


def case(text: str, protected: frozenset[str], draw: np.random.Generator) -> str:
    """Unprotected words in small letters, or every one in capitals."""
    change = str.lower if draw.integers(2) else str.upper
    return WORD.sub(lambda m: m[0] if m[0].casefold() in protected else change(m[0]), text)


def spacing(text: str, protected: frozenset[str], draw: np.random.Generator) -> str:
    """Some spaces are doubled."""
    return "".join(c + " " if c == " " and draw.random() < 0.5 else c for c in text)


def distractor(text: str, protected: frozenset[str], draw: np.random.Generator) -> str:
    """An unrelated beginning."""
    return FILLER[int(draw.integers(len(FILLER)))] + text


def truncated(text: str, protected: frozenset[str], draw: np.random.Generator) -> str:
    """The beginning of the prompt is cut off, up to the first protected word at most."""
    starts = [m.start() for m in WORD.finditer(text)]
    first = next((m.start() for m in WORD.finditer(text) if m[0].casefold() in protected or m[0].isdigit()), len(text))
    allowed = [start for start in starts[: len(starts) // 2 + 1] if start <= first]
    return text[allowed[-1] :] if allowed else text


PERTURBATIONS: dict[str, Callable[[str, frozenset[str], np.random.Generator], str]] = {
    "typos": typos, "case": case, "spacing": spacing, "distractor": distractor, "truncated": truncated,
}  # fmt: skip


def perturbed(items: Sequence[Mapping[str, Any]], name: str, seed: int) -> list[dict[str, Any]]:
    """The items whose prompt a perturbation changes, changed; the same for the same seed.

    Args:
        items: rows of `suite_items`.
        name: of the perturbation.
        seed: of the run.
    """
    made = []
    for item in items:
        protected = frozenset(
            word.casefold() for text in (*item["options"], *(item["entities"] or ())) for word in WORD.findall(text)
        )
        draw = np.random.default_rng([seed, len(item["prompt"]), *item["item"].encode()])
        prompt = PERTURBATIONS[name](item["prompt"], protected, draw)
        if prompt != item["prompt"]:
            made.append({**item, "prompt": prompt})
    return made
