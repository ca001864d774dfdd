"""`millrace sql`: everything a run made, nothing else, and nothing changed."""

import pyarrow as pa
import pytest

from pipeline_lib.errors import ConfigError, NotFoundError
from pipeline_lib.tables.duck import connect
from pipeline_lib.tables.parquet import write_table
from pipeline_lib.tables.schemas import DECISIONS, DOCUMENTS, STEPS
from pipeline_lib.workspace.runs import RunBook, RunRecord, StageRecord
from pipeline_lib.workspace.sql import query
from pipeline_lib.workspace.stage import Outcome, Stage, execute
from pipeline_lib.workspace.workspace import Workspace


def rows(schema, count, **given):
    return pa.table({f.name: given.get(f.name, pa.nulls(count, f.type)) for f in schema}, schema)


def ids(*numbers):
    return [number.to_bytes(16, "big") for number in numbers]


def documents(run):
    write_table(rows(DOCUMENTS, 2, doc_id=ids(1, 2), domain=["code", "prose"]), run.path("documents", "a.parquet"))
    write_table(rows(DOCUMENTS, 1, doc_id=ids(3), domain=["prose"]), run.path("documents", "b.parquet"))
    return Outcome(metrics={"documents": 3})


def first(run):
    write_table(rows(DECISIONS, 1, doc_id=ids(1), stage=["first"], kept=[False]), run.path("decisions", "d.parquet"))
    write_table(rows(STEPS, 1, step=[7]), run.observed("steps.parquet"))
    return Outcome()


def second(run):
    write_table(rows(DECISIONS, 1, doc_id=ids(2), stage=["second"], kept=[True]), run.path("decisions", "d.parquet"))
    return Outcome()


@pytest.fixture
def workspace(tmp_path):
    workspace = Workspace.open(tmp_path / "w")
    record = RunRecord("20260101-000000-abcdef", "p", goal="see", outcome="completed", features={"tokens": 5})
    for name in ("documents", "first", "second"):
        ref = execute(workspace, Stage(name, 1, "pure", f"test_sql:{name}"), None, {})
        record.stages[name] = StageRecord("made", ref.to_json(), 1.5)
    RunBook(workspace.runs_folder).save(record)
    return workspace


def test_tables_of_a_run(workspace):
    found = query(workspace, "SELECT domain, count(*) AS n FROM documents GROUP BY domain ORDER BY domain")
    assert found.to_pylist() == [{"domain": "code", "n": 1}, {"domain": "prose", "n": 2}]


def test_decisions_of_all_stages_are_one_view(workspace):
    sql = "SELECT stage, kept FROM decisions JOIN documents USING (doc_id) ORDER BY stage"
    assert query(workspace, sql).to_pylist() == [{"stage": "first", "kept": False}, {"stage": "second", "kept": True}]


def test_observed_tables_runs_and_artifacts(workspace):
    assert query(workspace, "SELECT step FROM steps").to_pylist() == [{"step": 7}]
    assert query(workspace, "SELECT run_id, goal, seconds FROM runs").to_pylist() == [
        {"run_id": "20260101-000000-abcdef", "goal": "see", "seconds": 4.5}
    ]
    assert query(workspace, "SELECT stage, files FROM artifacts WHERE stage = 'documents'").to_pylist() == [
        {"stage": "documents", "files": 2}
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "FROM documents",
        "WITH a AS (SELECT 1) SELECT * FROM a",
        "DESCRIBE documents",
        "SUMMARIZE documents",
        "SHOW TABLES",
        "VALUES (1)",
    ],
)
def test_reading_statements(workspace, sql):
    assert query(workspace, sql).num_rows > 0


def test_a_limit_is_a_limit(workspace):
    assert query(workspace, "SELECT * FROM range(100000)", limit=7).num_rows == 7
    assert query(workspace, "SELECT * FROM range(100000)").num_rows == 100000


REFUSED = [
    "INSERT INTO runs VALUES (1)",
    "WITH a AS (SELECT 1) INSERT INTO runs SELECT * FROM a",
    "COPY (SELECT 1) TO '{there}'",
    "ATTACH '{there}'",
    "CREATE TABLE x (a INT)",
    "DROP VIEW documents",
    "SET threads = 4",
    "PRAGMA database_size",
    "INSTALL httpfs",
    "LOAD httpfs",
    "CALL pragma_version()",
    "EXPORT DATABASE '{there}'",
    "EXPLAIN ANALYZE SELECT 1",
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP VIEW documents",
    "",
    "SELEC 1",
    "SELECT * FROM nothing_like_it",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM '{secret}'",
    "SELECT * FROM glob('/*')",
    "SELECT getenv('HOME')",
    "SELECT * FROM workspace",  # a Python variable of ours
    "SELECT * FROM read_parquet('s3://bucket/x')",
]


@pytest.mark.parametrize("sql", REFUSED)
def test_everything_else_is_refused(workspace, tmp_path, sql):
    secret, there = tmp_path / "secret.csv", tmp_path / "there"
    secret.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError):
        query(workspace, sql.format(secret=secret, there=there))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.csv", "w"]


def test_an_unknown_run(workspace):
    with pytest.raises(NotFoundError):
        query(workspace, "SELECT 1", run_id="2027")


def test_an_empty_workspace_answers(tmp_path):
    assert query(Workspace.open(tmp_path), "SELECT count(*) AS n FROM runs").to_pylist() == [{"n": 0}]


def test_a_connection_knows_only_its_files(tmp_path):
    write_table(pa.table({"a": [1, 2]}), tmp_path / "it's.parquet")
    write_table(pa.table({"a": [3]}), tmp_path / "other.parquet")
    with connect({"mine": [tmp_path / "it's.parquet"]}, loaded={"given": pa.table({"b": [9]})}) as connection:
        assert connection.execute("SELECT sum(a), max(b) FROM mine, given").fetchone() == (3, 9)
        with pytest.raises(Exception, match="Permission"):
            connection.execute("SELECT * FROM read_parquet(?)", [str(tmp_path / "other.parquet")])
        with pytest.raises(Exception, match="locked"):
            connection.execute("SET enable_external_access = true")
    with pytest.raises(ConfigError), connect({"not a name; DROP": []}):
        pass
