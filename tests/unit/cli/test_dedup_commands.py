"""`millrace dedup`: the evidence about duplicates, as a person and as a program see it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from flows.cli.main import make_app
from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.dedup.look import differences
from pipeline_lib.run import run_plain
from pipeline_lib.workspace.workspace import Workspace

WORDS = [f"w{number}" for number in range(200)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to dedup: two near-duplicates (one with a terminal escape and an address), a pair below the threshold, others."""
    folder = tmp_path_factory.mktemp("dedup")
    rng = np.random.default_rng(0)
    near = [*WORDS[:100], "\u202eturned", "mail", "someone@example.org", *WORDS[100:]]
    apart = [f"x{place}" if place % 18 == 9 else word for place, word in enumerate(WORDS)]  # 11 of 200 words: Jaccard .56
    texts = [WORDS, near, apart, *([f"v{n}" for n in rng.integers(0, 5000, 80)] for _ in range(5))]
    lines = [json.dumps({"id": str(number), "text": " ".join(text)}) for number, text in enumerate(texts)]
    (folder / "texts.jsonl").write_text("\n".join(lines), "utf-8")
    source = {"name": "texts", "kind": "files", "path": str(folder / "texts.jsonl"), "id_column": "id"}
    sections = {"ingest": {"sources": [source]}, "suites": {"names": ["zen"]}, "dedup": {"bands": 32, "rows": 3}}
    run_plain(Workspace.open(folder / "ws"), PipelineConfig.model_validate(sections), until="dedup")
    return folder / "ws"


def millrace(home: Path, *arguments: str) -> Result:
    return CliRunner().invoke(make_app(), ["--home", str(home), "dedup", *arguments])


def read(home: Path, *arguments: str) -> dict:
    done = millrace(home, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_a_cluster_is_shown_with_what_differs(home: Path) -> None:
    cluster = read(home, "rethreshold", "0.99")["kept"]
    assert len(cluster) == 1
    found = read(home, "show", cluster[0])
    survivor, removed = found["members"]
    assert (survivor["survivor"], removed["survivor"], removed["doc_id"]) == (True, False, cluster[0])
    assert removed["beside"] == survivor["doc_id"]
    assert 0.8 < removed["jaccard"] < 1
    words = {kind: text for kind, text in removed["differences"] if kind != "same"}
    assert "turned" in words.get("new", "") + words.get("gone", "")
    assert "left out" in words
    assert "someone@example.org" not in json.dumps(found)
    assert read(home, "show") == [{"cluster_id": found["cluster_id"], "documents": 2, "survivors": 1}]
    shown = millrace(home, "show", found["cluster_id"][:10].upper())
    assert shown.exit_code == 0
    assert "\\u202eturned" in shown.output
    assert "\u202e" not in shown.output
    assert ("{+" in shown.output) != ("[-" in shown.output)  # three words were added, or are gone, as it is told
    assert "near duplicate of" in shown.output


def test_pairs_near_the_threshold_on_both_sides(home: Path) -> None:
    found = read(home, "borderline", "--pairs", "1")
    assert found["threshold"] == 0.8
    above, below = found["pairs"]
    assert above["jaccard"] >= 0.8 > below["jaccard"] > 0.5
    assert (above["accepted"], below["accepted"]) == (True, False)
    everything = [pair["jaccard"] for pair in read(home, "borderline", "--pairs", "9")["pairs"]]
    assert everything == sorted(everything, reverse=True)
    assert len(everything) == 3
    assert everything[:2] == [above["jaccard"], below["jaccard"]]  # the nearest of the two below
    shown = millrace(home, "borderline").output
    assert shown.index("duplicates: Jaccard") < shown.index("──── threshold 0.8 ────") < shown.index("not duplicates:")


def test_another_threshold_is_looked_at_not_run(home: Path) -> None:
    looser = read(home, "rethreshold", "0.5")
    assert (looser["now"]["near_duplicates"], looser["then"]["near_duplicates"]) == (1, 2)
    assert len(looser["dropped"]) == 1
    assert 0.9 < looser["proposed"] < 1
    assert "1 documents dropped in addition" in millrace(home, "rethreshold", "0.5").output
    curve = read(home, "curve")
    assert (curve["bands"], curve["rows"]) == (32, 3)
    assert 0.5 < curve["collision_curve"]["0.50"] < curve["collision_curve"]["0.80"] <= 1
    assert "32 bands × 3 rows" in millrace(home, "curve").output


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("show", "ffffffffffffff"), 6, "no cluster has an id"),
        (("show", "not-an-id"), 6, "is no id"),
        (("rethreshold", "1.5"), 2, "is no Jaccard similarity"),
        (("borderline", "--run", "20200101"), 6, "no run"),
    ],
)
def test_refusals_say_what_is_wrong(home: Path, arguments: tuple[str, ...], code: int, told: str) -> None:
    done = millrace(home, *arguments)
    assert done.exit_code == code
    assert told in done.output


def test_an_empty_workspace_says_so(tmp_path: Path) -> None:
    done = millrace(tmp_path, "curve")
    assert done.exit_code == 6
    assert "no runs yet" in done.output


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("a b c", "a b c", [("same", "a b c")]),
        ("a b c", "a x c", [("same", "a "), ("gone", "b "), ("new", "x "), ("same", "c")]),
        ("", "a", [("new", "a")]),
        ("a a", "a a a", [("same", "a "), ("new", "a "), ("same", "a")]),
    ],
)
def test_differences_of_words(old: str, new: str, expected: list[tuple[str, str]]) -> None:
    assert differences(old, new) == expected


def test_long_texts_differ_quickly_and_show_only_the_change() -> None:
    long = " ".join(str(number) for number in range(200_000))
    found = differences(long, long.replace(" 150000 ", " changed "))
    assert [kind for kind, _ in found] == ["left out", "same", "gone", "new", "same", "left out"]
    assert ("new", "changed ") in found
    apart = differences(long, long.replace("7", "8"))  # every third word or so: told as a whole
    assert [kind for kind, _ in apart] == ["same", "gone", "new", "same"]
