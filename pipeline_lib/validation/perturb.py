"""Perturbations of a prompt that leave its meaning: a model that knows the answer gives it all the same.

Words of the options, the entities and numbers are protected: a perturbation that destroys the answer measures nothing. So are
options that the prompt itself lists, whose order is a perturbation of its own; elsewhere order says nothing, because each option
is scored without the others in sight.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

WORD = re.compile(r"\w+")
TYPO_EVERY = 5  # one of so many words gets a typo, at least one
NAME = r"([A-Z][\w-]*(?: [A-Z][\w-]*)*|[a-z]+)"
PARAPHRASES = [(re.compile(pattern, re.MULTILINE), other) for pattern, other in (
    (rf"\b[Tt]he ((?:[a-z]+ ){{0,2}}[a-z]+) of {NAME} is$", r"\2's \1 is"),
    (r"^(.+) is a country in$", r"\1 is one of the countries of"), (r"^(.+) is an airport in$", r"\1 is one of the airports of"),
    (r"\blies in$", "is located in"), (r"\b(is|was) called$", r"\1 named"),
    (r"\babout$", "approximately"), (r"\bmeans$", "stands for"), (r"\bfell on$", "was on"),
    (r"^What (is|are|was|were) (.+)\?", r"Say what \2 \1."), (r"\bWho (.+)\?$", r"Who was it that \1?"),
    (r"^Q:", "Question:"), (r"^A:$", "Answer:"),
    (r"\b(larger|bigger) than\b", "greater than"), (r"\b(do|does|did|is|are|was|were|could|would|should) not\b", r"\1n't"),
    (r"\bcannot\b", "can't"), (r"\bin order to\b", "to"),
)]  # fmt: skip
LABEL = re.compile(r"[A-Za-z]|\d{1,2}")  # an option that only names what the prompt lists
BETWEEN = re.compile(r"[,;/]?\s+(?:or\s+)?|\s*\n\s*(?:[-*•]\s*|\w{1,2}[.):]\s*)?")  # two listed options
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
    """The beginning of the prompt is cut off, up to the first protected word at most, and within a line."""
    starts = [m.start() for m in WORD.finditer(text.partition("\n")[0])]  # a line of its own may be the whole question
    first = next((m.start() for m in WORD.finditer(text) if m[0].casefold() in protected or m[0].isdigit()), len(text))
    allowed = [start for start in starts[: len(starts) // 2 + 1] if start <= first]
    return text[allowed[-1] :] if allowed else text


def paraphrase(text: str, protected: frozenset[str], draw: np.random.Generator) -> str:
    """The same in other words, where one of `PARAPHRASES` fits and leaves every protected word."""
    for pattern, other in PARAPHRASES:
        said = pattern.sub(other, text)
        if _protected_words(said, protected) == _protected_words(text, protected):
            text = said
    return text


def _protected_words(text: str, protected: frozenset[str]) -> Counter[str]:
    return Counter(word for word in map(str.casefold, WORD.findall(text)) if word in protected or word.isdigit())


def listed(prompt: str, options: Sequence[str]) -> list[tuple[int, int]]:
    """Where in the prompt each option is listed, in the order of the options; empty when they are not.

    Options are listed as labelled entries (`A. Paris`, `(2) Rome`) when each option is such a label, else when all stand there
    once, with nothing but commas, "or" and line ends between them.
    """
    names = [option.strip().rstrip(".") for option in options]
    if len(set(names)) < len(names) or len(names) < 2:
        return []
    if all(LABEL.fullmatch(name) for name in names):
        end = rf"(?=[,;]?\s+\(?\b(?:{'|'.join(names)})[.):]\s|[ \t]*$)"
        found = [list(re.finditer(rf"\(?\b{name}[.):]\s+(\S.*?){end}", prompt, re.MULTILINE)) for name in names]
        return [one[0].span(1) for one in found] if all(len(one) == 1 for one in found) else []
    places = [list(re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", prompt)) for name in names]
    if any(len(one) != 1 for one in places):
        return []
    spans = [one[0].span() for one in places]
    gaps = (prompt[one[1] : other[0]] for one, other in itertools.pairwise(sorted(spans)))
    return spans if all(BETWEEN.fullmatch(gap) for gap in gaps) else []


def reordered(item: Mapping[str, Any], draw: np.random.Generator) -> dict[str, Any]:
    """The item with its listed options in another order, each in another place; one that lists none as it is.

    An option keeps its number and its meaning: where options are labels, it has the label of its new place.
    """
    prompt, options = item["prompt"], list(item["options"])
    spans = listed(prompt, options)
    if not spans:
        return dict(item)
    shift = 1 + int(draw.integers(len(spans) - 1))
    places = sorted(range(len(spans)), key=spans.__getitem__)
    moved = dict(zip(places, places[shift:] + places[:shift], strict=True))  # place of an option → the option that comes there
    for place in reversed(places):
        start, end = spans[place]
        begin, stop = spans[moved[place]]
        prompt = prompt[:start] + item["prompt"][begin:stop] + prompt[end:]
    if all(LABEL.fullmatch(option.strip().rstrip(".")) for option in options):
        options = [item["options"][place] for _, place in sorted((option, place) for place, option in moved.items())]
    return {**item, "prompt": prompt, "options": options}


PROMPTS: dict[str, Callable[[str, frozenset[str], np.random.Generator], str]] = {
    "typos": typos, "case": case, "spacing": spacing, "distractor": distractor, "truncated": truncated, "paraphrase": paraphrase,
}  # fmt: skip
ORDER = "option_order"
PERTURBATIONS = (*PROMPTS, ORDER)


def perturbed(items: Sequence[Mapping[str, Any]], name: str, seed: int) -> list[dict[str, Any]]:
    """The items whose prompt a perturbation changes, changed; the same for the same seed.

    Args:
        items: rows of `suite_items`.
        name: one of `PERTURBATIONS`.
        seed: of the run.
    """
    made = []
    for item in items:
        draw = np.random.default_rng([seed, len(item["prompt"]), *item["item"].encode()])
        words = _kept(item)
        changed = reordered(item, draw) if name == ORDER else {**item, "prompt": PROMPTS[name](item["prompt"], words, draw)}
        if changed["prompt"] != item["prompt"]:
            made.append(changed)
    return made


def _kept(item: Mapping[str, Any]) -> frozenset[str]:
    """The words that no perturbation may touch."""
    shown = [item["prompt"][begin:end] for begin, end in listed(item["prompt"], item["options"])]
    texts = (*item["options"], *(item["entities"] or ()), *shown)
    return frozenset(word.casefold() for text in texts for word in WORD.findall(text))
