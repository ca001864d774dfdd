"""The choice of one night."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from curation_toy import Run, document, edited, words
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.config.data import SelectConfig
from pipeline_lib.selection.diversity import clusters_of, gains_of, vendi_score
from pipeline_lib.selection.features import UNIT
from pipeline_lib.selection.shares import domain_budgets

NO_FLOOR = {"floor_per_domain": 0, "dev_share": 0.001, "test_share": 0.001}


def corpus(count: int = 200) -> list[dict]:
    rng = np.random.default_rng(2)
    return [
        document(
            f"d{i}", " ".join(words(rng, 50)), quality=round(float(rng.random()), 3), domain="code" if i % 4 == 0 else "prose"
        )
        for i in range(count)
    ]


def chosen(run: Run) -> dict[str, dict]:
    return {row["doc_id"]: row for row in run.rows("select", "selection")}


def rejected(run: Run) -> dict[str, dict]:
    return {row["doc_id"]: row for row in run.rows("select", "decisions")}


def tokens(run: Run, domain: str = "") -> int:
    rows = [row for row in chosen(run).values() if row["side"] == "train" and domain in ("", row["domain"])]
    return sum(row["est_tokens"] * row["repeats"] for row in rows)


def test_every_document_is_selected_or_rejected_with_its_reason(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    rows = corpus()
    rows[0]["failed"] = "too_short"
    rows.append(document("copy", rows[1]["text"], quality=0.0))
    rows.append(document("near", " ".join(edited(rng, rows[2]["text"].split(), 0.01)), quality=0.0))
    item = " ".join(words(rng, 20))
    rows.append(document("leak", f"{item} {' '.join(words(rng, 50))}"))
    run = Run(tmp_path, rows, items=[{"suite": "s", "item": "i", "text": item}])
    assert not chosen(run).keys() & rejected(run).keys()
    assert len(chosen(run)) + len(rejected(run)) == len(rows)
    assert {name: row["rule"] for name, row in rejected(run).items()} == {
        "d0": "too_short", "copy": "exact_duplicate", "near": "near_duplicate", "leak": "contamination",
    }  # fmt: skip
    assert run.artifact("select").manifest.counts == {"in": 203, "out": 203, "selected": 199, "rejected": 4}
    assert {row["side"] for row in chosen(run).values()} == {"train", "dev", "test"}
    assert {row["role"] for row in chosen(run).values()} == {"new"}
    sides = {row["doc_id"]: row["side"] for row in run.rows("split", "splits")}
    assert all(row["side"] == sides[name] for name, row in chosen(run).items())


def test_budget_goes_to_the_better_and_more_novel(tmp_path: Path) -> None:
    rows = corpus()
    run = Run(
        tmp_path,
        rows,
        split=NO_FLOOR,
        select={"target_tokens": 4000, "domain_balance": "none", "diversity_weight": 0.0, "refill": 0},
    )
    assert 3800 < tokens(run) <= 4000
    quality = {row["name"]: row["quality"] for row in rows}
    for domain in ("code", "prose"):
        names = {row["name"] for row in rows if row["domain"] == domain}
        out = names & rejected(run).keys()
        assert min(quality[n] for n in names - out) >= max(quality[n] for n in out)
    assert {row["rule"] for row in rejected(run).values()} == {"over_budget"}
    assert run.artifact("select").metrics["mean_quality"] > 0.6


def test_novelty_prefers_topics_that_are_not_there_yet(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    sentences, rows = [" ".join(words(rng, 8)) for _ in range(40)], []
    for i in range(90):  # one topic, many times: sentences from the same stock
        rows.append(document(f"same{i}", " ".join(rng.permutation(sentences)[:24]), est_tokens=100, quality=0.6))
    rows += [document(f"other{i}", " ".join(words(rng, 120, 10**6)), est_tokens=100, quality=0.5) for i in range(30)]
    settings = {"split": NO_FLOOR, "files": 2}
    novel = Run(tmp_path, rows, select={"target_tokens": 4000, "diversity_weight": 0.7}, **settings)
    greedy = Run(tmp_path, rows, select={"target_tokens": 4000, "diversity_weight": 0.0}, **settings)
    counts = [Counter(name.rstrip("0123456789") for name in chosen(run)) for run in (novel, greedy)]
    assert counts[0]["other"] > 25
    assert counts[1]["other"] == 0
    diversity = [run.artifact("select").metrics["diversity"] for run in (novel, greedy)]
    assert diversity[0] > diversity[1] * 1.2


def test_domains_share_the_budget(tmp_path: Path) -> None:
    rows = corpus()  # 50 code documents, 150 prose, 50 tokens each
    shares = {}
    for balance in ("none", "temperature", "unimax"):
        select = {"target_tokens": 2000, "domain_balance": balance, "temperature": 0.5}
        run = Run(tmp_path, rows, split=NO_FLOOR, select=select)
        shares[balance] = tokens(run, "code") / tokens(run)
        capped = {row["rule"] for row in rejected(run).values()}
        assert ("domain_cap" in capped) == (balance != "none")
    assert shares["none"] == pytest.approx(0.25, abs=0.03)
    assert shares["temperature"] == pytest.approx(1 / (1 + 3**0.5), abs=0.03)
    assert shares["unimax"] == pytest.approx(0.5, abs=0.03)


def test_small_domains_repeat_up_to_the_cap(tmp_path: Path) -> None:
    run = Run(tmp_path, corpus(), split=NO_FLOOR, select={"target_tokens": 9000, "domain_balance": "unimax", "max_repeats": 2})
    found = Counter((row["domain"], row["repeats"]) for row in chosen(run).values() if row["side"] == "train")
    assert found["code", 1] + found["code", 2] >= 48
    assert found["code", 2] > 30
    assert not any(repeats > 2 for _, repeats in found)
    assert tokens(run) <= 9000


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.integers(1, 10**7), st.integers(1, 4), st.floats(0, 1), st.data()
)
def test_budgets_keep_target_floors_and_caps(
    sizes: list[int], target: int, repeats: int, temperature: float, data: st.DataObject
) -> None:
    names, available = [f"d{i}" for i in range(len(sizes))], np.array(sizes)
    least = np.array([data.draw(st.integers(0, min(size, target // len(sizes)))) for size in sizes])
    weights = {"d0": 2.0, "*": data.draw(st.just(0.0) | st.floats(0.01, 3))}
    for balance in ("none", "temperature", "unimax", "weights"):
        given_weights = weights if balance == "weights" else {}
        config = SelectConfig(
            domain_balance=balance, max_repeats=repeats, temperature=temperature, domain_weights=given_weights, epoch_cap=2.5
        )
        budget, wishes = domain_budgets(names, available, least, target, config)
        cap = np.maximum(np.floor(available * min(repeats, 2.5)), least)
        assert (budget <= cap).all()
        assert (budget >= least).all()
        assert budget.sum() <= target
        grows = (wishes > 0) & (available > 0)
        assert budget.sum() >= min(target, cap[grows].sum() + least[~grows].sum()) - len(sizes)


def test_older_documents_count_less(tmp_path: Path) -> None:
    rows = [{**row, "created": "2026-01-01" if i // 4 % 2 else "2016-01-01", "quality": 0.5} for i, row in enumerate(corpus())]
    run = Run(tmp_path, rows, split=NO_FLOOR, select={"target_tokens": 4000, "recency_half_life_days": 365})
    days = Counter(int(name[1:]) // 4 % 2 for name in chosen(run))
    assert days[1] > 70
    assert days[0] < 10


def test_a_domain_that_vanishes_is_told(tmp_path: Path) -> None:
    rows = [*corpus(40), document("alone", "some words here", domain="rare", source="feed", failed="rule")]
    events = Run(tmp_path, rows).events("select")
    assert events["domain_vanishes"] == {"domains": ["rare"]}
    assert events["source_vanishes"] == {"sources": ["feed"]}


def test_same_bytes_for_any_layout_and_workers(tmp_path: Path) -> None:
    rows = corpus(120)
    select = {"target_tokens": 3000, "recency_half_life_days": 100}
    one = Run(tmp_path / "a", rows, select=select)
    two = Run(tmp_path / "b", rows[::-1], select=select, files=5, workers=4)
    for table in ("selection", "decisions"):
        assert one.artifact("select").file(table).read_bytes() == two.artifact("select").file(table).read_bytes()


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    return np.rint(vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * UNIT).astype(np.int8)


def test_gains_are_the_order_of_a_plain_greedy_choice() -> None:
    rng = np.random.default_rng(5)
    raw = rng.normal(size=(60, 64))
    raw[30:] = raw[:30] + rng.normal(size=(30, 64)) / 4
    vectors, quality, recency = unit_vectors(raw), rng.random(60), rng.random(60) / 2 + 0.5
    gains = gains_of(vectors, rng.random(60), quality, recency, diversity_weight=0.6)
    unit = vectors.astype(np.float64) / UNIT
    left, chosen_order, novelty = set(range(60)), [], np.ones(60)
    while left:
        gain = {i: (0.4 * quality[i] + 0.6 * novelty[i]) * recency[i] for i in left}
        best = max(sorted(left), key=gain.__getitem__)
        assert gains[best] == pytest.approx(gain[best], abs=1e-6)
        left.remove(best)
        chosen_order.append(best)
        novelty = np.minimum(novelty, 1 - np.clip(unit @ unit[best], 0, 1))
    assert (np.diff(gains[chosen_order]) <= 1e-9).all()


def test_clusters_hold_similar_documents_and_vendi_counts_topics() -> None:
    rng = np.random.default_rng(6)
    topics, topic = rng.normal(size=(5, 64)), np.arange(2000) % 5
    vectors = unit_vectors(topics[topic] + rng.normal(size=(2000, 64)) / 10)
    found = clusters_of(vectors, rng.random(2000))
    purity = [np.bincount(topic[found == c]).max() / (found == c).sum() for c in np.unique(found)]
    assert len(purity) > 8
    assert np.mean(purity) > 0.9
    assert 4 < vendi_score(vectors, rng.random(2000)) < 7
    assert vendi_score(vectors[topic == 0][:1], np.zeros(1)) == 1.0
