"""Documents of the same meaning, by a tiny model to which some words are synonyms."""

from pathlib import Path

import numpy as np
import pytest
from curation_toy import Run, doc_id, document

from pipeline_lib.dedup import semantic
from pipeline_lib.dedup.semantic import EXACT, similar_pairs, tables_needed
from pipeline_lib.errors import NotFoundError

WORDS = [f"{name}{number}" for number in range(60) for name in ("plain", "fancy")]  # `fancy7` means what `plain7` means


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **sizes)).eval()
    with torch.no_grad():
        rows = bert.embeddings.word_embeddings.weight
        rows[3::2] = rows[2::2]
    bert.save_pretrained(folder, safe_serialization=True)
    return folder


def texts() -> dict[str, str]:
    rng = np.random.default_rng(0)
    found = {}
    for number in range(12):
        chosen = rng.integers(0, 60, 30)
        found[f"plain {number}"] = " ".join(f"plain{n}" for n in chosen)
        if number < 4:
            found[f"fancy {number}"] = " ".join(f"fancy{n}" for n in chosen)
    found["empty"] = "?"
    return found


def test_what_means_the_same_goes_and_says_of_whom(tmp_path: Path, model: Path) -> None:
    rows = [document(name, text, quality=0.9 if name.startswith("fancy") else 0.1) for name, text in texts().items()]
    settings = {"semantic": str(model), "semantic_threshold": 0.9999}
    run = Run(tmp_path / "one", rows, until="dedup", dedup=settings)
    decisions = {row["doc_id"]: row for row in run.rows("dedup", "decisions")}
    assert set(decisions) == {f"plain {number}" for number in range(4)}
    assert {row["rule"] for row in decisions.values()} == {"semantic_duplicate"}
    assert decisions["plain 2"]["reason"] == f"means the same as {doc_id('fancy 2').hex()}"
    assert decisions["plain 2"]["value"] == 1.0
    pairs = {frozenset((row["doc_id_a"], row["doc_id_b"])): row for row in run.rows("dedup", "semantic")}
    assert {pair for pair, row in pairs.items() if row["accepted"]} == {
        frozenset((f"plain {number}", f"fancy {number}")) for number in range(4)
    }
    assert all(row["accepted"] == (row["cosine"] >= 0.9999) for row in pairs.values())
    counts = run.artifact("dedup").manifest.counts
    assert counts == {"in": 17, "out": 17, "kept": 13, "dropped": 4}
    many = Run(tmp_path / "many", rows[::-1], until="dedup", files=3, workers=2, dedup=settings)
    for table in ("decisions", "semantic"):
        assert many.artifact("dedup").file(table).read_bytes() == run.artifact("dedup").file(table).read_bytes()


def test_off_unless_asked_for(tmp_path: Path, model: Path) -> None:
    rows = [document(name, text) for name, text in texts().items()]
    run = Run(tmp_path, rows, until="dedup")
    assert run.rows("dedup", "decisions") == []
    assert run.rows("dedup", "semantic") == []
    assert "embeddings" not in run.artifact("dedup").manifest.tables
    with pytest.raises(NotFoundError, match="no model in"):
        Run(tmp_path, rows, until="dedup", dedup={"semantic": str(tmp_path)})


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_buckets_find_what_all_pairs_find() -> None:
    rng = np.random.default_rng(1)
    base = unit(rng.standard_normal((3000, 48)))
    near = unit(base + rng.uniform(0.02, 0.06, (3000, 1)) * rng.standard_normal((3000, 48)))
    vectors = np.concatenate([base, near])
    exact = similar_pairs(vectors, 0.93)
    product = np.round(np.einsum("ij,ij->i", vectors[exact[0]], vectors[exact[1]], dtype=np.float64), 4)
    assert (exact[2] == product).all()
    assert len(exact[0]) > 2000
    assert len(vectors) <= EXACT
    found = similar_pairs(vectors, 0.93, exact=0)
    known = {(a, b): c for a, b, c in zip(*exact, strict=True)}
    assert all(known[a, b] == c for a, b, c in zip(*found, strict=True))
    assert len(found[0]) / len(exact[0]) >= 0.99


def test_equal_vectors_are_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "MOST_IN_A_BUCKET", 100)  # which no further sign can reach
    vectors = unit(np.ones((300, 8)))
    left, right, cosine = similar_pairs(vectors, 0.99, exact=0)
    assert len(left) == 300 * 299 // 2
    assert (left < right).all()
    assert (cosine == 1).all()


def test_lower_thresholds_need_more_tables() -> None:
    needed = [tables_needed(threshold, 10) for threshold in (1.0, 0.99, 0.95, 0.9)]
    assert needed == sorted(needed)
    assert needed[0] == 1
    same = 1 - np.arccos(0.95) / np.pi
    assert 1 - (1 - same**10) ** needed[2] >= 0.99
