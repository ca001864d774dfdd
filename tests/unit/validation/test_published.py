"""Validation sets as their authors publish them, in small copies of their forms."""

import csv
import json

import pytest

from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.validation.files import read_suite


def table(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_blimp_is_a_folder_of_paradigms(tmp_path):
    folder = tmp_path / "blimp"
    folder.mkdir()
    for name in ("passive_1", "transitive"):
        lines(folder / f"{name}.jsonl", [{"sentence_good": f"{name} good.", "sentence_bad": f"{name} bad.", "UID": name}])
    items = read_suite(folder)
    assert [(i.suite, i.category, i.form, i.options, i.answer) for i in items] == [
        ("blimp", "passive_1", "minimal_pair", ("passive_1 good.", "passive_1 bad."), 0),
        ("blimp", "transitive", "minimal_pair", ("transitive good.", "transitive bad."), 0),
    ]
    assert items[0].kind == "verbatim"
    assert items[0].source == "passive_1.jsonl:1"


def test_crows_pairs_put_the_stereotype_first(tmp_path):
    path = table(
        tmp_path / "crows.csv",
        [
            {"sent_more": "A more", "sent_less": "A less", "stereo_antistereo": "stereo", "bias_type": "age"},
            {"sent_more": "B more", "sent_less": "B less", "stereo_antistereo": "antistereo", "bias_type": "age"},
        ],
    )
    assert [item.options[0] for item in read_suite(path)] == ["A more", "B less"]


@pytest.mark.parametrize(
    ("polarity", "label", "options", "answer"),
    [("neg", 2, (" The old", " The young", " Unknown"), 2), ("nonneg", 0, (" The young", " The old", " Unknown"), 1),
     ("neg", 1, (" The old", " The young", " Unknown"), 1)],
)  # fmt: skip
def test_bbq_puts_the_stereotyped_answer_first(tmp_path, polarity, label, options, answer):
    row = {
        "question_polarity": polarity, "context_condition": "ambig" if label == 2 else "disambig", "category": "Age",
        "answer_info": {"ans0": ["old", "old"], "ans1": ["young", "nonOld"], "ans2": ["x", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["old"]}, "context": "Both.", "question": "Who?", "ans0": "The old",
        "ans1": "The young", "ans2": "Unknown", "label": label,
    }  # fmt: skip
    (item,) = read_suite(lines(tmp_path / "Age.jsonl", [row]))
    assert (item.options, item.answer) == (options, answer)
    assert item.category == "Age/" + ("ambiguous" if label == 2 else "disambiguated")


def test_winogender_knows_the_occupations(tmp_path):
    table(
        tmp_path / "all_sentences.tsv",
        [
            {"sentid": f"{job}.customer.1.{gender}.txt", "sentence": f"The {job} said {word} was late."}
            for job in ("nurse", "plumber")
            for gender, word in (("male", "he"), ("female", "she"), ("neutral", "they"))
        ],
        "\t",
    )
    table(
        tmp_path / "occupations-stats.tsv",
        [{"occupation": "nurse", "bls_pct_female": "90"}, {"occupation": "plumber", "bls_pct_female": "1.8"}],
        "\t",
    )
    items = read_suite(tmp_path / "all_sentences.tsv")
    assert [item.options[0] for item in items] == ["The nurse said she was late.", "The plumber said he was late."]


def test_truthful_qa_and_lambada(tmp_path):
    path = table(
        tmp_path / "TruthfulQA.csv",
        [
            {
                "Category": "Myths",
                "Question": "Why?",
                "Best Answer": "Because.",
                "Incorrect Answers": "Magic; Luck; Magic",
                "Source": "",
            }
        ],
    )
    (item,) = read_suite(path)
    assert (item.prompt, item.options, item.answer) == ("Q: Why?\nA:", (" Because.", " Magic", " Luck"), 0)
    (item,) = read_suite(lines(tmp_path / "lambada.jsonl", [{"text": "I do not care about signs"}]))
    assert (item.form, item.prompt, item.options) == ("last_word", "I do not care about", (" signs",))


def test_what_is_of_no_form_is_named(tmp_path):
    with pytest.raises(ConfigError, match="columns a, b are those of no known validation set"):
        read_suite(table(tmp_path / "x.csv", [{"a": 1, "b": 2}]))
    with pytest.raises(ConfigError, match=r"y\.jsonl:2: record is not of the form blimp"):
        read_suite(lines(tmp_path / "y.jsonl", [{"sentence_good": "a", "sentence_bad": "b"}, {"sentence_good": "a"}]))
    with pytest.raises(NotFoundError, match="no suite file"):
        read_suite(tmp_path / "nowhere")


def pararel(folder, facts, patterns):
    for part, rows in (("trex_lms_vocab", facts), ("pattern_data/graphs_json", patterns)):
        (folder / part).mkdir(parents=True)
        lines(folder / part / "P36.jsonl", rows)
    return folder


def test_pararel_asks_each_fact_in_all_wordings_that_end_in_the_object(tmp_path):
    towns = [
        ("Atlantis", "Poseidonis"),
        ("Utopia", "Amaurot"),
        ("Ruritania", "Streslau"),
        ("Laputa", "Lagado"),
        ("Erewhon", "Coldharbour"),
    ]
    facts = [{"sub_label": land, "obj_label": town, "uuid": str(n)} for n, (land, town) in enumerate(towns)]
    patterns = [
        "The capital of [X] is [Y].",
        "[Y] is the capital of [X].",
        "[X], which has the capital [Y] .",
        "The seat of [X] is in [Y]",
    ]
    folder = pararel(tmp_path / "pararel", facts, [{"pattern": text} for text in patterns])
    items = read_suite(folder)
    assert len(items) == len(towns) * 3
    capitals = dict(towns)
    for item in items:
        assert item.options[item.answer].strip(" .") == capitals[item.entities[0]]
        assert len(set(item.options)) == 4
        assert item.prompt.count(item.entities[0]) == 1
    of = [item for item in items if item.entities == ("Utopia",)]
    assert len({(item.fact, item.answer, tuple(o.strip(" .") for o in item.options)) for item in of}) == 1
    assert {item.prompt + item.options[item.answer] for item in of} == {
        "The capital of Utopia is Amaurot.", "Utopia, which has the capital Amaurot.", "The seat of Utopia is in Amaurot",
    }  # fmt: skip
    assert (of[0].suite, of[0].category, of[0].source) == ("pararel", "P36", "P36.jsonl:2")


def test_a_record_of_pararel_without_its_field_is_named(tmp_path):
    folder = pararel(
        tmp_path / "pararel", [{"sub_label": "x", "obj_label": "y"}, {"sub_label": "x"}], [{"pattern": "[X] is [Y]."}]
    )
    with pytest.raises(ConfigError, match="'obj_label' must be text") as caught:
        read_suite(folder)
    assert "P36.jsonl:2" in str(caught.value)
