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
