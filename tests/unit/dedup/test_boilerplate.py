"""Lines that many documents share."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curation_toy import Run, document, words

from pipeline_lib.dedup.boilerplate import Lines
from pipeline_lib.dedup.texts import Texts, buffers_of
from pipeline_lib.packing.ranges import plan_rows
from pipeline_lib.packing.texts import read_documents
from pipeline_lib.tables.parquet import read_tables

NOTICE = "All rights reserved by the honourable society of example texts."
MENU = "Home | News | Sports | Weather | Contact | About this site"
SETTING = {"boilerplate": "trim", "boilerplate_documents": 10}


def corpus(count: int = 30) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        one, other = (" ".join(words(rng, 30)) for _ in range(2))
        rows.append(document(f"d{i}", f"{one}.\n{NOTICE}\n{other} goes\n{MENU}\non here.\n", quality=float(rng.random())))
    return rows


def told(run: Run) -> dict[str, dict[str, int]]:
    return {row["text"]: row for row in run.rows("dedup", "boilerplate")}


def test_shared_lines_are_reported_and_cut_at_sentence_ends_but_once(tmp_path: Path) -> None:
    rows = corpus()
    assert Run(tmp_path, rows, until="dedup").rows("dedup", "boilerplate") == []
    reported = Run(tmp_path, rows, until="dedup", dedup={**SETTING, "boilerplate": "report"})
    assert {text: row["documents"] for text, row in told(reported).items()} == {NOTICE: 30, MENU: 30}
    assert reported.rows("dedup", "edits") == []
    run = Run(tmp_path, rows, until="dedup", dedup=SETTING, files=3)
    assert {text: row["trimmed"] for text, row in told(run).items()} == {NOTICE: 29, MENU: 0}  # the menu stands in a sentence
    assert run.events("dedup")["boilerplate"]["lines"] == 2
    texts = {row["name"]: row["text"] for row in rows}
    for edit in run.rows("dedup", "edits"):
        assert texts[edit["doc_id"]].encode()[edit["start"] : edit["end"]].decode() == NOTICE + "\n"
    assert Run(tmp_path, rows, until="dedup", dedup={**SETTING, "boilerplate_documents": 31}).rows("dedup", "edits") == []


def test_the_copy_that_stays_is_in_a_document_that_stays(tmp_path: Path) -> None:
    rows = corpus(12)
    first = Run(tmp_path, rows, until="dedup", dedup=SETTING)
    (keeper,) = {row["name"] for row in rows} - {edit["doc_id"] for edit in first.rows("dedup", "edits")}
    failed = [{**row, "failed": "rule"} if row["name"] == keeper else row for row in rows]
    again = Run(tmp_path, failed, until="dedup", dedup=SETTING)
    assert len({edit["doc_id"] for edit in again.rows("dedup", "edits")} | {keeper}) == 11  # one other keeps it now


def test_what_is_cut_is_not_packed(tmp_path: Path) -> None:
    rows = corpus()
    run = Run(tmp_path, rows, dedup=SETTING, split={"floor_per_domain": 1})
    files = tuple(run.artifact("ingest").files("documents"))
    select = run.artifact("select")
    planned = plan_rows(read_tables(select.files("selection")), files, read_tables(select.files("cuts")))
    found = read_documents(files, planned["document"].to_numpy()).without(planned["cuts"].combine_chunks())
    packed = {run.names[i]: text for i, text in zip(planned["doc_id"].to_pylist(), found.texts.to_pylist(), strict=True)}
    assert sum(NOTICE in text for text in packed.values()) == 1
    for row in rows:
        assert packed[row["name"]] in (row["text"], row["text"].replace(NOTICE + "\n", ""))
    documents = pq.read_table(files[0])["text"].to_pylist()
    assert all(NOTICE in text for text in documents)  # the documents themselves stay as they are


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one long line", [("one long line", True, True)]),
        ("A sentence.\n  a long line  \nmore", [("A sentence.", True, True), ("a long line", True, False)]),
        ("a long line\r\n\r\nnext line", [("a long line", True, True), ("next line", True, True)]),
        ("he said «ja»\nlong line 終わり。\nlong line", [
            ("he said «ja»", True, False), ("long line 終わり。", False, True), ("long line", True, True),
        ]),
        ("", []),
        ("\n \n", []),
    ],
)  # fmt: skip
def test_lines_and_where_sentences_end(text: str, expected: list[tuple[str, bool, bool]]) -> None:
    data, offsets = buffers_of(pa.array([text], pa.large_string()))
    lines = Lines.of(Texts(np.zeros(1, "S16"), data, offsets), 9)
    raw = text.encode()
    shown = [raw[start:end].decode().strip() for _, _, start, end in lines.places]
    assert [(line, *ends) for line, ends in zip(shown, lines.ends.tolist(), strict=True)] == expected
