"""What a user may ask of a selection: size, threshold, balance, floors, shares of kinds, refill, a sample to lean toward."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from curation_toy import Run, document, words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_lib.config.data import SelectConfig
from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.selection.choice import Choice, choose, costs_of
from pipeline_lib.selection.importance import drawn
from pipeline_lib.selection.pool import UNKNOWN_DATE, Labels, Pool
from pipeline_lib.tables.ids import ids_of, order_of

NO_FLOOR = {"floor_per_domain": 0, "dev_share": 0.001, "test_share": 0.001}


def labels(codes: np.ndarray) -> Labels:
    names = [f"n{i}" for i in range(int(codes.max(initial=0)) + 1)]
    return Labels(names, codes.astype(np.int64))


def pool_of(rng: np.random.Generator, count: int, domains: int, sources: int, kinds: int = 1) -> Pool:
    ids = ids_of(pa.array([rng.bytes(16) for _ in range(count)], pa.binary(16)))
    ids = ids[order_of(ids)]
    return Pool(
        ids=ids,
        position=np.arange(count),
        kind=Labels(["instruct", "text"][:kinds] if kinds > 1 else ["text"], rng.integers(0, kinds, count)),
        domain=labels(rng.integers(0, domains, count)),
        source=labels(rng.integers(0, sources, count)),
        created=np.where(rng.random(count) < 0.2, UNKNOWN_DATE, rng.integers(0, 2 * 10**9, count)),
        text_hash=ids,
        quality=rng.random(count),
        tokens=rng.integers(1, 400, count),
        side=np.zeros(count, dtype=np.int64),
        cluster=np.arange(count),
    )


def chosen_by(pool: Pool, config: SelectConfig, target: int, seed: int = 0, workers: int = 1) -> Choice:
    vectors = np.random.default_rng(seed).integers(-60, 60, (len(pool), 64)).astype(np.int8)
    return choose(pool, vectors, np.ones(len(pool), dtype=bool), config, target=target, seed=seed, workers=workers)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 120),
    st.sampled_from(["none", "temperature", "unimax", "weights"]),
    st.integers(1, 30_000),
    st.integers(0, 10),
    st.integers(1, 3),
    st.floats(0, 1),
    st.booleans(),
    st.sampled_from([{}, {"instruct": 0.2}, {"instruct": 0.5, "text": 0.3}]),
)
def test_budget_floors_and_caps_hold(
    seed: int, count: int, balance: str, target: int, floor: int, repeats: int, refill: float, documents: bool, kinds: dict
) -> None:
    pool = pool_of(np.random.default_rng(seed), count, 3, 4, kinds=2 if kinds else 1)
    amount = {"target_documents": max(1, target // 200)} if documents else {"target_tokens": target}
    weights = {"domain_weights": {"n0": 1.0, "n1": 3.0}} if balance == "weights" else {}
    config = SelectConfig(
        **amount, domain_balance=balance, source_floor=floor, max_repeats=repeats, refill=refill, kind_shares=kinds, **weights
    )
    budget = config.target_documents or config.target_tokens
    choice = chosen_by(pool, config, budget)
    costs = costs_of(pool, config)
    spent = int((costs * choice.repeats).sum())
    assert spent <= budget
    assert choice.repeats.max(initial=0) <= repeats
    for kind, share in kinds.items():
        if kind in pool.kind.names:
            mine = pool.kind.codes == pool.kind.names.index(kind)
            assert (costs * choice.repeats)[mine].sum() <= share * budget
    taken = np.bincount(pool.source.codes[choice.repeats > 0], minlength=len(pool.source.names))
    there = np.bincount(pool.source.codes, minlength=len(pool.source.names))
    if not kinds and np.sort(costs)[::-1][: floor * len(there)].sum() <= budget:  # the dearest floors would fit
        assert (taken >= np.minimum(floor, there)).all()
    assert set(choice.short) == {pool.source.names[s] for s in np.flatnonzero((taken < floor) & (there > 0))}
    amounts = choice.cells.to_pydict()
    assert sum(amounts["chosen"]) == spent
    assert sum(amounts["available"]) == costs.sum()


def test_the_choice_is_the_same_for_any_number_of_threads() -> None:
    pool = pool_of(np.random.default_rng(1), 9000, 2, 3)
    config = SelectConfig(target_tokens=300_000)
    one, many = (chosen_by(pool, config, 300_000, workers=workers) for workers in (1, 8))
    assert one.repeats.tobytes() == many.repeats.tobytes()
    assert one.gain.tobytes() == many.gain.tobytes()


def test_everything_is_chosen_without_a_target() -> None:
    pool = pool_of(np.random.default_rng(2), 300, 3, 4)
    choice = chosen_by(pool, SelectConfig(source_floor=5), 0)
    assert (choice.repeats == 1).all()
    assert not any(choice.cells["lacking"].to_pylist())


# Through the stage


def rows_of(run: Run, table: str) -> dict[str, dict[str, Any]]:
    return {row["doc_id"]: row for row in run.rows("select", table)}


def trained(run: Run) -> dict[str, dict[str, Any]]:
    return {name: row for name, row in rows_of(run, "selection").items() if row["side"] == "train"}


def corpus(count: int = 200, **more: Any) -> list[dict]:
    rng = np.random.default_rng(2)
    return [document(f"d{i}", " ".join(words(rng, 50)), quality=round(float(rng.random()), 3), **more) for i in range(count)]


def test_a_target_in_documents(tmp_path: Path) -> None:
    run = Run(tmp_path, corpus(), split=NO_FLOOR, select={"target_documents": 37})
    assert len(trained(run)) == 37
    assert run.artifact("select").details["spent"] == 37


def test_the_quality_threshold_tells_value_and_limit(tmp_path: Path) -> None:
    rows = corpus()
    run = Run(tmp_path, rows, split=NO_FLOOR, select={"min_quality": 0.4})
    quality = {row["name"]: row["quality"] for row in rows}
    assert min(quality[name] for name in trained(run)) >= 0.4
    refused = rows_of(run, "decisions")
    assert refused
    for name, row in refused.items():
        assert (row["rule"], row["reason"]) == ("quality", "needs quality >= 0.4")
        assert row["value"] == quality[name] < 0.4


def test_weights_given_by_domain(tmp_path: Path) -> None:
    rows = [{**row, "domain": "abc"[i % 3]} for i, row in enumerate(corpus(300))]
    weights = {"a": 3.0, "*": 1.0}
    select = {"target_documents": 60, "domain_balance": "weights", "domain_weights": weights}
    found = Counter(row["domain"] for row in trained(Run(tmp_path, rows, split=NO_FLOOR, select=select)).values())
    assert found == {"a": 36, "b": 12, "c": 12}


def test_a_source_keeps_its_floor_and_says_when_it_cannot(tmp_path: Path) -> None:
    rows = [{**row, "source": "big"} for row in corpus()]
    rows += [
        document(f"s{i}", " ".join(words(np.random.default_rng(100 + i), 50)), source="small", quality=0.01) for i in range(6)
    ]
    bare = Run(tmp_path, rows, split=NO_FLOOR, select={"target_documents": 40, "diversity_weight": 0.0, "refill": 0})
    assert bare.events("select")["source_vanishes"] == {"sources": ["small"]}
    select = {"target_documents": 40, "diversity_weight": 0.0, "source_floor": 5}
    run = Run(tmp_path, rows, split=NO_FLOOR, select=select)
    assert sum(name.startswith("s") for name in trained(run)) == 5
    assert len(trained(run)) == 40
    assert "source_vanishes" not in run.events("select")
    more = Run(tmp_path, rows, split=NO_FLOOR, select={**select, "source_floor": 9})
    there = sum(row["doc_id"].startswith("s") and row["side"] == "train" for row in more.rows("split", "splits"))
    assert more.events("select")["floor_not_reached"] == {"floor": 9, "documents": {"small": there}}


def test_kinds_share_the_budget(tmp_path: Path) -> None:
    rows = [{**row, "kind": "instruct" if i % 2 else "text", "est_tokens": 100} for i, row in enumerate(corpus())]
    run = Run(tmp_path, rows, split=NO_FLOOR, select={"target_tokens": 5000, "kind_shares": {"instruct": 0.2}})
    assert Counter("instruct" if int(name[1:]) % 2 else "text" for name in trained(run)) == {"instruct": 10, "text": 40}
    short = Run(tmp_path, rows, split=NO_FLOOR, select={"target_tokens": 19_000, "kind_shares": {"instruct": 0.8}})
    event = short.events("select")["kind_share_not_met"]
    assert (event["record_kind"], event["wanted"]) == ("instruct", 0.8)
    assert event["has"] < 0.8


def test_cells_that_greed_would_empty_are_refilled_from_the_reserve(tmp_path: Path) -> None:
    old, new = {"created": "2005-01-01", "quality": 0.1}, {"created": "2026-01-01"}
    rows = [{**row, **(new | {"quality": 0.6 + i / 2000} if i % 4 else old)} for i, row in enumerate(corpus(400))]
    select = {"target_documents": 80, "diversity_weight": 0.0}
    bare = Run(tmp_path, rows, split=NO_FLOOR, select={**select, "refill": 0})
    full = Run(tmp_path, rows, split=NO_FLOOR, select={**select, "refill": 0.5})
    taken = [sum(int(name[1:]) % 4 == 0 for name in trained(run)) for run in (bare, full)]  # of the old and poor quarter
    assert taken == [0, 10]  # half of a quarter of 80
    assert len(trained(full)) == 80
    assert full.artifact("select").metrics["cells_refilled"] >= 1
    (cell,) = [row for row in full.rows("select", "cells") if row["age"] == "from 10 years"]
    assert (cell["without_refill"], cell["wanted"], cell["chosen"], cell["lacking"]) == (0, 10, 10, 0)


def test_a_domain_too_small_for_its_share_leaves_cells_short(tmp_path: Path) -> None:
    rows = [{**row, "domain": "small" if i < 10 else "large", "quality": 0.5} for i, row in enumerate(corpus())]
    select = {"target_documents": 100, "domain_balance": "weights", "domain_weights": {"small": 1, "large": 1}, "refill": 1.0}
    run = Run(tmp_path, rows, split=NO_FLOOR, select=select)
    cells = {row["domain"]: row for row in run.rows("select", "cells")}
    assert cells["small"]["wanted"] == 50
    assert cells["small"]["lacking"] == 50 - cells["small"]["available"] > 30
    assert run.artifact("select").metrics["cells_short"] == 1


SEA = ["the", "ship", "sails", "over", "wide", "sea", "with", "wind", "and", "waves", "around", "old", "harbour", "at", "night"]
CITY = ["a", "train", "stops", "in", "busy", "street", "below", "tall", "towers", "where", "people", "buy", "bread", "shoes"]


def themes(count: int = 300) -> list[dict]:
    rng = np.random.default_rng(7)
    return [
        document(f"{name}{i}", " ".join(rng.choice(stock, 40)), quality=0.5, domain="prose")
        for i in range(count)
        for name, stock in (("sea", SEA), ("city", CITY))
    ]


def test_importance_resampling_leans_toward_the_sample(tmp_path: Path) -> None:
    sample = tmp_path / "sample.jsonl"
    sample.write_text('{"text": "the ship sails\u2028over sea"}\n{"text": "wind and waves around the old harbour"}\n', "utf-8")
    select = {"target_documents": 100, "toward_candidates": 1.5, "diversity_weight": 0.0}
    plain = Run(tmp_path / "w", themes(), split=NO_FLOOR, select=select)
    toward = Run(tmp_path / "w", themes(), split=NO_FLOOR, select={**select, "toward": str(sample)})
    shares = [np.mean([name.startswith("sea") for name in trained(run)]) for run in (plain, toward)]
    assert 0.3 < shares[0] < 0.7
    assert shares[1] > 0.95
    metrics = toward.artifact("select").metrics
    assert metrics["log_importance"] > metrics["log_importance_of_all"] + 1
    refused = [row for row in toward.rows("select", "decisions") if row["rule"] == "importance"]
    assert np.mean([row["value"] for row in refused]) < metrics["log_importance"]
    assert len(trained(toward)) == 100
    again = Run(tmp_path / "v", themes()[::-1], files=3, workers=4, split=NO_FLOOR, select={**select, "toward": str(sample)})
    assert again.artifact("select").file("selection").read_bytes() == toward.artifact("select").file("selection").read_bytes()


def test_the_draw_by_importance_is_weighted_and_never_the_same_for_another_seed() -> None:
    rng = np.random.default_rng(3)
    ids = ids_of(pa.array([rng.bytes(16) for _ in range(30_000)], pa.binary(16)))
    group = np.arange(len(ids)) % 3
    costs = np.ones(len(ids), dtype=np.int64)
    taken = drawn(ids, group.astype(np.float64), costs, 1500, seed=1)
    found = np.bincount(group[taken])
    assert taken.sum() == 1500
    assert found[1] / found[0] == pytest.approx(np.e, rel=0.25)
    assert found[2] / found[1] == pytest.approx(np.e, rel=0.25)
    other = drawn(ids, group.astype(np.float64), costs, 1500, seed=2)
    assert 0 < (taken & other).sum() < 500


def test_the_world_without_what_validation_asks_for(tmp_path: Path) -> None:
    from pipeline_lib.validation.statements import training_statements

    everything = training_statements(set())
    asked = {"404"}
    left = training_statements(asked)
    assert len(left) == len(everything) - 1
    assert not any(" 404 " in statement for statement in left)
    rows = themes(60) + [document(f"fact{i}", text) for i, text in enumerate(left[::10])]
    items = [{"suite": "s", "item": "i", "text": ""}]
    run = Run(
        tmp_path, rows, items=items, split=NO_FLOOR, select={"target_documents": 50, "toward": "world", "toward_candidates": 1}
    )
    assert np.mean([name.startswith("fact") for name in trained(run)]) > 0.9


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [("gone.txt", None, NotFoundError), ("empty.txt", "\n\n \n", ConfigError), ("wrong.jsonl", '{"texts": 1}\n', ConfigError)],
)
def test_a_sample_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: str | None, error: type[Exception]) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(error):
        Run(tmp_path / "w", corpus(20), select={"target_documents": 5, "toward": str(tmp_path / name)})


def test_a_changed_sample_makes_the_selection_again(tmp_path: Path) -> None:
    sample = tmp_path / "sample.txt"
    select = {"target_documents": 20, "toward": str(sample)}
    found = []
    for text in (SEA, CITY, SEA):
        sample.write_text(" ".join(text), "utf-8")
        found.append(Run(tmp_path / "w", themes(60), select=select).refs["select"])
    assert found[0].key == found[2].key != found[1].key


def test_shares_before_and_after_are_told(tmp_path: Path) -> None:
    rows = [{**row, "created": f"{2016 + i % 10}-01-01"} for i, row in enumerate(corpus())]
    run = Run(tmp_path, rows, split=NO_FLOOR, select={"target_documents": 50, "recency_half_life_days": 200})
    ages = run.artifact("select").details["shares"]["age"]
    assert sum(row["documents"][0] for row in ages.values()) == 200
    assert sum(row["documents"][1] for row in ages.values()) == 50
    assert ages["under 1 year"]["share"][1] > 3 * ages["under 1 year"]["share"][0]
