"""Validation items planted in documents."""

from pathlib import Path

import numpy as np
from curation_toy import Run, document, words


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
