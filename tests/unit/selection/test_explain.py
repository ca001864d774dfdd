"""One document's story, and how the command shows it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from curation_toy import Config, Run, doc_id, document, edited, words
from typer.testing import CliRunner

from pipeline_lib.corpus.documents import identities, named_id
from pipeline_lib.errors import NotFoundError
from pipeline_lib.selection.explain import explain
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.workspace.runs import RunBook, RunRecord
from pipeline_lib.workspace.stage import Outcome, Stage, StageRun, execute
from pipeline_lib.workspace.workspace import Workspace


def recorded(run: Run) -> RunRecord:
    record = RunRecord(run_id="20260101-000000-abcdef", pipeline="toy")
    for name, ref in run.refs.items():
        record.stage(name).ref = ref.to_json()
    return record


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, RunRecord]:
    rng = np.random.default_rng(0)
    text = words(rng, 80)
    rows = [
        document("good", " ".join(text), quality=0.9, created="2024-05-06"),
        document("near", " ".join(edited(rng, text, 0.01)), quality=0.1),
        document("bad", "\x1b[31mred\u202e words of ann@example.org", failed="too_short", read_from="mail/a.jsonl"),
        document("null", " ".join(words(rng, 40)), byte_offset=None),
        document("parquet", " ".join(words(rng, 40)), byte_offset=-1),
        *[document(f"d{i}", " ".join(words(rng, 30))) for i in range(20)],
    ]
    run = Run(tmp_path_factory.mktemp("home"), rows)
    record = recorded(run)
    RunBook(run.workspace.runs_folder).save(record)
    return run, record


def test_a_duplicate(told: tuple[Run, RunRecord]) -> None:
    run, record = told
    found = explain(run.workspace, record, doc_id("near").hex())
    assert found["verdict"] == f"not used: near_duplicate (near duplicate of {doc_id('good').hex()})"
    assert found["document"]["source"] == "toy"
    assert found["signals"]["words"] == 80
    (pair,) = found["pairs"]
    assert pair["other"] == doc_id("good").hex()
    assert pair["accepted"]
    assert [row["survivor"] for row in found["cluster"]] == [False, True]
    assert found["selection"] is None
    json.dumps(found)


def test_a_chosen_document(told: tuple[Run, RunRecord]) -> None:
    run, record = told
    found = explain(run.workspace, record, doc_id("good").hex().upper())
    assert found["verdict"].endswith("side: chosen in this run")
    assert found["document"]["created_at"].startswith("2024-05-06")
    assert found["selection"]["side"] == found["split"]["side"]
    assert found["rejection"] is None


def test_a_run_that_has_not_come_so_far(told: tuple[Run, RunRecord]) -> None:
    run, record = told
    early = RunRecord(run_id="x", pipeline="toy", stages={"ingest": record.stages["ingest"], "score": record.stages["score"]})
    found = explain(run.workspace, early, doc_id("bad").hex())
    assert found["verdict"] == "dropped by score: too_short (toy rule)"
    assert found["document"]["head"].endswith("words of [email]")
    assert found["pairs"] is None


@pytest.mark.parametrize("wrong", ["", "zz", "0" * 32, "' OR 1=1 --", "g" * 32])
def test_unknown_ids(told: tuple[Run, RunRecord], wrong: str) -> None:
    with pytest.raises(NotFoundError):
        explain(told[0].workspace, told[1], wrong)


def test_the_beginning_of_an_id_is_enough_where_it_is_the_only_one(told: tuple[Run, RunRecord]) -> None:
    run, record = told
    whole = doc_id("near").hex()
    assert explain(run.workspace, record, whole[:12])["doc_id"] == whole
    with pytest.raises(NotFoundError, match="no document has an id that begins with"):
        explain(run.workspace, record, "0" * 31)


def test_an_id_of_the_source_is_looked_up_by_its_own_name(told: tuple[Run, RunRecord]) -> None:
    with pytest.raises(NotFoundError, match=f"(?s){named_id('toy', 'n0')}.*'n0' of source 'toy'.*id_column"):
        explain(told[0].workspace, told[1], "n0", source="toy")
    batch = pa.record_batch({"id": ["n0"], "file": ["a"], "index": pa.array([0], pa.int64())})
    assert identities(batch, "toy").to_pylist() == [bytes.fromhex(named_id("toy", "n0"))]


def test_a_run_without_documents_says_so(told: tuple[Run, RunRecord]) -> None:
    with pytest.raises(NotFoundError, match="did not come as far as documents"):
        explain(told[0].workspace, RunRecord(run_id="x", pipeline="toy"), "0" * 32)


def test_the_command_escapes_text_and_speaks_json(told: tuple[Run, RunRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.cli.main import make_app

    monkeypatch.setenv("MILLRACE_HOME", str(told[0].workspace.root))
    shown = CliRunner().invoke(make_app(), ["explain", doc_id("bad").hex()])
    assert shown.exit_code == 0, shown.output
    assert "too_short" in shown.output
    assert "\x1b" not in shown.output
    assert "\u202e" not in shown.output
    spoken = CliRunner().invoke(make_app(), ["explain", doc_id("bad").hex(), "--run", "20260101", "--json"])
    assert json.loads(spoken.output)["rejection"]["rule"] == "too_short"
    assert CliRunner().invoke(make_app(), ["explain", "0" * 32]).exit_code == 6


def test_why_a_document_was_not_chosen_is_told_with_its_value(tmp_path: Path) -> None:
    rows = [document(f"d{i}", " ".join(words(np.random.default_rng(i), 40)), quality=i / 40) for i in range(40)]
    run = Run(tmp_path, rows, split={"floor_per_domain": 0}, select={"target_documents": 10, "min_quality": 0.5, "refill": 0})
    refused = {row["doc_id"]: row for row in run.rows("select", "decisions")}
    late = next(name for name, row in refused.items() if row["rule"] == "over_budget")
    for name, rule, says in (
        ("d3", "quality", "needs quality >= 0.5; value 0.075"),
        (late, "over_budget", "the lowest gain taken was"),
    ):
        verdict = explain(run.workspace, recorded(run), doc_id(name).hex())["verdict"]
        assert verdict.startswith(f"not used: {rule} (")
        assert says in verdict


@pytest.mark.parametrize(
    ("examples", "expected"), [("none", ""), ("full", "words of ann@example.org"), ("redacted", "words of [email]")]
)
def test_text_is_shown_as_set(told: tuple[Run, RunRecord], examples: str, expected: str) -> None:
    run, record = told
    asked = dataclasses.replace(record, config={"report": {"examples": examples}})
    document = explain(run.workspace, asked, doc_id("bad").hex())["document"]
    assert document["head"].endswith(expected)
    assert document["place"] == "bad, file mail/a.jsonl, record 2, bytes 0 to 36"


@pytest.mark.parametrize(("name", "record"), [("null", 3), ("parquet", 4)])
def test_a_place_says_only_what_the_reader_knew(told: tuple[Run, RunRecord], name: str, record: int) -> None:
    document = explain(told[0].workspace, told[1], doc_id(name).hex())["document"]
    assert document["place"] == f"{name}, record {record}"


def older_documents(run: StageRun) -> Outcome:
    row = {"doc_id": bytes(16), "text": "words"}
    write_table(pa.table({name: [value] for name, value in row.items()}), run.path("documents", "0.parquet"))
    return Outcome()


def test_a_table_of_an_earlier_version_is_no_traceback(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path)
    stage = Stage("ingest", 1, "pure", f"{__name__}:older_documents")
    record = RunRecord(run_id="20260101-000000-abcdef", pipeline="toy")
    record.stage("ingest").ref = execute(workspace, stage, Config(), {}).to_json()
    with pytest.raises(NotFoundError, match="an earlier version wrote table 'documents'"):
        explain(workspace, record, "0" * 32)
