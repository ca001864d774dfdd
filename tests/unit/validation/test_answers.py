"""Models with known behaviour: what they answer, how stable it is, and which way they lean."""

import itertools
import re
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest

from pipeline_lib.validation import people
from pipeline_lib.validation.answers import answer
from pipeline_lib.validation.bias import bias, holm
from pipeline_lib.validation.items import Item
from pipeline_lib.validation.perturb import ORDER, PROMPTS, perturbed
from pipeline_lib.validation.trees import Span


class Toy:
    """Scores texts by a rule: stands where a model stands."""

    context = 4

    def __init__(self, rule, says=None):
        self.rule, self.says, self.asked = rule, says, []

    def continuations(self, prompts, options):
        self.asked = list(zip(prompts, options, strict=True))
        return [Span(np.array([index], np.int64), 0) for index in range(len(options))]

    def log_probs(self, spans):
        asked = [self.asked[int(span.tokens[0])] for span in spans]
        return np.array([float(self.rule(*one)) for one in asked])

    def greedy(self, spans):
        return np.array([float(self.says(*self.asked[int(span.tokens[0])])) for span in spans])


def rows(items):
    return [asdict(item) for item in items]


CAPITALS = [
    Item("s", str(n), "choice", f"The capital of country {n} is", (f" Alpha{n}.", f" Beta{n}.", f" Gamma{n} on Sea."), n % 3, "c")
    for n in range(60)
]


def right(item):
    return item.prompt + item.options[item.answer]


def test_an_oracle_a_liar_a_constant_and_a_parrot():
    truth = {right(item) for item in CAPITALS}
    oracle, _ = answer(rows(CAPITALS), Toy(lambda p, o: 0 if p + o in truth else -50))
    assert set(oracle["score"].to_pylist()) == {1.0}
    assert min(oracle["probability"].to_pylist()) > 0.999
    liar, _ = answer(rows(CAPITALS), Toy(lambda p, o: -50 if p + o in truth else -1))
    assert set(liar["score"].to_pylist()) == {0.0}
    constant, _ = answer(rows(CAPITALS), Toy(lambda p, o: -1.0 * len(o.encode())))  # the same per byte for every option
    assert set(constant["score"].to_pylist()) == {0.0}, "a tie is not knowledge"
    assert set(constant["chosen"].to_pylist()) == {None}
    assert bias(answer(rows(people.preferences()), Toy(lambda p, o: -1.0))[0]) == [], "who prefers nobody has no bias"
    parrot, _ = answer(rows(CAPITALS), Toy(lambda p, o: -len(o)))  # likes short texts: nothing per byte
    assert set(parrot["score"].to_pylist()) == {0.0}


def test_the_form_says_what_decides():
    options = (" a", " a much longer option")
    total = {" a": -4.0, " a much longer option": -10.0}
    for form, chosen in (("minimal_pair", 0), ("choice", 1)):
        table, _ = answer(rows([Item("s", "1", form, "p", options, 0, "c")]), Toy(lambda p, o: total[o]))
        assert table["chosen"].to_pylist() == [chosen]
    common = {("", " a"): -1.0, ("", " a much longer option"): -9.9}
    table, _ = answer(rows([Item("s", "1", "surprise", "p", options, 0, "c")]), Toy(lambda p, o: common.get((p, o), total[o])))
    assert table["chosen"].to_pylist() == [1]  # −10 − (−9.9) > −4 − (−1)
    word = [Item("s", str(n), "last_word", "once upon a", (text,), 0, "c") for n, text in enumerate((" time", " mill"))]
    table, _ = answer(rows(word), Toy(lambda p, o: -1, lambda p, o: o == " time"))
    assert table["score"].to_pylist() == [1.0, 0.0]


def test_what_cannot_be_scored_is_handed_back():
    table, missing = answer(rows(CAPITALS[:3]), Toy(lambda p, o: np.nan if "country 1" in p else -1))
    assert [(item["item"], item["reason"]) for item in missing] == [("1", "the model gives no number")]
    assert table["item"].to_pylist() == ["0", "2"]


def test_perturbations_change_the_prompt_and_protect_what_matters():
    items = [
        Item("s", str(n), "choice", f"In the year 1987 the famous capital city of Ruritania number {n} was called",
             (" Streslau.", " Zenda."), 0, "c", entities=("Ruritania",))
        for n in range(20)
    ]  # fmt: skip
    for name in PROMPTS:
        changed = perturbed(rows(items), name, 0)
        assert len(changed) >= 18, name
        for item in changed:
            assert re.search("Ruritania", item["prompt"]), (name, item["prompt"])
            assert "1987" in item["prompt"]
            assert item["options"] == (" Streslau.", " Zenda.")
        assert perturbed(rows(items), name, 0) == changed
        assert perturbed(rows(items), name, 1) != changed or name in {"truncated", "paraphrase"}
    letters = [sorted(item["prompt"]) for item in perturbed(rows(items), "typos", 0)]
    assert letters == [sorted(item.prompt) for item in items]
    assert not perturbed(rows(items), ORDER, 0), "no option is in sight of the others"


@pytest.mark.parametrize(
    ("prompt", "options"),
    [
        ("Which of them lies in France?\nA. Paris\nB. New York\nC. Bern\nAnswer:", (" A", " B", " C")),
        ("Which of them lies in France? (1) Paris (2) New York, (3) Bern\nAnswer:", (" 1", " 2", " 3")),
        ("Which of them lies in France: Bern, Paris, or New York?", (" Paris.", " New York.", " Bern.")),
        ("Which of them lies in France?\n- Bern\n- New York\n- Paris\nIt is", (" Paris.", " New York.", " Bern.")),
    ],
)
def test_listed_options_change_places_and_keep_their_meaning(prompt: str, options: tuple[str, ...]) -> None:
    asked = rows([Item("s", "1", "choice", prompt, options, 0, "c")])
    cities = ("Paris", "New York", "Bern")
    found = {one["prompt"]: one for seed in range(8) for one in perturbed(asked, ORDER, seed)}
    assert len(found) == 2, "every option comes into each other place"
    for changed in found.values():
        assert changed["answer"] == 0
        before, after = ([text.find(city) for city in cities] for text in (prompt, changed["prompt"]))
        assert min(after) > 0
        places = [np.argsort(np.argsort(each)) for each in (before, after)]
        assert (places[0] != places[1]).all()
        if len(options[0]) == 2:  # the label of the right option is that before its text
            named = [changed["prompt"][: changed["prompt"].find(city)].rstrip(" .)")[-1] for city in cities]
            assert named == [option.strip() for option in changed["options"]]
        else:
            assert tuple(changed["options"]) == options
    for name in ("typos", "case", "paraphrase", "truncated"):
        assert all(city in one["prompt"] for one in perturbed(asked, name, 0) for city in cities), name
    reader = Toy(lambda p, o: 0.0 if o == options[0] else -9.0)  # goes by the place, or by the name, of the answer
    kept = [answer([one], reader)[0]["chosen"][0].as_py() == 0 for one in found.values()]
    assert kept == [len(options[0]) > 2] * 2, (
        "a model that goes by the label changes its answer, one that goes by the text does not"
    )


def test_sentences_about_people_are_no_list_of_options() -> None:
    prompt = "The young man and the old man met on Monday. Who was late?"
    assert not perturbed(rows([Item("s", "1", "people", prompt, (" The old man", " The young man"), 0, "c")]), ORDER, 0)


def test_a_fair_and_a_biased_model():
    pairs = rows(people.preferences())
    biased, _ = answer(pairs, Toy(lambda p, o: -1.0 if o in {item["options"][0] for item in pairs} else -3.0))
    found = bias(biased)
    assert {row["value"] for row in found} == {1.0}
    assert all(row["significant"] for row in found)
    draw = np.random.default_rng(1)
    fair = bias(answer(pairs, Toy(lambda p, o: draw.normal()))[0])
    assert not any(row["significant"] for row in fair)
    assert all(row["low"] < 0.5 < row["high"] for row in fair)


def test_what_is_said_of_one_occupation_is_no_independent_evidence():
    """A coin for each occupation, the same in all its sayings, is no bias: it passes for one as rarely as the level says."""
    asked, _ = answer(rows(people.pronouns()), Toy(lambda p, o: 0.0 if " she " in o else -1.0))
    place = asked.column_names.index("chosen")
    draw, facts, alarms = np.random.default_rng(0), asked["fact"].to_pylist(), 0
    for _ in range(150):
        coin = {fact: int(draw.integers(2)) for fact in facts}
        table = asked.set_column(place, "chosen", pa.array([coin[fact] for fact in facts], pa.int64()))
        alarms += any(row["significant"] for row in bias(table))
    assert alarms <= 15, "5 % of 150, and three standard errors"


def test_who_says_unknown_is_not_biased():
    asked = rows(people.questions())
    careful, _ = answer(asked, Toy(lambda p, o: 0 if o == people.UNKNOWN else -9 * len(o)))
    assert bias(careful) == []  # nobody was named
    first = {(item["prompt"], item["options"][0]) for item in asked}
    leaning = bias(answer(asked, Toy(lambda p, o: -1 if (p, o) in first else -99))[0])
    assert {row["value"] for row in leaning} == {1.0}
    assert len(leaning) == 2 * len({item["category"].partition("/")[0] for item in asked})


def test_holm_is_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert max(holm([0.5, 0.9, 0.8])) == 1.0


def test_items_about_people_come_in_both_directions():
    asked = list(people.questions())
    answers = [item.answer for item in asked]
    assert answers.count(0) == answers.count(1) == answers.count(2)
    firsts = [item.prompt.startswith(f"The {item.entities[0]} and") for item in asked]
    assert 0.4 < np.mean(firsts) < 0.6
    options = [set(item.options) for item in itertools.chain(people.preferences(), people.pronouns())]
    assert all(len(pair) == 2 for pair in options)


def test_the_chosen_option_is_the_likeliest_whatever_its_length():
    options = (" no", " a very much longer option that is likelier byte by byte")
    table, _ = answer(rows([Item("s", "1", "choice", "p", options, 0, "c")]), Toy(lambda p, o: -3.0 if o == " no" else -20.0))
    assert table["chosen"].to_pylist() == [1]
    assert table["confidence"].to_pylist()[0] > 0.5 > table["probability"].to_pylist()[0]
