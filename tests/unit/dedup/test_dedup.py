"""The stage, through its artifact."""

from pathlib import Path

import numpy as np
import pytest
from curation_toy import Run, doc_id, document, edited, jaccard, words

from pipeline_lib.dedup import verify
from pipeline_lib.dedup.documents import Corpus
from pipeline_lib.dedup.shingles import Shingles
from pipeline_lib.errors import StageFailedError
from pipeline_lib.workspace.services import thread_mapper


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def why(run: Run) -> dict[str, dict]:
    return {row["doc_id"]: row for row in run.rows("dedup", "decisions")}


def test_planted_duplicates_are_found_as_by_brute_force(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = []
    for base in range(120):
        text = words(rng, int(rng.integers(60, 300)))
        rows.append(document(f"{base}.0", " ".join(text)))
        rows += [
            document(f"{base}.{i}", " ".join(edited(rng, text, rate))) for i, rate in enumerate(rng.uniform(0.001, 0.03, 3), 1)
        ]
    run = Run(tmp_path, rows, until="dedup", dedup={"threshold": 0.85})
    texts = {row["name"]: row["text"] for row in rows}
    true = {
        frozenset((f"{b}.{i}", f"{b}.{j}")) for b in range(120) for i in range(4) for j in range(i)
        if jaccard(texts[f"{b}.{i}"], texts[f"{b}.{j}"]) >= 0.85
    }  # fmt: skip
    pairs = run.rows("dedup", "pairs")
    accepted = {frozenset((pair["doc_id_a"], pair["doc_id_b"])) for pair in pairs if pair["accepted"]}
    for pair in pairs:
        assert pair["jaccard"] == pytest.approx(jaccard(texts[pair["doc_id_a"]], texts[pair["doc_id_b"]]), abs=1e-12)
        assert pair["accepted"] == (pair["jaccard"] >= 0.85)
    assert len(true) > 150
    assert len(accepted & true) / len(true) >= 0.99
    assert not accepted - true


def test_boilerplate_does_not_merge(tmp_path: Path, rng: np.random.Generator) -> None:
    header = " ".join(words(rng, 150))
    rows = [document(f"d{i}", header + " " + " ".join(words(rng, 150))) for i in range(40)]
    run = Run(tmp_path, rows, until="dedup")
    assert run.rows("dedup", "clusters") == []
    assert run.rows("dedup", "decisions") == []
    assert run.artifact("dedup").metrics["pairs_rejected"] > 0  # they were proposed, and refused on the text


def test_odd_documents(tmp_path: Path, rng: np.random.Generator) -> None:
    long = " ".join(words(rng, 1_600_000, 50_000))
    assert len(long) > 9_000_000
    rows = [
        document("empty", ""), document("signs", "?!"), document("short", "two words"), document("other short", "two others"),
        document("short again", "Two  WORDS"), document("long", long), document("long again", long + " end"),
    ]  # fmt: skip
    run = Run(tmp_path, rows, until="dedup")
    decisions = why(run)
    assert set(decisions) == {"short", "short again", "long", "long again"} - {
        row["doc_id"] for row in run.rows("dedup", "clusters") if row["survivor"]
    }
    assert {row["rule"] for row in decisions.values()} == {"exact_duplicate", "near_duplicate"}


def test_no_documents_in_common(tmp_path: Path) -> None:
    run = Run(tmp_path, [document("only", "")], until="dedup")
    assert run.artifact("dedup").manifest.counts == {"in": 1, "out": 1, "kept": 1, "dropped": 0}


def test_the_better_document_survives(tmp_path: Path, rng: np.random.Generator) -> None:
    text = words(rng, 200)
    near = [" ".join(edited(rng, text, 0.01)) for _ in range(3)]
    rows = [
        document("failed", " ".join(text), quality=0.9, failed="rule"),
        document("dull", near[0], quality=0.2),
        document("good", near[1], quality=0.8),
        document("good but later", near[1], quality=0.8, created="2026-01-01"),
        document("good and early", near[1].upper(), quality=0.8, created="2020-01-01"),
    ]
    run = Run(tmp_path, rows, until="dedup")
    clusters = {row["doc_id"]: row for row in run.rows("dedup", "clusters")}
    assert {name for name, row in clusters.items() if row["survivor"]} == {"good and early"}
    assert {row["cluster_id"] for row in clusters.values()} == {"good and early"}
    decisions = why(run)
    assert decisions["good but later"]["rule"] == decisions["good"]["rule"] == "exact_duplicate"
    assert decisions["dull"]["rule"] == "near_duplicate"
    assert decisions["dull"]["reason"] == f"near duplicate of {doc_id('good and early').hex()}"
    assert 0.8 <= decisions["dull"]["value"] < 1


def test_a_source_of_higher_priority_wins(tmp_path: Path, rng: np.random.Generator) -> None:
    text = words(rng, 100)
    rows = [
        document("mirror", " ".join(text), source="mirror", quality=0.9),
        document("origin", " ".join(edited(rng, text, 0.01)), source="origin", quality=0.2),
    ]
    for priorities, winner in (({}, "mirror"), ({"origin": 1}, "origin")):
        run = Run(tmp_path, rows, until="dedup", priorities=priorities)
        assert [row["doc_id"] for row in run.rows("dedup", "clusters") if row["survivor"]] == [winner]


def test_bands_that_miss_the_threshold_are_told(tmp_path: Path) -> None:
    run = Run(tmp_path, [document("a", "b")], until="dedup", dedup={"bands": 9, "rows": 13})
    assert run.events("dedup")["bands_miss_threshold"]["proposed"] < 0.9
    assert "bands_miss_threshold" not in Run(tmp_path, [document("a", "b")], until="dedup").events("dedup")


def test_same_tables_for_any_layout_workers_and_blocks(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for base in range(40):
        text = words(rng, 100)
        rows += [document(f"{base}.{i}", " ".join(edited(rng, text, 0.02 * i)), quality=float(rng.random())) for i in range(3)]
    one = Run(tmp_path / "one", rows, until="dedup")
    monkeypatch.setattr(verify, "BATCH_ROWS", 7)
    many = Run(tmp_path / "many", rows[::-1], until="dedup", files=5, workers=4)
    for table in ("pairs", "clusters", "decisions"):
        assert one.artifact("dedup").file(table).read_bytes() == many.artifact("dedup").file(table).read_bytes()


def test_blocks_do_not_change_similarities(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = [document(f"d{i}", " ".join(words(rng, 50, 40))) for i in range(20)]
    run = Run(tmp_path, rows, until="score", files=3)
    corpus = Corpus.of(run.artifact("ingest"), run.artifact("score"))
    documents = corpus.read(np.arange(20))
    left, right = np.triu_indices(20, 1)
    whole = verify.similarities(left, right, documents.place, Shingles(2))
    parts = verify.similarities(left, right, documents.place, Shingles(2), block_hashes=300, mapper=thread_mapper(3))
    assert (whole[0] == parts[0]).all()
    assert (whole[1] == parts[1]).all()
    by_id = {run.names[bytes(i).ljust(16, b"\0")]: n for n, i in enumerate(documents.ids)}
    texts = {by_id[row["name"]]: row["text"] for row in rows}
    expected = [jaccard(texts[a], texts[b], 2) for a, b in zip(left, right, strict=True)]
    assert whole[0] == pytest.approx(expected)
    assert (whole[1] >= whole[0]).all()


def test_only_a_new_file_is_indexed(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = [document(f"d{i}", " ".join(words(rng, 60))) for i in range(9)]
    first = Run(tmp_path, rows[:8], until="dedup", files=2)
    second = Run(tmp_path, rows, until="dedup", files=2)  # the ninth goes to the first file, the second stays as it is
    old, new = (set(run.artifact("dedup").manifest.shards) for run in (first, second))
    assert len(old & new) == 1
    homes = {entry.home for entry in second.artifact("dedup").manifest.files if entry.table == "bands"}
    assert homes == {"", first.refs["dedup"].key}


def test_two_documents_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageFailedError, match="share their id"):
        Run(tmp_path, [document("same", "a"), document("same", "b")], until="dedup")


def test_characters_bear_noise_inside_words(tmp_path: Path, rng: np.random.Generator) -> None:
    """Every tenth word misread in one letter: half of the 5-word shingles go, but four fifths of the 4-character ones stay."""
    text = ["".join(chr(97 + c) for c in rng.integers(0, 26, 8)) for _ in range(200)]
    noisy = [word[:3] + "0" + word[4:] if i % 10 == 0 else word for i, word in enumerate(text)]
    rows = [document("clean", " ".join(text)), document("noisy", "  ".join(noisy).upper())]
    by_words = Run(tmp_path, rows, until="dedup")
    assert by_words.rows("dedup", "clusters") == []
    by_characters = Run(tmp_path, rows, until="dedup", dedup={"shingle": "characters", "shingle_characters": 4})
    (pair,) = by_characters.rows("dedup", "pairs")
    grams = [{t[i : i + 4] for i in range(len(t) - 3)} for t in (" ".join(text), " ".join(noisy))]
    assert pair["jaccard"] == pytest.approx(len(grams[0] & grams[1]) / len(grams[0] | grams[1]))
    assert pair["containment"] == pytest.approx(len(grams[0] & grams[1]) / min(map(len, grams)))
    assert pair["accepted"]


def test_containment_decides_too_where_it_is_set(tmp_path: Path, rng: np.random.Generator) -> None:
    text = words(rng, 300)
    rows = [document("whole", " ".join(text), quality=0.9), document("part", " ".join(text[:215]))]
    assert Run(tmp_path, rows, until="dedup").rows("dedup", "decisions") == []
    run = Run(tmp_path, rows, until="dedup", dedup={"containment": 0.95})
    assert [(row["doc_id"], row["rule"]) for row in run.rows("dedup", "decisions")] == [("part", "near_duplicate")]


def test_the_order_of_survivors_is_as_configured(tmp_path: Path, rng: np.random.Generator) -> None:
    text = words(rng, 200)
    rows = [
        document("good", " ".join(text), quality=0.9, created="2024-01-01", source="a"),
        document("long", " ".join([*text, "and", "more"]), quality=0.5, created="2023-01-01", source="a"),
        document("early", " ".join([*text, "and"]), quality=0.4, created="2001-01-01", source="a"),
        document("own", " ".join([*text[:-1], "own"]), quality=0.1, created="2024-01-01", source="b"),
    ]
    for first, winner in (("quality", "good"), ("length", "long"), ("date", "early"), ("priority", "own")):
        run = Run(tmp_path, rows, until="dedup", priorities={"b": 1}, dedup={"survivor": [first]})
        clusters = run.rows("dedup", "clusters")
        assert [row["doc_id"] for row in clusters if row["survivor"]] == [winner]
        assert f"{first}, id" in next(row["why"] for row in clusters if row["survivor"])


def test_no_source_vanishes_silently_or_below_its_quota(tmp_path: Path, rng: np.random.Generator) -> None:
    texts = [words(rng, 100) for _ in range(10)]
    rows = [document(f"good {i}", " ".join(text), source="good", quality=0.9) for i, text in enumerate(texts)]
    rows += [
        document(f"mirror {i}", " ".join(edited(rng, t, 0.01)), source="mirror", quality=i / 100) for i, t in enumerate(texts)
    ]
    plain = Run(tmp_path, rows, until="dedup")
    assert plain.events("dedup")["source_shrinks"] == {"source": "mirror", "documents": 10, "removed": 10}
    run = Run(tmp_path, rows, until="dedup", dedup={"source_quota": 0.3, "cluster_alarm": 2})
    dropped = {row["doc_id"] for row in run.rows("dedup", "decisions")}
    assert dropped == {f"mirror {i}" for i in range(7)}  # the best three of it stay
    stays = [row for row in run.rows("dedup", "clusters") if row["doc_id"] == "mirror 9"]
    assert [(row["survivor"], row["why"]) for row in stays] == [(True, "duplicate that stays for the quota of its source")]
    assert run.artifact("dedup").metrics["kept_by_quota"] == 3
    assert "large_cluster" not in run.events("dedup")


def test_a_large_cluster_and_cut_buckets_are_told(tmp_path: Path, rng: np.random.Generator) -> None:
    text = words(rng, 300)
    rows = [document(f"d{i}", " ".join([*text, f"n{i}"]), quality=float(rng.random())) for i in range(60)]
    run = Run(tmp_path, rows, until="dedup", dedup={"bucket_limit": 10, "cluster_alarm": 20})
    events, buckets = run.events("dedup"), run.rows("dedup", "buckets")
    assert events["large_cluster"] == {"documents": 60, "alarm": 20}
    assert events["buckets_split"]["buckets"] == len(buckets) > 15
    assert events["buckets_cut"]["buckets"] == sum(row["cut"] > 0 for row in buckets) > 0
    assert run.artifact("dedup").metrics["pairs_proposed"] < 60 * 59 / 2
    survivors = [row["doc_id"] for row in run.rows("dedup", "clusters") if row["survivor"]]
    assert survivors == [max(rows, key=lambda row: row["quality"])["name"]]  # the star hangs on the one that removes the others


def test_bands_that_propose_too_much_are_told(tmp_path: Path) -> None:
    run = Run(tmp_path, [document("a", "b")], until="dedup", dedup={"bands": 32, "rows": 3})
    assert run.events("dedup")["bands_below_threshold"]["better"] == "21 × 6"
