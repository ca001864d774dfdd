"""A report is made whatever happened, says what is missing, and shows text from data as text."""

import json
import math
import re

import pytest

from pipeline_lib.config.pipeline import PipelineConfig
from pipeline_lib.metrics import training_log
from pipeline_lib.reporting.gather import Facts
from pipeline_lib.reporting.landscape import keep_landscape
from pipeline_lib.reporting.page import cell, plain, report_folder
from pipeline_lib.reporting.report import write_report
from pipeline_lib.reporting.scores import scores_table
from pipeline_lib.run import close_run, open_run, step
from pipeline_lib.stages import STAGES
from pipeline_lib.tables.duck import connect
from pipeline_lib.workspace.runs import RunRecord
from pipeline_lib.workspace.services import Services
from pipeline_lib.workspace.workspace import Workspace

ORDER = tuple(stage.name for stage in STAGES)
EVIL = '<script>alert(1)</script> "onload=" & \x1b[31mred\u202e `code` |cell| [link](javascript:x)'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The data stages of a small run over hostile text, then a failure."""
    folder = tmp_path_factory.mktemp("report")
    lines = [f"{EVIL} A sentence with the usual words, number {n}, and that is what it has to be. " * 8 for n in range(60)]
    lines += [lines[0].replace("number 0", "number zero")] * 3 + [EVIL] * 5
    zen = "Beautiful is better than ugly. Explicit is better than implicit. Simple is better than complex."  # of suite zen
    lines.append(f"{lines[1]} {zen} {lines[2]}")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    source = {"name": "files", "kind": "files", "path": str(folder / "text.jsonl"), "domain": "<b>domain</b>", "licence": "MIT"}
    config = PipelineConfig.model_validate({"goal": EVIL, "ingest": {"sources": [source]}, "resources": {"watts": 90}})
    workspace = Workspace.open(folder / "workspace")
    record = open_run(workspace, config)
    for name in ("suites", "ingest", "score", "dedup", "split", "select"):
        step(workspace, record, name, services=Services())
    record.stage("pack").state, record.stage("pack").error = "failed", f"it broke on {EVIL}"
    close_run(workspace, record, "failed", error="it broke")
    path = write_report(workspace, record, ORDER)
    return workspace, record, path.read_text("utf-8"), path.with_suffix(".md").read_text("utf-8")


def test_a_failed_run_says_what_failed_and_what_to_do(run):
    _, record, html, markdown = run
    for text in (html, markdown):
        assert "pack failed" in text
        assert f"millrace retry {record.run_id}" in text
        assert "train, validate did not run" in text
    assert "The run has no scores." in html


def test_a_record_with_holes_is_shown_with_what_it_has(run):
    workspace, record, _, _ = run
    holes = RunRecord.from_json({**record.to_json(), "run_id": "20260101-000000-00000000", "machine": {}, "verdict": {}})
    holes.config, holes.ended, holes.stages["score"].ref = {"of another": "version"}, "", None
    holes.stages["ingest"].ref = {**holes.stages["ingest"].ref, "key": "ingest/00000000000000000000000000000000.0"}
    holes.stage("train").state = "failed"
    page = write_report(workspace, holes, ORDER, training_log).read_text("utf-8")
    assert "log of the training: " in page
    assert "the configuration is of another version" in page
    assert "Missing: " in page
    assert "ingest: " in page.partition("Missing: ")[2]
    assert "pack failed" in page


def test_the_landscape_is_drawn_where_it_was_computed(run):
    workspace, record, html, _ = run
    assert "Loss landscape" not in html
    rows = [{"direction": d, "distance": x, "bits_per_byte": 2.0 + x * x} for d in (0, 1) for x in (-0.5, 0.0, 0.5)]
    keep_landscape(workspace, record.run_id, [*rows, {"direction": 1, "distance": 1.0, "bits_per_byte": math.nan}])
    page = write_report(workspace, record, ORDER).read_text("utf-8")
    assert 'aria-label="Bits per byte around the model: 2.000 at the model' in page
    (report_folder(workspace, record.run_id) / "landscape.json").write_text('[{"distance": 1}]')
    page = write_report(workspace, record, ORDER).read_text("utf-8")
    assert "landscape cannot be read" in page.partition("Missing: ")[2]
    assert "Loss landscape around" not in page


def test_text_from_data_never_becomes_markup(run):
    _, _, html, markdown = run
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "<b>domain" not in html
    assert not re.search(r"(?<!\\)<script", markdown)
    assert "\x1b" not in markdown


def test_what_was_removed_for_which_suite(run):
    _, _, html, markdown = run
    row = re.search(r"<td>zen</td>(.*?)</tr>", html.partition("Validation items in documents")[2])
    assert row
    searched, found, dropped, cut = map(int, re.findall(r">(\d+)<", row[1]))
    assert 0 < found <= searched
    assert (dropped, cut) == (1, 0)
    assert "documents dropped" in markdown


def test_markdown_says_what_the_page_says(run):
    _, record, html, markdown = run
    for title in ("Artifacts", "Versions", "Spent and allowed", "Stages"):
        assert title in html
        assert f"**{title}**" in markdown
    digest = record.ref("select").digest
    assert f"<td>{digest}</td>" in html
    assert digest in markdown
    assert f"`millrace show {record.run_id}`" in markdown


def test_the_page_asks_nothing_of_the_network(run):
    _, _, html, _ = run
    assert "default-src 'none'" in html
    assert not re.search(r'(src|href)="https?:', html)


def test_numbers_are_those_of_the_tables(run):
    workspace, record, html, _ = run
    documents = record.ref("ingest").metrics["documents"]
    assert documents == 69
    assert f"documents {documents}," in html  # the picture's alternative text
    with connect({"decisions": workspace.store.artifact(record.ref("select").key).files("decisions")}) as db:
        reasons = db.sql("SELECT rule, count(DISTINCT doc_id) FROM decisions WHERE NOT kept GROUP BY rule").fetchall()
    assert sum(count for _, count in reasons) > 10
    for rule, count in reasons:
        assert f'<td>{rule}</td><td class="n">{count}</td>' in html


def test_scores_stand_beside_the_champions():
    def score(value):
        return {"value": value, "low": value - 0.1, "high": value + 0.1, "chance": 0.25, "n": 40}

    facts = Facts(RunRecord("20260101-000000-aa", "p"), validation={"scores": {"earth": score(0.5), "zen": score(0.3)}})
    assert "the champion's" not in scores_table(facts, tasks=False).columns
    facts.champion = {"earth": score(0.4), "gone": score(0.9)}
    table = scores_table(facts, tasks=False)
    column = list(table.columns).index("the champion's")
    assert [row[column] for row in table.rows] == ["0.4000 (0.3000 to 0.5000)", ""]
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_cells_and_plain_text():
    assert (cell(1234567), cell(0.123456), cell(12345.6), cell(None), cell(True)) == ("1,234,567", "0.1235", "12,346", "", "True")
    assert plain("a|b\n<c>") == "a\\|b \\<c\\>"
