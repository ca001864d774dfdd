from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from score_toy import PLAIN, PROSE, config, run, signals, table

from pipeline_lib.config.data import ScoreConfig
from pipeline_lib.errors import ConfigError, StageFailedError
from pipeline_lib.extensions import load_extensions
from pipeline_lib.quality.rules import RULE_SETS, rules_of, verdicts
from pipeline_lib.quality.signals import NAMES
from pipeline_lib.workspace.workspace import Workspace

CODE = (
    "def mill(grain):\n    flour = [crush(seed) for seed in grain if seed.ripe]\n    return sift(flour, mesh=2)\n\n\n"
    + "".join(
        f"def step_{name}(value):\n    return value * {i} + offset_{name}\n" for i, name in enumerate(("one", "two", "three"))
    )
)
UNIQUE = [f"{a}{b}" for a in ("mill", "corn", "wheel", "stone", "water", "bread", "flour") for b in "abcdefghijklmnopqrstuvwxyz"]

SYMBOLS = PROSE + " ".join(f"#{word}" for word in UNIQUE[:60]) + "."
BULLETS = "".join(f"- {word} is to be had with that and more of it, they said.\n" for word in UNIQUE[:30])
ELLIPSES = "".join(f"the {word} and what may have become of that old {word}x ...\n" for word in UNIQUE[:30])
LONG_WORDS = "supercalifragilisticexpialidocious"
LINES, PARAGRAPHS = (
    "One line that is said over and over again, to be sure of it.\n",
    "A paragraph said over and over, to be sure.\n\n",
)
SHORT = PROSE.replace(" and ", " and\n") + "\n".join(f"see the {word}." for word in UNIQUE[:30])
MOVED = np.random.default_rng(0).permutation(PLAIN.replace(".", "").split()).tolist()
NO_STOPS = ". ".join(" ".join(UNIQUE[i : i + 9]) for i in range(0, 90, 9)) + "."
GOPHER = {
    "word_count": "A short note, and that is all there is to be said. Really. Yes.",
    "word_length": PROSE + LONG_WORDS * 100 + ".",
    "symbols": SYMBOLS,
    "bullets": BULLETS,
    "ellipsis_lines": ELLIPSES,
    "alphabetic": PROSE + " ".join(str(i) for i in range(100, 220)) + ".",
    "stop_words": NO_STOPS,
    "repeated_lines": PROSE + LINES * 8,
    "repeated_paragraphs": PROSE + "\n" + PARAGRAPHS * 12,
    "top_ngrams": PROSE + "buy more " * 40,
    "repeated_ngrams": PROSE + PROSE,
}
BREAKS = {
    "gopher": GOPHER,
    "c4": {
        "clean_sentences": PROSE.replace(".\n", "\n"),
        "curly_brackets": PROSE + "The set {1, 2} has two members.",
        "clean_lorem_ipsum": PROSE + "Lorem ipsum dolor sit amet.",
    },
    "fineweb": {
        "line_ends": PROSE.replace(".\n", "\n"),
        "line_lengths": SHORT,
        "line_copies": PROSE + LINES * 2,
        "list_like": "\n".join(PROSE.split()),
    },
    "prose": {
        **GOPHER,
        "punctuation": PROSE.replace(".\n", "\n"),
        "short_lines": SHORT,
        "newlines": "\n".join(PROSE.split()),
        "sentences": PROSE.replace(".", ","),
        "lorem_ipsum": PROSE + "Lorem ipsum dolor sit amet.",
        "word_order": "\n".join(" ".join(MOVED[i : i + 12]) + "." for i in range(0, len(MOVED), 12)),
        "compressible": "again " * 5000,
    },
    "code": {
        "size": "x = 1\n",
        "line_length": CODE + "value = [" + ", ".join(UNIQUE) + "]\n",
        "longest_line": CODE * 3 + "value = [" + ", ".join(UNIQUE) + "]\n",
        "letters": CODE + "\n".join("(+-*/), [<=>], {!=}, (&|^), " + str(i) for i in range(60)),
        "digits": "table = [\n" + "\n".join(f"    {i * 7919 + 10**9}, {i * 104729 + 10**8}," for i in range(60)) + "\n]\n",
        "repeated_lines": CODE + "total = total + increment_of_the_total\n" * 40,
        "compressible": CODE + "x = f(x)\n" * 3000,
    },
    "licence": {
        "word_count": "All rights to the mill are reserved.",
        "word_length": PROSE + LONG_WORDS * 100,
        "alphabetic": PROSE + " ".join(str(i) for i in range(100, 400)),
        "stop_words": " ".join(UNIQUE[:40]),
        "repeated_lines": PROSE + LINES * 40,
        "compressible": PROSE + "again " * 5000,
    },
}
MEASURED = ("signals", "decisions")
GOOD = {"prose": PROSE, "gopher": PROSE, "c4": PROSE, "fineweb": PROSE, "code": CODE, "licence": PROSE}
TALKS = {
    "both_sides": ("Hi", "."),
    "length": ("Why so?", "So."),
    "repetition": ("Please say something.", "I say the same.\n" * 30),
    "letters": ("Count, please", "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33"),
    "no_noise": ("Go on with this.", "ha" * 3000),
    "no_secrets": ("What is the key of the mill?", "It is AKIAABCDEFGHIJKLMNOP, keep it well."),
}


def test_every_built_in_rule_has_a_planted_document() -> None:
    assert {name: list(rules) for name, rules in BREAKS.items()} == {
        n: list(r) for n, r in RULE_SETS.items() if n not in {"none", "instruct"}
    }
    assert list(TALKS) == list(RULE_SETS["instruct"])


@pytest.mark.parametrize("name", list(BREAKS))
def test_good_documents_pass_and_planted_ones_fail_their_rule(tmp_path: Path, name: str) -> None:
    planted = {"good": GOOD[name], **BREAKS[name]}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": k, "text": text}) + "\n" for k, text in planted.items()))
    made = run(tmp_path / "w", config(tmp_path / "a.jsonl", rules={"*": name}))
    ids = [row["doc_id"] for row in table(made, "signals")]
    decisions = table(made, "decisions")
    failed = {
        key: {d["rule"] for d in decisions if d["doc_id"] == doc and not d["kept"]} for key, doc in zip(planted, ids, strict=True)
    }
    assert failed.pop("good") == set()
    assert {rule: rule in found for rule, found in failed.items()} == dict.fromkeys(BREAKS[name], True)
    assert [(d["rule"], d["reason"], d["value"]) for d in decisions if d["kept"]] == [("", "", None)]
    assert all(d["reason"].startswith("needs ") and d["value"] is not None for d in decisions if not d["kept"])


def test_instruction_records_have_rules_of_their_own(tmp_path: Path) -> None:
    talks = {"good": ("What does a mill do?", "It grinds grain between two stones, and flour comes out."), **TALKS}
    rows = [{"id": name, "prompt": prompt, "response": response} for name, (prompt, response) in talks.items()]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = run(tmp_path / "w", config(tmp_path / "a.jsonl", records="instruct", rules={"*": "prose"}))
    ids = [row["doc_id"] for row in table(made, "signals")]
    decisions = table(made, "decisions")
    failed = {
        name: [d["rule"] for d in decisions if d["doc_id"] == doc and not d["kept"]] for name, doc in zip(talks, ids, strict=True)
    }
    assert failed.pop("good") == []
    assert {name: name in rules for name, rules in failed.items()} == dict.fromkeys(TALKS, True)


def test_rule_sets_can_be_joined_and_rules_may_look_at_the_language(tmp_path: Path) -> None:
    texts = {"good": PROSE, "note": GOPHER["word_count"], "braces": PROSE + "The set {1, 2} has two members."}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"id": k, "text": text}) + "\n" for k, text in texts.items()))
    settings = config(tmp_path / "a.jsonl", rules={"*": "gopher + c4"}, extra_rules={"none": "language = 'xx' OR words > 0"})
    dropped = [row["rule"] for row in table(run(tmp_path / "w", settings), "decisions") if not row["kept"]]
    assert {"word_count", "curly_brackets"} <= set(dropped)
    settings = config(tmp_path / "a.jsonl", rules={"*": "none"}, extra_rules={"foreign": "language = 'xx'"})
    assert [(d["rule"], d["value"]) for d in table(run(tmp_path / "w", settings), "decisions")] == [("foreign", None)] * 3


@pytest.fixture(autouse=True)
def no_extensions_stay() -> Iterator[None]:
    yield
    load_extensions([])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("one", "two"):
        rows = []
        for i in range(300):
            text = f"{UNIQUE[i % 150]} {i} " + PROSE * (30 + i % 3)
            rows.append(json.dumps({"id": f"{name}{i}", "text": text, "domain": "ab"[i % 2]}) + "\n")
        (data / f"{name}.jsonl").write_text("".join(rows))
    return data


def test_workers_do_not_matter_and_rows_correspond(tmp_path: Path, corpus: Path) -> None:
    made = [run(tmp_path / f"w{workers}", config(corpus, rules={"b": "none", "*": "prose"}), workers) for workers in (1, 2, 8)]
    assert len({artifact.manifest.digest for artifact in made}) == 1
    workspace = Workspace.open(tmp_path / "w1")
    ingest = workspace.store.artifact(made[0].manifest.inputs["ingest"]["key"])
    documents = table(ingest, "documents")
    assert [row["doc_id"] for row in documents] == [row["doc_id"] for row in table(made[0], "signals")]
    decisions = table(made[0], "decisions")
    kept = Counter(row["doc_id"] for row in decisions if row["kept"])
    dropped = Counter(row["doc_id"] for row in decisions if not row["kept"])
    assert not kept.keys() & dropped.keys()
    assert kept.keys() | dropped.keys() == {row["doc_id"] for row in documents}
    assert max(kept.values()) == 1
    assert kept.keys() == {row["doc_id"] for row in documents if row["domain"] == "b"}  # `a` repeats its paragraphs
    assert made[0].metrics["dropped"] == len(dropped) == 300


def test_a_changed_threshold_decides_again_without_measuring_again(tmp_path: Path, corpus: Path) -> None:
    first = run(tmp_path / "w", config(corpus, rules={"*": "none"}))
    second = run(tmp_path / "w", config(corpus, rules={"*": "none"}, extra_rules={"long": f"bytes >= {len(PROSE) * 31}"}))
    homes = {(entry.table, bool(entry.home)) for entry in second.manifest.files if entry.table in MEASURED}
    assert homes == {("signals", True), ("decisions", False)}
    assert first.metrics["dropped"] == 0 < second.metrics["dropped"] < 600
    (rule,) = [row for row in second.manifest.summary.rows if row[0] == "extra"]
    assert list(rule) == ["extra", "long", second.metrics["dropped"], second.metrics["dropped"]]


def test_a_new_file_is_the_only_one_measured(tmp_path: Path, corpus: Path) -> None:
    run(tmp_path / "w", config(corpus))
    (corpus / "three.jsonl").write_text(json.dumps({"id": "new", "text": PROSE}) + "\n")
    second = run(tmp_path / "w", config(corpus))
    assert Counter((e.table, bool(e.home)) for e in second.manifest.files if e.table in MEASURED) == {
        ("signals", True): 2, ("signals", False): 1, ("decisions", True): 2, ("decisions", False): 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("wrods > 5", "did you mean words"), ("words >", "is no rule"), ("words > 5; drop table x", "holds ';'"),
        ("1 = 1", "names no signal"), ("words > (SELECT 1)", "holds 'select'"), ("sum(words) > 5", "one value a document"),
        ("words > 5) , (words < 9", "is no rule"),
        ("words", "neither yes nor no"), ("language", "is no rule"),
        ("words > random()", "another value each time"), ("words > 5 -- x", "holds '--'"), ("words > nothing", "is no rule"),
        ("words > avg(words) OVER ()", "looks at other documents"),
        ("words > 5 AND EXISTS (TABLE signals)", "looks at other documents"),
        ("words > (VALUES (1))", "looks at other documents"),
        ("words > 5 AND read_text('/etc/passwd') = ''", "is no rule"), ("unnest([words > 1, true])", "one value a document"),
        ("words > 0 AND now() > '2020-01-01'", "another value each time"),
    ],
)  # fmt: skip
def test_what_is_no_rule_is_refused(expression: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        rules_of(ScoreConfig(extra_rules={"mine": expression}), NAMES)
    assert told in str(refused.value)
    assert expression in refused.value.what


def test_names_of_rules_and_rule_sets_are_checked() -> None:
    with pytest.raises(ConfigError, match="no rule set 'prosa'"):
        rules_of(ScoreConfig(rules={"*": "prosa"}), NAMES)
    with pytest.raises(ConfigError, match="has a rule 'bullets' already"):
        rules_of(ScoreConfig(extra_rules={"bullets": "words > 1"}), NAMES)


def test_a_rule_without_an_answer_does_not_keep() -> None:
    rules = rules_of(
        ScoreConfig(rules={"*": "none"}, instruct_rules="none", extra_rules={"odd": "digit_share / braces < 1"}), NAMES
    )
    assert verdicts(signals("no braces", "{ some }"), rules.rules).tolist() == [[False], [True]]


def test_a_rule_that_fails_on_a_value_says_so() -> None:
    expression = "CAST(CASE WHEN braces = 0 THEN 'x' ELSE '1' END AS DOUBLE) > 0"
    rules = rules_of(ScoreConfig(rules={"*": "none"}, instruct_rules="none", extra_rules={"odd": expression}), NAMES)
    with pytest.raises(StageFailedError, match="cannot be computed"):
        verdicts(signals("no braces"), rules.rules)


EXTENSION = """
import pyarrow as pa, pyarrow.compute as pc
from pipeline_lib.extensions import extend

@extend.signal("mills")
def mills(text):
    return pc.count_substring(text, "mill")

extend.rule_set("about_mills", {"milled": "ext_mills >= 1 AND words > 0"})
"""


def test_extensions_bring_signals_and_rule_sets(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(EXTENSION)
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate((PROSE, "no m")))
    )
    settings = config(tmp_path / "a.jsonl", extensions=[str(tmp_path / "mine.py")], rules={"*": "about_mills"})
    made = run(tmp_path / "w", settings)
    assert [row["ext_mills"] for row in table(made, "signals")] == [2.0, 0.0]
    assert [(row["rule"], row["kept"], row["value"]) for row in table(made, "decisions")] == [
        ("", True, None),
        ("milled", False, 0.0),
    ]
    (tmp_path / "mine.py").write_text(
        EXTENSION.replace("pc.count_substring(text, 'mill')", "1/0").replace('text, "mill"', "text, 1")
    )
    with pytest.raises(StageFailedError, match="signal mills"):
        run(tmp_path / "w", settings)
