"""The split: whole clusters, floors, and what stays where it was."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from curation_toy import Run, document, edited, jaccard, words
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.corpus.split import held_out, sides_of
from pipeline_lib.tables.ids import draw
from pipeline_lib.workspace.resolve import reference

UNIT = st.lists(st.floats(0, 1, exclude_max=True), unique=True, max_size=80)


@given(UNIT, st.integers(0, 30), st.floats(0.01, 0.1))
def test_share_floor_and_cap(numbers: list[float], floor: int, share: float) -> None:
    draws = np.array(numbers)
    chosen = held_out(draws, share, floor)
    by_share = draws < share
    assert (chosen | ~by_share).all()  # who is there by the share is there
    assert chosen.sum() == max(by_share.sum(), min(floor, len(draws) // 6))
    if chosen.any() and not chosen.all():
        assert draws[chosen].max() < draws[~chosen].min()


@given(UNIT, st.lists(st.floats(0, 1, exclude_max=True), unique=True, min_size=1, max_size=40))
def test_in_a_domain_of_six_floors_nothing_is_drawn_back(numbers: list[float], added: list[float]) -> None:
    floor, share = len(numbers) // 6, 0.05
    more = [number for number in added if number not in numbers]
    before = held_out(np.array(numbers), share, floor)
    after = held_out(np.array(numbers + more), share, floor)[: len(numbers)]
    assert not (after & ~before).any()


def test_draws_depend_on_id_and_seed_alone() -> None:
    ids = np.frombuffer(np.random.default_rng(0).bytes(16 * 20_000), dtype="S16")
    numbers = draw(ids, 5)
    assert (draw(ids[::-1], 5)[::-1] == numbers).all()
    assert (draw(ids, 6) != numbers).all()
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)
    assert abs(np.corrcoef(numbers, draw(ids, 6))[0, 1]) < 0.03


def corpus(count: int) -> list[dict]:
    rng = np.random.default_rng(1)
    rows = []
    for base in range(count):
        text = words(rng, 60)
        domain = "small" if base % 10 == 0 else "large"
        rows.append(document(f"{base}.0", " ".join(text), domain=domain, created="2020-01-01"))
        if base % 4 == 0:  # a later near-duplicate, of the other domain
            rows.append(document(f"{base}.1", " ".join(edited(rng, text, 0.01)), domain="other", created="2024-01-01"))
    return rows


def sides(run: Run) -> dict[str, str]:
    return {row["doc_id"]: row["side"] for row in run.rows("split", "splits")}


def test_no_cluster_on_two_sides_and_floors(tmp_path: Path) -> None:
    run = Run(tmp_path, corpus(300), until="split", split={"floor_per_domain": 10})
    found = sides(run)
    assert all(found[name] == found[f"{name[:-2]}.0"] for name in found)
    heads = {name: side for name, side in found.items() if name.endswith(".0")}
    small = Counter(side for name, side in heads.items() if int(name[:-2]) % 10 == 0)
    large = Counter(side for name, side in heads.items() if int(name[:-2]) % 10)
    assert (small["dev"], small["test"]) == (5, 5)  # a sixth of 30 clusters
    assert large["dev"] >= 10
    assert large["test"] >= 10
    assert run.artifact("split").manifest.counts == {"in": 375, "out": 375}
    assert run.artifact("split").metrics["train_clusters"] == sum(side == "train" for side in heads.values())


def test_documents_stay_when_others_are_added(tmp_path: Path) -> None:
    rows = corpus(300)
    settings = {"split": {"floor_per_domain": 0, "dev_share": 0.1, "test_share": 0.1}, "until": "split"}
    before = sides(Run(tmp_path, rows[:200], **settings))
    after = sides(Run(tmp_path, rows[::-1], files=3, **settings))
    assert len(set(before.values())) == 3
    assert all(after[name] == side for name, side in before.items())


def refused(run: Run) -> dict[str, str]:
    return {row["doc_id"]: row["rule"] for row in run.rows("split", "decisions")}


def test_with_a_parent_no_side_changes_and_late_duplicates_of_the_held_out_go(tmp_path: Path) -> None:
    """Without it the floor and an older member do move documents: 60 of the first 120 are held out, later 20 of 300."""
    rows = corpus(300)
    rng = np.random.default_rng(9)
    first, late = rows[:120], rows[120:]
    setting = {"floor_per_domain": 20, "dev_share": 0.02, "test_share": 0.02}
    one = Run(tmp_path, first, until="split", split=setting)
    before = sides(one)
    for row in first[:60]:  # older than what it copies, so that it gives the cluster another name
        text = " ".join(edited(rng, row["text"].split(), 0.01))
        late.append(document(f"late {row['name']}", text, domain="other", created="2010-01-01", quality=0.9))
    parent = reference(one.refs["split"].key, one.refs["split"].digest)
    run = Run(tmp_path, first + late, until="select", split={**setting, "parent": parent}, select={"domain_balance": "none"})
    after, gone = sides(run), refused(run)
    assert {name: after[name] for name in before} == before
    assert any(
        before[name] != side for name, side in sides(Run(tmp_path, rows, until="split", split=setting)).items() if name in before
    )
    for row in first[:60]:
        side = before[row["name"]]
        assert gone.get(f"late {row['name']}", "") == ("" if side == "train" else f"near_{side}")
    assert len({before[row["name"]] for row in first[:60]}) == 3
    assert len(gone) == sum(run.artifact("split").metrics[f"refused_near_{side}"] for side in ("dev", "test"))
    assert run.events("split")["late_duplicates_of_held_out"]["refused_near_dev"] > 0
    assert not gone.keys() & {row["doc_id"] for row in run.rows("select", "selection")}


def test_no_near_duplicate_on_two_sides_over_nights(tmp_path: Path) -> None:
    """Of what may be used, no two documents of different sides are near-duplicates: by brute force, after three nights."""
    rng = np.random.default_rng(4)
    texts = [words(rng, 40) for _ in range(25)]
    rows = []
    for number in range(150):
        text = edited(rng, texts[int(rng.integers(0, 25))], float(rng.choice([0.025, 0.05])))
        rows.append(document(f"d{number}", " ".join(text), created=f"20{rng.integers(10, 25)}-01-01"))
    parent, every_pair = "none", {"threshold": 0.7, "shingle_words": 3, "bands": 42, "rows": 3}  # 1 − 2e-8 at the threshold
    for night in range(1, 4):
        settings = {"split": {"dev_share": 0.2, "test_share": 0.2, "floor_per_domain": 2, "parent": parent}}
        run = Run(tmp_path, rows[: night * 50], until="split", dedup=every_pair, **settings)
        parent = reference(run.refs["split"].key, run.refs["split"].digest)
    found, gone = sides(run), refused(run)
    assert gone
    assert len(set(found.values())) == 3
    used = [row for row in rows if row["name"] not in gone]
    near = [(a, b) for i, a in enumerate(used) for b in used[:i] if jaccard(a["text"], b["text"], 3) >= 0.7]
    assert len(near) > 50
    assert all(found[a["name"]] == found[b["name"]] for a, b in near)


def test_seed_changes_the_split_and_workers_do_not(tmp_path: Path) -> None:
    rows = corpus(100)
    one = Run(tmp_path / "a", rows, until="split")
    two = Run(tmp_path / "b", rows[::-1], until="split", files=4, workers=3)
    assert one.artifact("split").file("splits").read_bytes() == two.artifact("split").file("splits").read_bytes()
    assert sides(Run(tmp_path / "a", rows, until="split", seed=1)) != sides(one)


def test_a_side_without_documents_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path, [document("a", "b c")], until="split")
    assert len(run.events("split")["domain_missing_on_a_side"]["sides"]) == 2


@pytest.mark.parametrize("count", [1, 2, 5, 6, 17, 100])
def test_the_floor_never_takes_more_than_a_third(count: int) -> None:
    from pipeline_lib.config.data import SplitConfig

    draws = np.linspace(0.02, 0.98, count)
    found = sides_of(draws, np.zeros(count, dtype=np.int64), SplitConfig(floor_per_domain=10**6))
    assert (found > 0).sum() <= count / 3
    assert (found == 1).sum() == (found == 2).sum() == count // 6
