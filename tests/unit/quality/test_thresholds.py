"""Two documents at every threshold of the built-in rules: one that the rule keeps, and its neighbour that the rule drops."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from score_toy import PLAIN, reference, signals

from pipeline_lib.config.data import ScoreConfig
from pipeline_lib.quality.rules import RULE_SETS, rules_of, verdicts
from pipeline_lib.quality.signals import NAMES

Turns = list[dict[str, object]]
UNIQUE = [f"{a}{b}{c}" for a in ("mill", "corn", "wheel", "stone", "bread") for b in "abcdefghi" for c in "jklmnopqrst"]
LONG = [f"{' '.join(UNIQUE[i : i + 6])} and so on" for i in range(0, 480, 4)]  # lines of about 45 characters, none twice
SHORT = [f"the {word}" for word in UNIQUE]
CLAUSE = re.compile(r"(\w+) (?:(<=|>=|=) ([\d.]+)|BETWEEN ([\d.]+) AND ([\d.]+))")
NOISE = "".join(chr(0x4E00 + int(i)) for i in np.random.default_rng(0).permutation(20_000))  # no character twice


def clauses() -> list[tuple[str, str, str, str, float]]:
    """Rule set, rule, signal, operator and threshold of all that the rule sets say."""
    found = []
    for name, rules in RULE_SETS.items():
        for rule, expression in rules.items():
            told = CLAUSE.findall(expression)
            assert " AND ".join(found[0] for found in CLAUSE.finditer(expression)) == expression  # nothing else is said
            for signal, sign, limit, low, high in told:
                pairs = [(sign, limit)] if sign else [(">=", low), ("<=", high)]
                found += [(name, rule, signal, one, float(value)) for one, value in pairs]
    return found


def repeats(size: int) -> list[str]:
    """A phrase of some words, again and again between words that come once."""
    phrase = " ".join(("buy", "more", "now", "here", "and", "again", "today", "cheap", "goods", "indeed")[:size])
    return [" ".join([*(f"{word} {phrase}" for word in UNIQUE[:n]), *UNIQUE[n : 120 + 12 * size]]) for n in range(1, 60)]


def counted(plain: str, more: str, *, of: int = 100) -> list[str]:
    return [" ".join([*[f"{plain}{word}" for word in UNIQUE[:of]], *[more] * n]) for n in range(6 * of)]


def lines(is_marked: Callable[[str], str], plain: Callable[[str], str] = str) -> list[str]:
    """A hundred lines, of which ever more are marked."""
    return ["\n".join([*map(is_marked, LONG[:n]), *map(plain, LONG[n:100])]) for n in range(101)]


def copies(others: Sequence[str], copy: str, between: str = "\n", most: int = 60) -> list[str]:
    return [between.join([*others, *[copy] * n]) for n in range(1, most)]


def ever_less_order(text: str) -> list[str]:
    """The same words, of which ever more are moved."""
    words = text.split()
    draws = [np.random.default_rng(seed) for seed in range(4)]
    return [" ".join([*draw.permutation(words[:n]), *words[n:]]) for draw in draws for n in range(0, len(words), 2)]


SIZES = [n + by for n in (16, 100, 1000, 200_000, 1_000_000) for by in (-2, -1, 0, 1, 2)]
PLANTED: dict[str, list[str]] = {
    "words": ["mill " * (n + by) for n in (20, 50, 50_000, 100_000) for by in (-1, 0, 1)],
    "mean_word_length": [" ".join(["ab"] * 40 + ["abcd"] * n) for n in range(200)]
    + [" ".join(["abcdefgh"] * 100 + ["abcdefghij" * 2] * n) for n in range(60)],
    "hash_per_word": counted("", "#", of=60),
    "ellipsis_per_word": counted("", "...", of=60),
    "bullet_line_share": lines(lambda line: f"- {line}"),
    "ellipsis_line_share": lines(lambda line: f"{line}..."),
    "alpha_word_share": counted("", "12"),
    "stop_words": [" ".join(("the", "be", "to", "of")[:n]) + " mill" for n in range(5)],
    "duplicate_line_share": copies(LONG[:40], "so"),
    "duplicate_line_char_share": [  # between other lines, so that no 10-gram repeats
        "\n".join([*(f"{line}\n{LONG[0]}" for line in UNIQUE[:n]), *UNIQUE[n:120]]) for n in range(1, 120)
    ] + copies(SHORT[:120], LONG[0]),
    "duplicate_text_line_char_share": copies(LONG, "so it goes"),
    "duplicate_paragraph_share": copies(LONG[:40], "so", "\n\n"),
    "duplicate_paragraph_char_share": copies(SHORT[:180], LONG[0], "\n\n"),
    **{f"top_{n}gram_char_share": repeats(n) for n in (2, 3, 4)},
    **{f"duplicate_{n}gram_char_share": repeats(n) for n in range(5, 11)},
    "clean_sentences": ["\n".join(f"{line}." for line in LONG[:n]) for n in range(1, 8)],
    "clean_brace_lines": ["\n".join(["so it goes on.", *["so {it} goes on."] * n]) for n in range(3)],
    "clean_lorem_ipsum": ["\n".join(["so it goes on.", *["lorem ipsum goes on."] * n]) for n in range(3)],
    "terminal_line_share": lines(lambda line: f"{line}."),
    "short_line_share": lines(lambda line: line[:20]),
    "newlines_per_word": ["\n".join([*UNIQUE[:n], " ".join(UNIQUE[n:100])]) for n in range(100)],
    "sentences": [" ".join(f"{line}." for line in LONG[:n]) for n in range(1, 6)],
    "likeness": ever_less_order(PLAIN),
    "compression_ratio": [NOISE[:100] + "again" * n for n in range(0, 4000, 5)] + [NOISE[:n] for n in range(1, 40)]
    + ["abcdefghijkl"[:n] for n in range(1, 12)] + [NOISE[:2000] + NOISE[:n] for n in range(40)],
    "bytes": ["x" * n for n in SIZES],
    "mean_line_length": ["x" * n for n in SIZES],
    "max_line_length": ["x" * n for n in SIZES],
    "letter_share": ["a" * n + "+" * 100 for n in range(1, 100)],
    "digit_share": ["1" * n + "a" * 100 for n in range(1, 100)],
    "keys": ["It is here. " + "AKIAABCDEFGHIJKLMNOP " * n for n in range(3)],
}  # fmt: skip
SAID = {  # prompts and responses
    "turns": [("Say it.", None), ("Say it.", "So.")],
    "prompt_bytes": [("Why", "So."), ("Why?", "So.")],
    "response_bytes": [("Why?", ""), ("Why?", "S")],
}


def conversation(prompt: str, response: str | None) -> tuple[str, Turns]:
    turns: Turns = [{"role": "user", "start": 0, "end": len(prompt)}]
    if response is None:
        return prompt, turns
    start = len(prompt) + 2
    return f"{prompt}\n\n{response}", [*turns, {"role": "assistant", "start": start, "end": start + len(response)}]


def test_every_signal_of_a_rule_has_planted_documents() -> None:
    assert {signal for _, _, signal, _, _ in clauses()} == PLANTED.keys() | SAID.keys()


@pytest.mark.parametrize(("rule_set", "rule", "signal", "sign", "limit"), clauses())
def test_a_rule_divides_neighbours(rule_set: str, rule: str, signal: str, sign: str, limit: float) -> None:
    if signal in SAID:
        made = [conversation(*pair) for pair in SAID[signal]]
        texts, table = [text for text, _ in made], signals(*(text for text, _ in made), turns=[turns for _, turns in made])
    else:
        texts = PLANTED[signal]
        table = signals(*texts)
    expression = RULE_SETS[rule_set][rule]
    config = ScoreConfig(rules={"*": "none"}, instruct_rules="none", extra_rules={"this": expression})
    kept = verdicts(table, rules_of(config, NAMES).rules)[:, 0]
    values = table.column(signal).to_numpy().astype(float)
    good = {"<=": values <= limit, ">=": values >= limit, "=": values == limit}[sign]
    assert not (kept & ~good).any()
    assert kept.any()
    assert (~good).any()
    nearest = {
        side: min(np.flatnonzero(which), key=lambda i: abs(values[i] - limit)) for side, which in (("k", kept), ("d", ~good))
    }
    gap = abs(values[nearest["k"]] - values[nearest["d"]])
    assert gap <= (1 if table.schema.field(signal).type == "int64" else max(0.025, 0.05 * limit))
    for place in nearest.values():
        if len(texts[place]) < 20_000:
            assert reference(texts[place]).get(signal, values[place]) == pytest.approx(values[place])
