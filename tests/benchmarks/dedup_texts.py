"""Texts made for the comparison with brute force: near-duplicates of every kind, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

VOCABULARY = 50_000


def vocabulary(rng: np.random.Generator) -> list[str]:
    """Distinct words of 2 to 12 letters."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    lengths = np.clip(rng.normal(6.5, 2.2, 3 * VOCABULARY).round(), 2, 12).astype(int)
    drawn = ("".join(letters[rng.integers(0, 26, length)]) for length in lengths)
    return list(dict.fromkeys(drawn))[:VOCABULARY]


def ranks(rng: np.random.Generator, shape: int | tuple[int, int]) -> np.ndarray:
    """Words by rank, as often as Zipf's law says: the chance of a rank is one over it."""
    return np.minimum(np.exp(rng.random(shape, dtype=np.float32) * np.log(VOCABULARY)), VOCABULARY - 1).astype(np.int32)


def planted(rng: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    """About `count` texts and the kind of each: edits, contained, boilerplate, ocr, short. No two are equal.

    The Jaccard similarities of a base text and its changed copy are spread evenly from 0.5 to 1 for `edits` and `contained`.
    """
    known = np.array(vocabulary(rng))

    def text(words: int) -> list[str]:
        found: list[str] = known[ranks(rng, words)].tolist()
        return found

    kinds: dict[str, tuple[float, Callable[[Callable[[int], list[str]], np.random.Generator], list[list[str]]]]] = {
        "edits": (0.45, _edits), "contained": (0.15, _contained), "boilerplate": (0.15, _boilerplate), "ocr": (0.15, _ocr),
        "short": (0.1, _short),
    }  # fmt: skip
    texts: dict[str, str] = {}
    for kind, (share, make) in kinds.items():
        target = len(texts) + int(share * count)
        while len(texts) < target:
            for words in make(text, rng):
                texts.setdefault(" ".join(words), kind)
    return list(texts), list(texts.values())


def _edits(text: Callable[[int], list[str]], rng: np.random.Generator) -> list[list[str]]:
    """A text and a copy with words replaced, dropped, added and swapped until the similarity is near its target."""
    base = text(int(rng.integers(80, 400)))
    similarity = rng.uniform(0.5, 1.0)
    lost = (len(base) - 4) * (1 - 2 * similarity / (1 + similarity))  # shingles that the two do not share
    copy = list(base)
    for place in np.sort(rng.choice(len(base) - 1, max(1, round(lost / 5)), replace=False))[::-1]:
        match int(rng.integers(4)):
            case 0:
                copy[place] = text(1)[0]
            case 1:
                del copy[place]
            case 2:
                copy.insert(place, text(1)[0])
            case 3:
                copy[place], copy[place + 1] = copy[place + 1], copy[place]
    return [base, copy]


def _contained(text: Callable[[int], list[str]], rng: np.random.Generator) -> list[list[str]]:
    """A text and the same with more behind it."""
    base = text(int(rng.integers(60, 300)))
    similarity = rng.uniform(0.5, 1.0)
    return [base, base + text(max(1, round(len(base) * (1 / similarity - 1))))]


def _boilerplate(text: Callable[[int], list[str]], rng: np.random.Generator) -> list[list[str]]:
    """Twenty different texts under one header, which is up to three quarters of each."""
    header, body = text(200), int(rng.integers(70, 200))
    return [header + text(body) for _ in range(20)]


def _ocr(text: Callable[[int], list[str]], rng: np.random.Generator) -> list[list[str]]:
    """A page and the same page read by a machine: letters confused, words torn apart or run together."""
    base = text(int(rng.integers(100, 400)))
    rate = rng.uniform(0.001, 0.03)  # of the words
    copy: list[str] = []
    for word in base:
        if rng.random() > rate:
            copy.append(word)
        elif rng.random() < 0.7:
            place = int(rng.integers(len(word)))
            copy.append(word[:place] + "il1o0ceubh"[int(rng.integers(10))] + word[place + 1 :])
        elif len(word) > 3:
            copy += [word[:2], word[2:]]
        else:
            copy.append(word + word)
    return [base, copy]


def _short(text: Callable[[int], list[str]], rng: np.random.Generator) -> list[list[str]]:
    """One to twelve words; the same with another case and signs; the same with another word at the end."""
    base = text(int(rng.integers(1, 13)))
    return [base, [base[0].upper(), *base[1:], "!"], base[:-1] + text(1)]
