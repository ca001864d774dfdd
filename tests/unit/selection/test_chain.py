"""Two nights in a row: new, replayed, kept, changed and tombstoned documents."""

from pathlib import Path

import numpy as np
import pytest
from curation_toy import Run, document, edited, words

from pipeline_lib.errors import MillraceError, NotFoundError
from pipeline_lib.workspace.resolve import reference

ROLES = ("new", "replay", "kept")


def corpus(first: int, last: int) -> list[dict]:
    return [
        document(f"d{i}", " ".join(words(np.random.default_rng(i), 50)), created="2020-01-01", domain="a" if i % 2 else "b")
        for i in range(first, last)
    ]


def night(folder: Path, rows: list[dict], parent: Run | None = None, **more: object) -> Run:
    ref = reference(parent.refs["select"].key, parent.refs["select"].digest) if parent else "none"
    select = {"parent": ref, "replay_share": 0.3, **more.pop("select", {})}  # type: ignore[dict-item]
    return Run(folder, rows, select=select, split={"floor_per_domain": 5}, **more)


def chosen(run: Run) -> dict[str, dict]:
    return {row["doc_id"]: row for row in run.rows("select", "selection")}


def test_new_documents_and_a_share_of_the_old(tmp_path: Path) -> None:
    first = night(tmp_path, corpus(0, 300))
    second = night(tmp_path, corpus(0, 400), first)
    before, after = chosen(first), chosen(second)
    assert all(after[name]["side"] == row["side"] for name, row in before.items())
    train = {name: row for name, row in after.items() if row["side"] == "train"}
    assert {name for name, row in train.items() if row["role"] == "new"} == train.keys() - before.keys()
    assert all(row["role"] == "replay" for name, row in after.items() if row["side"] != "train" and name in before)
    spent = {role: sum(row["est_tokens"] for row in train.values() if row["role"] == role) for role in ROLES}
    assert spent["replay"] / (spent["replay"] + spent["new"]) == pytest.approx(0.3, abs=0.02)
    assert spent["kept"] > 0
    metrics = second.artifact("select").metrics
    assert metrics["new_documents"] == sum(row["role"] == "new" for row in train.values())
    assert metrics["replay_documents"] == sum(row["role"] == "replay" for row in train.values())
    assert second.artifact("select").manifest.parent == first.refs["select"].digest


def test_nothing_new(tmp_path: Path) -> None:
    first = night(tmp_path, corpus(0, 100))
    again = night(tmp_path, corpus(0, 100), first)
    metrics = again.artifact("select").metrics
    assert (metrics["new_documents"], metrics["replay_documents"], metrics["tombstoned"]) == (0, 0, 0)
    assert chosen(again).keys() == chosen(first).keys()


def test_vanished_and_changed_documents(tmp_path: Path) -> None:
    rows = corpus(0, 200)
    first = night(tmp_path, rows)
    sides = {name: row["side"] for name, row in chosen(first).items()}
    gone, other = [name for name, side in sides.items() if side == "train"][:2]
    changed = [{**row, "text": row["text"][::-1]} if row["name"] == other else row for row in rows if row["name"] != gone]
    second = night(tmp_path, changed, first)
    second.names |= first.names
    tombstones = [row["doc_id"] for row in second.rows("select", "decisions") if row["rule"] == "tombstone"]
    assert tombstones == [gone]
    assert gone not in chosen(second)
    assert chosen(second)[other]["role"] == "new"
    metrics = second.artifact("select").metrics
    assert (metrics["changed_documents"], metrics["tombstoned"], metrics["new_documents"]) == (1, 1, 1)
    counts = second.artifact("select").manifest.counts
    assert counts["in"] == counts["selected"] + counts["rejected"] == 199


def test_the_document_chosen_first_stays(tmp_path: Path) -> None:
    rows = corpus(0, 60)
    first = night(tmp_path, rows)
    near = " ".join(edited(np.random.default_rng(0), rows[7]["text"].split(), 0.01))
    second = night(tmp_path, [*rows, document("better", near, quality=1.0, created="2024-01-01")], first)
    assert {row["doc_id"] for row in second.rows("dedup", "decisions")} == {"d7"}
    assert "d7" in chosen(second)
    (late,) = second.rows("select", "decisions")
    assert (late["doc_id"], late["rule"]) == ("better", "duplicate_of_chosen")


def test_a_bridge_between_two_sides_is_refused_and_a_relative_follows(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    left, right = words(rng, 100), words(rng, 100)
    rows = [document(f"p{i}", " ".join(words(rng, 40))) for i in range(60)]
    for i in range(40):  # pairs of documents that a third one will tie together
        shared = words(rng, 60)
        rows += [
            document(f"l{i}", " ".join([*shared, *left[: 4 + i % 2]])),
            document(f"r{i}", " ".join([*right[: 4 + i % 3], *shared])),
        ]
    first = night(tmp_path, rows, dedup={"threshold": 0.9})
    texts = {row["name"]: row["text"] for row in rows}
    before = chosen(first)
    split = [i for i in range(40) if before[f"l{i}"]["side"] != before[f"r{i}"]["side"]]
    whole = [i for i in range(40) if before[f"l{i}"]["side"] == before[f"r{i}"]["side"]]
    assert split
    bridges = []
    for i in split[:1] + whole[:3]:
        tail = texts[f"l{i}"].split()[60:]
        bridges.append(document(f"bridge{i}", " ".join([*texts[f"r{i}"].split(), *tail]), created="2001-01-01", quality=0.0))
    second = night(tmp_path, [*rows, *bridges], first, dedup={"threshold": 0.9})
    after = chosen(second)
    assert all(after[name]["side"] == row["side"] for name, row in before.items())
    clusters = {row["doc_id"]: row["cluster_id"] for row in second.rows("dedup", "clusters")}
    tied = [i for i in split[:1] + whole[:3] if clusters.get(f"l{i}") == clusters.get(f"r{i}") is not None]
    assert tied
    refused = {row["doc_id"]: row["rule"] for row in second.rows("select", "decisions")}
    for i in tied:
        name = f"bridge{i}"
        if name in after:
            assert after[name]["side"] == before[f"l{i}"]["side"] == before[f"r{i}"]["side"]
        else:
            assert refused[name] in {"near_duplicate", "cluster_on_two_sides", "duplicate_of_chosen"}


def test_contaminated_documents_leave_the_chain(tmp_path: Path) -> None:
    rows = corpus(0, 60)
    first = night(tmp_path, rows)
    item = " ".join(rows[3]["text"].split()[:20])
    second = night(tmp_path, rows, first, items=[{"suite": "s", "item": "i", "text": item}])
    assert "d3" not in chosen(second)
    assert second.artifact("select").metrics["tombstoned"] == 1


def test_the_budget_holds_for_new_and_replayed_together(tmp_path: Path) -> None:
    first = night(tmp_path, corpus(0, 200))
    second = night(tmp_path, corpus(0, 400), first, select={"target_tokens": 2000})
    metrics = second.artifact("select").metrics
    assert 1700 < metrics["new_tokens"] + metrics["replay_tokens"] <= 2000
    assert metrics["new_tokens"] <= 1400


def test_a_parent_that_is_not_there_or_not_the_same_is_refused(tmp_path: Path) -> None:
    first = night(tmp_path, corpus(0, 30))
    for wrong, error in (
        (reference("select/" + "0" * 32 + ".0", "x"), NotFoundError),
        (reference(first.refs["select"].key, "another digest"), MillraceError),
        ("previous", MillraceError),
    ):
        with pytest.raises(error):
            Run(tmp_path, corpus(0, 40), select={"parent": wrong})
