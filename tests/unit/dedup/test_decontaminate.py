"""Validation items planted in documents."""

from pathlib import Path

import numpy as np
from curation_toy import Run, document, words
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.dedup.decontaminate import merged
from pipeline_lib.packing.ranges import plan_rows
from pipeline_lib.packing.texts import read_documents
from pipeline_lib.tables.parquet import read_tables


def planted(rng: np.random.Generator, *parts: str) -> str:
    return " ".join([*words(rng, 60), *parts, *words(rng, 60)])


def test_planted_items_are_found_and_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    long, medium, short = " ".join(words(rng, 40)), " ".join(words(rng, 9)), " ".join(words(rng, 5))
    items = [{"suite": "s", "item": name, "text": text} for name, text in (("l", long), ("m", medium), ("x", short), ("t", ""))]
    rows = [
        document("verbatim", planted(rng, long.upper().replace(" ", ",  "))),
        document("part", planted(rng, *long.split()[10:25])),
        document("twelve words", planted(rng, *long.split()[10:22])),
        document("nine words", planted(rng, medium)),
        document("eight of nine", planted(rng, *medium.split()[:8])),
        document("too short to tell", planted(rng, short)),
        *[document(f"clean {i}", planted(rng)) for i in range(60)],
    ]
    run = Run(tmp_path, rows, until="dedup", items=items, files=3)
    found = {row["doc_id"]: row for row in run.rows("dedup", "decisions")}
    assert set(found) == {"verbatim", "part", "nine words"}
    assert {row["rule"] for row in found.values()} == {"contamination"}
    assert found["verbatim"]["value"] == 1.0
    assert found["part"]["value"] == 3 / 28  # 15 words hold 3 of the item's 28 13-grams
    assert found["nine words"]["reason"] == "contains item m of suite s"
    assert run.events("dedup")["suite_items_too_short_to_find"] == {"items": 1}
    assert "much_contamination" not in run.events("dedup")
    assert run.artifact("dedup").manifest.counts["dropped"] == 3


def test_a_clean_copy_survives_a_contaminated_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    item = " ".join(words(rng, 13))
    text = words(rng, 400)
    rows = [document("dirty", " ".join([*text, item]), quality=0.9), document("clean", " ".join(text), quality=0.1)]
    run = Run(tmp_path, rows, until="dedup", items=[{"suite": "s", "item": "i", "text": item}])
    rules = [(row["doc_id"], row["rule"]) for row in run.rows("dedup", "decisions")]
    assert rules == [("dirty", "contamination"), ("dirty", "near_duplicate")]
    assert run.events("dedup")["much_contamination"] == {"documents": 1, "most": {"suite": "s", "item": "i", "documents": 1}}


def test_more_hits_than_the_first_room(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    item = words(rng, 6000, 10**6)
    rows = [document("d", " ".join(item)), document("e", "nothing here")]
    run = Run(tmp_path, rows, until="dedup", items=[{"suite": "s", "item": "i", "text": " ".join(item)}])
    (row,) = run.rows("dedup", "contamination")
    assert (row["doc_id"], row["containment"]) == ("d", 1.0)


def test_switched_off(tmp_path: Path) -> None:
    text = " ".join(words(np.random.default_rng(6), 30))
    items = [{"suite": "s", "item": "i", "text": text}]
    run = Run(tmp_path, [document("d", text)], until="dedup", items=items, dedup={"decontaminate": False})
    assert run.rows("dedup", "decisions") == []


def found_in(run: Run, texts: dict[str, str]) -> dict[str, list[str]]:
    """The matching words of each document, from the evidence."""
    found: dict[str, list[str]] = {}
    for row in run.rows("dedup", "contamination"):
        found.setdefault(row["doc_id"], []).append(texts[row["doc_id"]].encode()[row["start"] : row["end"]].decode())
    return found


def test_the_evidence_is_the_span_in_the_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    item = words(rng, 40)
    quoted = "“" + ", ".join(item[3:18]).upper() + "”…"
    torn = [*item[:14], "—äöü—", *item[20:34]]
    rows = [document("quoted", planted(rng, "Überall", quoted, "世界")), document("torn", planted(rng, *torn))]
    run = Run(tmp_path, rows, until="dedup", items=[{"suite": "s", "item": "i", "text": " ".join(item)}])
    found = found_in(run, {row["name"]: row["text"] for row in rows})
    assert found == {"quoted": [quoted[1:-2]], "torn": [" ".join(item[:14]), " ".join(item[20:34])]}
    containment = {row["doc_id"]: row["containment"] for row in run.rows("dedup", "contamination")}
    assert containment == {"quoted": 3 / 28, "torn": 4 / 28}


def test_spans_are_cut_as_set(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    one, two = words(rng, 20), words(rng, 20)
    rows = [
        document("both", planted(rng, *one, *two[:15])),
        document("overlapping", planted(rng, *one, *two, *one)),
        document("mostly item", " ".join([*one, *words(rng, 10)])),
        document("conversation", planted(rng, *one), kind="instruct"),
        document("clean", planted(rng)),
    ]
    items = [
        {"suite": "s", "item": "one", "text": " ".join(one)},
        {"suite": "t", "item": "two", "text": " ".join(two)},
        {"suite": "t", "item": "across", "text": " ".join([*one[5:], *two[:10]])},
    ]
    run = Run(tmp_path, rows, until="dedup", items=items, dedup={"contaminated": "cut"})
    assert {row["doc_id"] for row in run.rows("dedup", "decisions")} == {"mostly item", "conversation"}
    edits = run.rows("dedup", "edits")
    assert {(row["stage"], row["kind"]) for row in edits} == {("dedup", "contamination")}
    texts = {row["name"]: row["text"] for row in rows}
    cut = [(row["doc_id"], texts[row["doc_id"]][row["start"] : row["end"]]) for row in edits]
    assert sorted(cut) == sorted(
        [
            ("both", " ".join([*one, *two[:15]])),  # one span, though three items touch it
            ("overlapping", " ".join([*one, *two])),
            ("overlapping", " ".join(one)),
        ]
    )
    found = {(row["doc_id"], row["cut"]) for row in run.rows("dedup", "contamination")}
    assert found == {("both", True), ("overlapping", True), ("mostly item", False), ("conversation", False)}
    assert run.artifact("dedup").details["suites"] == [
        {"suite": "s", "items": 1, "found": 1, "dropped": 2, "cut": 2},
        {"suite": "t", "items": 2, "found": 2, "dropped": 2, "cut": 2},
    ]
    assert ("… of suite s: documents dropped", 2) in [tuple(row) for row in run.artifact("dedup").manifest.summary.rows]
    dropping = Run(tmp_path, rows, until="dedup", items=items)
    assert len(dropping.rows("dedup", "decisions")) == 4
    assert dropping.rows("dedup", "edits") == []


def test_template_items_are_not_searched(tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    text = " ".join(words(rng, 30))
    items = [{"suite": "s", "item": "i", "text": text, "kind": "template"}]
    run = Run(tmp_path, [document("d", text)], until="dedup", items=items)
    assert run.rows("dedup", "decisions") == []
    assert run.artifact("dedup").details["suites"] == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(1, 9)), max_size=12))
def test_merged_spans_cover_the_same_bytes(spans: list[tuple[int, int, int]]) -> None:
    document, start, size = np.array(spans, dtype=np.int64).reshape(-1, 3).T
    found = list(zip(*(column.tolist() for column in merged(document, start, start + size)), strict=True))
    assert sorted((d, b) for d, s, e in found for b in range(s, e)) == sorted({(d, s + b) for d, s, n in spans for b in range(n)})
    assert found == sorted(found)


def test_what_is_cut_is_not_packed(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    item = " ".join(words(rng, 20))
    rows = [document(f"d{number}", planted(rng, *([item] if number % 3 == 0 else []))) for number in range(30)]
    items = [{"suite": "s", "item": "i", "text": item}]
    run = Run(tmp_path, rows, items=items, files=2, dedup={"contaminated": "cut"})
    files, select = run.artifact("ingest").files("documents"), run.artifact("select")
    planned = plan_rows(read_tables(select.files("selection")), files, read_tables(select.files("cuts")))
    packed = read_documents(files, planned["document"].to_numpy()).without(planned["cuts"].combine_chunks()).texts.to_pylist()
    assert len(packed) == 30
    assert sorted(len(text.split()) for text in packed) == [120] * 30
    assert not [text for text in packed if item in text]
